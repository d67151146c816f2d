"""The workbench as one server: pages, API, and a sweep of expired leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from nicegui import ui

from postgrad.errors import PostgradError
from postgrad.feedback.conversation import Conversations
from postgrad.feedback.queue import LabelQueue
from postgrad.web.auth import Auth
from postgrad.web.frame import admit, css
from postgrad.web.headers import SafeHeaders
from postgrad.web.label_page import LabelPage
from postgrad.web.lead_pages import add_lead_pages
from postgrad.web.login_page import build_login
from postgrad.web.queue_api import queue_router

SWEEP_S: Final = 5.0
RECONNECT_S: Final = 120.0
"""A page whose network was gone for less goes on where it was, with what was typed meanwhile."""
_log = logging.getLogger(__name__)


def create_workbench(talks: Conversations, auth: Auth) -> FastAPI:
    """The application; one for each process, because its pages belong to the process."""
    queue = talks.queue

    @asynccontextmanager
    async def sweeping(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(queue))
        yield
        task.cancel()
        await talks.close()

    app = FastAPI(title="postgrad workbench", lifespan=sweeping, docs_url="/api/docs", redoc_url=None)
    auth.install(app)
    app.add_middleware(SafeHeaders)
    app.include_router(queue_router(talks, auth.allowed("label")))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @ui.page("/", title="Label · postgrad")
    async def label(request: Request) -> RedirectResponse | None:
        visitor = admit(auth, request, "/")
        if isinstance(visitor, RedirectResponse):
            return visitor
        ui.add_css(css())
        await LabelPage(talks, visitor).build()
        return None

    add_lead_pages(queue, auth)

    @ui.page("/login", title="Sign in · postgrad")
    def login() -> None:
        ui.add_css(css())
        build_login()

    ui.run_with(app, dark=None, reconnect_timeout=RECONNECT_S, show_welcome_message=False)
    return app


def serve(app: FastAPI, *, host: str, port: int) -> None:
    uvicorn.run(app, host=host, port=port, log_level="warning")


async def _sweep(queue: LabelQueue) -> None:
    while True:
        try:
            await asyncio.to_thread(queue.sweep)
        except PostgradError as e:
            _log.warning("expired leases stay for now: %s", e)
        await asyncio.sleep(SWEEP_S)
