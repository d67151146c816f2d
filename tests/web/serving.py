"""People who sign in to a workbench with accounts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from browsing import serving

PASSWORD = "correct horse battery"


@contextmanager
def workbench(url: str, *options: str) -> Iterator[str]:
    """The address of a server with accounts over this database."""
    with serving(url, "--accounts", *options) as (address, _):
        yield address


def sign_in(browser: Any, address: str, name: str, *, path: str = "/") -> Any:
    """A page of somebody's own, where they wanted to go."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}{path}")
    page.locator("#pg-login").wait_for()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.locator(".pg-nav").wait_for()
    return page
