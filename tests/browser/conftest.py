"""A headless Chromium for tests of a real page: `chromium_page`, watched for foreign requests and console errors.

Not a test of its own. The browser is found by its variable or on the PATH (tools/programs.py brings one before the
suite starts); where there is none the tests fail in CI and are skipped, with the command to run, anywhere else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from watched import Watched, watch

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """The path of a Chromium: TRIMTAB_CHROMIUM first, then the PATH."""
    named = os.environ.get("TRIMTAB_CHROMIUM")
    return shutil.which(named) if named else next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One headless browser for the tests of a file; its event loop must not outlive them."""
    path = find_chromium()
    if path is None:
        reason = "no Chromium: apt-get install chromium, or set TRIMTAB_CHROMIUM to its path"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def chromium_page(chromium: Browser) -> Iterator[Watched]:
    """A fresh page of 1440 × 900 in its own context, dark; what it requests and logs is kept."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    yield watch(context)
    context.close()
