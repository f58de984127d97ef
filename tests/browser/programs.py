"""Where the browser and its driver are on this machine. `.ci/run` asks this before anything is installed."""

from __future__ import annotations

import os
import shutil

INSTALL = (
    "`apt-get install chromium chromium-driver` on Debian, `brew install --cask google-chrome chromedriver` on macOS"
)
CHROME = ("google-chrome", "google-chrome-stable", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
CHROMIUM = ("chromium", "chromium-browser", "/Applications/Chromium.app/Contents/MacOS/Chromium")


def chromium() -> str | None:
    """Chromium or Chrome: that of CHROME_BIN, else the first in the usual places."""
    # a hosted runner may have both, and names the folder of Chrome's driver
    names = CHROME + CHROMIUM if os.environ.get("CHROMEWEBDRIVER") else CHROMIUM + CHROME
    return _first(os.environ.get("CHROME_BIN"), *names)


def driver() -> str | None:
    """The driver of the same version: that of CHROMEDRIVER, else the first in the usual places."""
    folder = os.environ.get("CHROMEWEBDRIVER")
    return _first(
        os.environ.get("CHROMEDRIVER"),
        folder and f"{folder}/chromedriver",
        "chromedriver",
        "/usr/lib/chromium-browser/chromedriver",
    )


def missing() -> str:
    """Which program is missing, and the command that installs it; empty if none is."""
    lacks = [name for name, path in (("Chromium or Chrome", chromium()), ("chromedriver", driver())) if not path]
    return (
        f"Not found: {' and '.join(lacks)}. Install with {INSTALL}, or set CHROME_BIN and CHROMEDRIVER" if lacks else ""
    )


def _first(*programs: str | None) -> str | None:
    return next((path for program in programs if program and (path := shutil.which(program))), None)
