"""The workbench's real server, and a person at a keyboard before its pages in a real browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # Playwright's own event loop outlives its last page by a moment.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def serving(url: str, *options: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of `postgrad label serve` on a database, and its process."""
    port = port or free_port()
    command = [sys.executable, "-m", "postgrad", "label", "serve", "--db", url, "--port", str(port), *options]
    # Pages of the server under test must not think that they are a test of NiceGUI's.
    clean = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(command, env=clean)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/healthz", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def chromium(playwright: Any) -> Iterator[Any]:
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    )
    try:
        yield browser
    finally:
        browser.close()


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """A page."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright, chromium(playwright) as browser:
        yield browser.new_context(viewport={"width": 1440, "height": 900}).new_page()


class Person:
    """What somebody types, and what the page says to it."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def types(self, text: str) -> None:
        self.page.keyboard.type(text)

    def sees(self, said: str) -> None:
        self.page.locator(".pg-status", has_text=said).wait_for(timeout=60_000)

    def title(self) -> str:
        return str(self.page.locator(".pg-title").inner_text())

    def answered(self, num: int) -> None:
        self.page.locator(".pg-count", has_text=f"{num} answered").wait_for(timeout=60_000)
