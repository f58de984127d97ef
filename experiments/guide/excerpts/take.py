"""Pictures of sections of a report: python -m experiments.guide.excerpts.take RUN TO [CHROMIUM]."""

import io
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

SECTIONS = ("conclusion", "figure-images", "figure-growth")
WIDTH, TALLEST = 1100, 700


def main(run: Path, to: Path, chromium: str = "/usr/bin/chromium") -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WIDTH},1600"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options)
    try:
        driver.get((run / "report.html").resolve().as_uri())
        to.mkdir(parents=True, exist_ok=True)
        for name in SECTIONS:
            section = driver.find_element(By.ID, name)
            picture = Image.open(io.BytesIO(section.screenshot_as_png)).convert("RGB")
            picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
            file = to / f"{name.removeprefix('figure-')}.webp"
            picture.save(file, quality=80, method=6)
            print(file, picture.size, file.stat().st_size)
    finally:
        driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:3]), *sys.argv[3:])
