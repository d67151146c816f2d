"""The workbench as one server: pages, API, and a sweep of expired leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from nicegui import ui

from postgrad.errors import PostgradError
from postgrad.feedback.conversation import Conversations
from postgrad.feedback.people import Account
from postgrad.feedback.queue import LabelQueue
from postgrad.web.auth import Auth
from postgrad.web.dashboard_page import DashboardPage
from postgrad.web.errors import Refused
from postgrad.web.label_page import LabelPage
from postgrad.web.login_page import build_login
from postgrad.web.queue_api import queue_router
from postgrad.web.render import code_css

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
    app.include_router(queue_router(talks, auth.allowed("label")))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @ui.page("/", title="Label · postgrad")
    async def label(request: Request) -> RedirectResponse | None:
        account = _signed_in(auth, request)
        if account is None:
            return RedirectResponse("/login")
        ui.add_css(_css())
        await LabelPage(talks, account, local=auth.local is not None).build()
        return None

    @ui.page("/queue", title="Queue · postgrad")
    async def dashboard(request: Request) -> RedirectResponse | None:
        account = _signed_in(auth, request)
        if account is None or "see_quality" not in account.permissions:
            return RedirectResponse("/login" if account is None else "/")
        ui.add_css(_css())
        await DashboardPage(queue, auth.people).build()
        return None

    @ui.page("/login", title="Sign in · postgrad")
    def login() -> None:
        ui.add_css(_css())
        build_login()

    ui.run_with(app, dark=None, reconnect_timeout=RECONNECT_S, show_welcome_message=False)
    return app


def serve(app: FastAPI, *, host: str, port: int) -> None:
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _signed_in(auth: Auth, request: Request) -> Account | None:
    try:
        return auth.current(request)
    except Refused:
        return None


def _css() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + code_css()


async def _sweep(queue: LabelQueue) -> None:
    while True:
        try:
            await asyncio.to_thread(queue.sweep)
        except PostgradError as e:
            _log.warning("expired leases stay for now: %s", e)
        await asyncio.sleep(SWEEP_S)
