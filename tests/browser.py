"""A real browser for tests: the Chromium that is installed, without a word to any other host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium_path() -> str:
    """Where it is; skips the test where there is none."""
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no browser is installed: none of {', '.join(_NAMES)} (Debian's chromium)")


# Of a file, and not of the session: while Playwright runs, asyncio.run does not in its thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; each test opens a context, or a page, of its own."""
    path = chromium_path()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield launched
        launched.close()
