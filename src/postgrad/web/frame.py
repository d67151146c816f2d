"""What all pages share: who has one open, the way between them, and actions that ask again who it is.

A page stays open long after it was loaded; meanwhile its session may end, its account pause, or its role change. So
nothing that a page does relies on who loaded it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import RedirectResponse
from nicegui import run, ui

from postgrad.errors import AccessError, PostgradError
from postgrad.feedback.people import Account, Permission
from postgrad.web.auth import Auth, csrf_token, origin_of, token_of
from postgrad.web.errors import Refused
from postgrad.web.render import code_css, to_html

PAGES: Final[tuple[tuple[str, str, frozenset[Permission]], ...]] = (
    ("Label", "/", frozenset({"label"})),
    ("Queue", "/queue", frozenset({"see_quality"})),
    ("Labels", "/labels", frozenset({"read", "label"})),
    ("Tasks", "/tasks", frozenset({"manage_tasks"})),
    ("People", "/people", frozenset({"manage_people"})),
)
"""Name, address, and the permissions of which one is enough."""
_SIGN_OUT: Final = """
async () => {
  const answer = await fetch('/auth/logout', {method: 'POST', headers: {'X-CSRF-Token': %s}});
  if (answer.ok || answer.status === 401) location.href = '/login'; else location.reload();
}
"""


class Visitor:
    """One person's open page."""

    def __init__(self, auth: Auth, request: Request, account: Account) -> None:
        self._auth, self._token = auth, token_of(request)
        self.local = auth.local is not None
        self.site = origin_of(request.scope)
        self.loaded_by = account
        """For what is drawn once; what is done asks `account`."""

    def account(self, permission: Permission | None = None) -> Account:
        """Who it is now.

        Raises:
            AccessError: the session has ended, or the account may not, or not any more.
        """
        account = self._auth.local or self._auth.people.who(self._token)
        if permission is not None:
            account.require(permission)
        return account

    def csrf(self) -> str:
        return csrf_token(self._token)


def admit(auth: Auth, request: Request, page: str) -> Visitor | RedirectResponse:
    """Who may see the page at this address of `PAGES`; others are sent where they may be."""
    try:
        account = auth.current(request)
    except Refused:
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse("/login" if asked == "/" else f"/login?next={quote(asked)}")
    reachable = [address for _, address, enough in PAGES if enough & account.permissions]
    if page not in reachable and (page != "/" or reachable):
        return RedirectResponse(reachable[0] if reachable else "/")
    return Visitor(auth, request, account)


class Frame:
    """Header and status line of a page, and the way in which it acts."""

    def __init__(self, visitor: Visitor, here: str) -> None:
        self.visitor, self._here = visitor, here

    def build(self) -> ui.column:
        """The page's body, below its header."""
        with header(self.visitor, self._here):
            self._status = ui.label().classes("pg-status").props("role=status aria-live=polite")
        return ui.column().classes("pg-main")

    async def ask(self, permission: Permission | None, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`call(..., by=account)` beside the event loop; None, and the reason on the page, where it was refused."""

        def guarded() -> Any:
            return call(*args, by=self.visitor.account(permission), **kwargs)

        try:
            return await run.io_bound(guarded)
        except AccessError as e:
            self.say(f"Refused: {e}.", "negative")
        except PostgradError as e:
            self.say(f"Not done: {e}.", "negative")
        return None

    def say(self, text: str, tone: str = "info") -> None:
        self._status.text = text
        self._status.classes(replace="pg-status" if tone == "info" else f"pg-status text-{tone}")


@contextmanager
def header(visitor: Visitor, here: str) -> Iterator[None]:
    """The line at the top, with what a page adds to it in between."""
    ui.colors(primary="#2457a6")
    account = visitor.loaded_by
    with ui.header().classes("pg-header"):
        ui.label("postgrad").classes("pg-brand")
        with ui.element("nav").classes("pg-nav").props('aria-label="Pages"'):
            for name, address, enough in PAGES:
                if enough & account.permissions:
                    link = ui.link(name, address).classes("pg-link")
                    if address == here:
                        link.props("aria-current=page")
        with ui.element("div").classes("pg-tools"):
            yield
        if not visitor.local:
            ui.label(account.name).classes("pg-count")
            out = ui.button("Sign out").props("flat dense no-caps color=inherit")
            out.on("click", js_handler=_SIGN_OUT % json.dumps(visitor.csrf()))


async def rendered(texts: list[str]) -> list[str]:
    """Texts of models as HTML, made beside the event loop, because a long one takes its time."""
    found = await run.io_bound(lambda: [to_html(text) for text in texts])
    return found or []


def address(path: str, query: Mapping[str, object]) -> str:
    """A page's address with what is set of a query."""
    given = {name: value for name, value in query.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(given)}" if given else path


def css() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + code_css()
