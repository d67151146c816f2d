"""Headers that tell a browser what our pages never do, so that a page that was tricked into it cannot."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# NiceGUI compiles templates in the browser and starts its pages with an inline script: nothing shows without both.
_SCRIPTS: Final = "'self' 'unsafe-inline' 'unsafe-eval'"
_POLICY: Final = (
    "default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'{elsewhere}; "
    "img-src 'self' data:{elsewhere}; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PAGES: Final = _POLICY.format(scripts=_SCRIPTS, elsewhere="")
API_DOCS: Final = _POLICY.format(
    scripts=f"{_SCRIPTS} https://cdn.jsdelivr.net", elsewhere=" https://cdn.jsdelivr.net https://fastapi.tiangolo.com"
)
"""FastAPI's page about the API takes its scripts from there."""


class SafeHeaders:
    """Adds them to every answer: nothing from other sites, no frame around us, no guessing of types."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = API_DOCS if scope["path"] == "/api/docs" else PAGES
                headers["x-frame-options"] = "DENY"
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "same-origin"
            await send(message)

        await self._app(scope, receive, sending)
