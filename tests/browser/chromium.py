"""Headless Chromium for the tests beside this file, which skip without it and say so."""
import shutil

import pytest

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MARKS = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=(
    "Chromium and its driver are not installed (Debian: chromium, chromium-driver)"))]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--window-size=1280,1000")


def headless(profile, logs: dict[str, str] | None = None):
    """A driver with the folder `profile` to itself; logs: which to keep, from which level."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", logs or {})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
