"""A page of a label audit in a real browser, as a person sees and uses it."""

import importlib.util
import os
import shutil
import time

import pytest


def need(found, what):
    """Go on if it is there; without it the test is skipped, but fails where ``CI`` is set."""
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is missing")


class Page:
    """A page in a browser."""

    def __init__(self, driver, downloads):
        self.driver, self.downloads = driver, downloads

    def open(self, path):
        self.driver.get(path.as_uri())

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.toWellFormed())"
        return self.driver.execute_script(script, selector)

    def keys(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def write(self, selector, text):
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def decisions(self):
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#gallery li')].map((e) => e.dataset.decision || '-').join('')"
        )

    def selected(self):
        return int(self.one("#gallery [aria-current]").get_attribute("data-issue"))

    def export(self, key=None):
        """Export by key, or with the button; return the file."""
        file = self.downloads / "decisions.csv"
        file.unlink(missing_ok=True)
        self.keys(key) if key else self.one("#export").click()
        wait_for(file.exists)
        return file

    def errors(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)
    return found


def start(downloads):
    """Start a browser that saves to ``downloads``."""
    need(importlib.util.find_spec("selenium"), "selenium")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    need(all(found), "a browser (chromium and chromedriver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1200,1000"):
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    driver.downloads = downloads
    return driver
