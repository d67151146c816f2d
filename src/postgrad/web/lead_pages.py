"""The addresses of all pages but the one on which people label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import Request
from fastapi.responses import RedirectResponse
from nicegui import ui

from postgrad.feedback.queue import LabelQueue
from postgrad.web.auth import Auth
from postgrad.web.dashboard_page import DashboardPage
from postgrad.web.frame import Visitor, admit, css
from postgrad.web.label_view import LabelView
from postgrad.web.labels_page import LabelsPage
from postgrad.web.people_page import PeoplePage
from postgrad.web.shared_quality import SharedQuality
from postgrad.web.tasks_page import TasksPage


class _Page(Protocol):
    async def build(self) -> None: ...


def add_lead_pages(queue: LabelQueue, auth: Auth) -> None:
    store, shared = queue.store, SharedQuality(queue)

    def add(address: str, title: str, make: Callable[[Visitor, Request], _Page]) -> None:
        @ui.page(address, title=f"{title} · postgrad")
        async def page(request: Request) -> RedirectResponse | None:
            visitor = admit(auth, request, address.partition("/{")[0])
            if isinstance(visitor, RedirectResponse):
                return visitor
            ui.add_css(css())
            await make(visitor, request).build()
            return None

    add("/queue", "Queue", lambda visitor, _: DashboardPage(queue, auth.people, visitor, shared))
    add("/labels", "Labels", lambda visitor, request: LabelsPage(store, visitor, request.query_params))
    add("/labels/{label_id:int}", "Label", lambda visitor, r: LabelView(store, visitor, r.path_params["label_id"]))
    add("/tasks", "Tasks", lambda visitor, request: TasksPage(store, visitor, request.query_params))
    add("/people", "People", lambda visitor, _: PeoplePage(auth.people, visitor))
