"""A headless Chromium that opens one page at a time and keeps what the page logged and asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.programs import chromium, driver

LOCAL = ("file:", "data:", "blob:", "about:")
LOADING = 60
"""Seconds in which a page must load."""
# Chrome's driver may take the end of about:blank for that of the next page, whose scripts have not run then
LOADED = "return location.protocol === 'file:' && document.readyState === 'complete'"
AXE = Path(__file__).with_name("axe_core") / "axe.min.js"
# an unused network, no dialogs, and shared memory on disk for small containers
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


class Page:
    """The page that is open. `driver` is Selenium's, for what is not here."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(
        self,
        path: Path,
        *,
        width: int = 1120,
        height: int = 900,
        theme: str = "light",
        reduced_motion: bool = False,
        fragment: str = "",
    ) -> Page:
        """Loads a file, with the settings of its reader. width, height: of the window, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", size)
        features = {
            "prefers-color-scheme": theme,
            "prefers-reduced-motion": "reduce" if reduced_motion else "no-preference",
        }
        self.command(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": name, "value": value} for name, value in features.items()]},
        )
        self.driver.get("about:blank")  # a fragment alone would not load the page again
        self.driver.get(path.resolve().as_uri() + fragment)
        WebDriverWait(self.driver, LOADING, 0.02).until(
            lambda driver: driver.execute_script(LOADED), f"{path} is not loaded after {LOADING} s"
        )
        ActionBuilder(self.driver).clear_actions()  # no key or button is held, and the pointer is nowhere
        return self

    def command(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, dict(arguments))

    def js(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns; elements and JSON values go in and out."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector; raises NoSuchElementException."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """A click of the mouse on what is seen there."""
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def focus(self, selector: str) -> None:
        """Gives an element the focus."""
        element = self.find(selector)
        assert self.js("arguments[0].focus(); return document.activeElement === arguments[0]", element), selector

    def press(self, *keys: str) -> None:
        """Keys for the element in focus, one after the other."""
        actions = self.actions()
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def actions(self) -> ActionChains:
        """Pointer and keys; without pauses."""
        return ActionChains(self.driver, duration=0)

    def faults(self) -> list[str]:
        """Warnings and errors of the console, errors of scripts and requests to anything but local data, since the
        last call."""
        said = [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]
        return [line for line in said if line.startswith(("WARNING", "SEVERE"))] + [
            f"request: {url}" for url in self._requests() if not url.startswith(LOCAL)
        ]

    def _requests(self) -> Iterator[str]:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]
            elif message["method"] == "Network.webSocketCreated":
                yield message["params"]["url"]

    def axe(self, *impacts: str) -> list[str]:
        """Findings of axe-core with one of these impacts: rule, what it asks for, and the elements."""
        self.driver.set_script_timeout(110)  # below that of the connection
        self.js(AXE.read_text(encoding="utf-8"))
        found: Sequence[Mapping[str, Any]] = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(r => done(r.violations));"
        )
        return [
            f"{finding['impact']} {finding['id']}: {finding['help']}: {[node['html'] for node in finding['nodes']][:4]}"
            for finding in found
            if finding["impact"] in impacts
        ]


@contextmanager
def started() -> Iterator[Page]:
    """A browser with an empty page."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium() or ""
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=Service(driver()))
    try:
        yield Page(session)
    finally:
        session.quit()
