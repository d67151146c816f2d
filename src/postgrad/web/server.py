"""The workbench as one server: pages, API, and a sweep of expired leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI, Request
from nicegui import ui

from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.values import Kind
from postgrad.web.label_page import LabelPage
from postgrad.web.queue_api import explain_errors, queue_router
from postgrad.web.render import code_css

SWEEP_S: Final = 5.0
RECONNECT_S: Final = 120.0
"""A page whose network was gone for less goes on where it was, with what was typed meanwhile."""


def create_workbench(
    queue: LabelQueue,
    rater_of: Callable[[Request], str],
    kinds_of: Callable[[Request], Collection[Kind]],
) -> FastAPI:
    @asynccontextmanager
    async def sweeping(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(queue))
        yield
        task.cancel()

    app = FastAPI(title="postgrad workbench", lifespan=sweeping, docs_url="/api/docs", redoc_url=None)
    explain_errors(app)
    app.include_router(queue_router(queue, rater_of, kinds_of))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @ui.page("/", title="Label · postgrad")
    async def label(request: Request) -> None:
        ui.add_css(_css())
        await LabelPage(queue, rater_of(request), kinds_of(request)).build()

    ui.run_with(app, dark=None, reconnect_timeout=RECONNECT_S, show_welcome_message=False)
    return app


def serve(app: FastAPI, *, host: str, port: int) -> None:
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _css() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + code_css()


async def _sweep(queue: LabelQueue) -> None:
    while True:
        await asyncio.to_thread(queue.sweep)
        await asyncio.sleep(SWEEP_S)
