"""Pictures of a report: python -m experiments.guide.excerpts.take RUN TO [CHROMIUM].

TO is a folder for the sections that the guide shows, or a file `*.png` for the head of the page in the README: from its
title to the caption of its pictures.
"""

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

SECTIONS = ("conclusion", "figure-images", "figure-growth")
WIDTH, TALLEST = 1100, 700
OF_THE_HEAD = 1120


def main(run: Path, to: Path, chromium: str = "/usr/bin/chromium") -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WIDTH},1600"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))  # not fetched
    try:
        if to.suffix == ".png":
            _head(driver, run, to)
        else:
            _sections(driver, run, to)
    finally:
        driver.quit()


def _sections(driver: webdriver.Chrome, run: Path, to: Path) -> None:
    driver.get((run / "report.html").resolve().as_uri())
    to.mkdir(parents=True, exist_ok=True)
    for name in SECTIONS:
        section = driver.find_element(By.ID, name)
        picture = Image.open(io.BytesIO(section.screenshot_as_png)).convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
        file = to / f"{name.removeprefix('figure-')}.webp"
        picture.save(file, quality=80, method=6)
        print(file, picture.size, file.stat().st_size)


def _head(driver: webdriver.Chrome, run: Path, file: Path) -> None:
    size = {"width": OF_THE_HEAD, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get((run / "report.html").resolve().as_uri())
    caption = driver.find_element(By.CSS_SELECTOR, "#figure-images figcaption")
    height = driver.execute_script("return Math.ceil(arguments[0].getBoundingClientRect().bottom) + 16", caption)
    clip = {"x": 0, "y": 0, "width": OF_THE_HEAD, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(file, picture.size, file.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:3]), *sys.argv[3:])
