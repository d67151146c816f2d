"""What a lead looks at: how far the queue is, how fast, how far people agree, and how each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from nicegui import run, ui

from postgrad.feedback.intervals import Estimate
from postgrad.feedback.people import People
from postgrad.feedback.quality import Quality, quality
from postgrad.feedback.quality_tables import MEASURES
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.tasks import Progress

REFRESH_S: Final = 30.0
FAINT: Final = {"lineStyle": {"opacity": 0.25}}
GREY: Final = {"color": "#8a94a3"}


class DashboardPage:
    """Refreshes itself; everything on it is counted from the store each time."""

    def __init__(self, queue: LabelQueue, people: People) -> None:
        self._queue, self._people = queue, people

    async def build(self) -> None:
        ui.colors(primary="#2457a6")
        with ui.header().classes("pg-header"):
            ui.label("postgrad").classes("pg-brand")
            ui.label("Queue").classes("pg-count")
            ui.space()
            self._at = ui.label().classes("pg-status")
            ui.link("Label", "/").classes("pg-link")
        self._main = ui.column().classes("pg-main")
        await self.refresh()
        ui.timer(REFRESH_S, self.refresh, immediate=False)

    async def refresh(self) -> None:
        shown = await run.io_bound(self._read)
        assert shown is not None, "the page is closing"
        progress, hours, found, names = shown
        self._main.clear()
        with self._main:
            _progress(progress)
            with ui.element("div").classes("pg-sides"):
                _throughput(hours)
                _agreement(found)
            _raters(found, names)
        self._at.text = f"as of {datetime.now().astimezone():%H:%M:%S}"

    def _read(self) -> tuple[list[Progress], list[tuple[datetime, int]], Quality, dict[str, tuple[str, str]]]:
        """All of the page's numbers, and (name, state) by rater."""
        found = quality(self._queue.store, too_fast_s=self._queue.config.too_fast_s)
        names: dict[str, tuple[str, str]] = {
            account.id: (account.name, account.state) for account in self._people.everyone()
        }
        return self._queue.progress(), self._queue.per_hour(), found, names


def _progress(rows: Sequence[Progress]) -> None:
    with ui.card().classes("pg-answer"):
        ui.label("Progress").classes("pg-side")
        if not rows:
            ui.label("The queue is empty: `postgrad label add ROUND` fills it.")
        for row in rows:
            state = "" if row.state == "open" else f", {row.state}"
            with ui.row().classes("pg-progress"):
                ui.label(f"{row.kind}{state}").classes("pg-axis-name")
                ui.linear_progress(row.done / row.wanted, show_value=False, size="14px").classes("pg-bar")
                ui.label(f"{row.done:,} of {row.wanted:,} answers to {row.tasks:,} tasks, {row.leased:,} in hand")


def _throughput(hours: Sequence[tuple[datetime, int]]) -> None:
    with ui.card().classes("pg-answer"):
        ui.label("Answers an hour").classes("pg-side")
        ui.echart(
            {
                "animation": False,
                "grid": {"left": 44, "right": 10, "top": 16, "bottom": 28},
                "tooltip": {"trigger": "axis"},
                "xAxis": {"type": "category", "data": [f"{at.astimezone():%H}" for at, _ in hours], "axisLabel": GREY},
                "yAxis": {
                    "type": "value",
                    "minInterval": 1,
                    "axisLabel": GREY,
                    "splitLine": {"lineStyle": {"opacity": 0.25}},
                },
                "series": [{"type": "bar", "data": [num for _, num in hours], "color": "#4f86d9"}],
            }
        ).classes("pg-chart")


def _agreement(found: Quality) -> None:
    columns = [("among", "among"), ("measure", "measure"), ("value", "value [95%]")]
    rows = [
        {
            "id": i,
            "among": part.first if part.first == part.second else f"{part.first} and {part.second}",
            "measure": MEASURES[name],
            "value": _shown(value),
        }
        for i, (part, name, value) in enumerate((p, n, v) for p in found.agreement for n, v in p.measures.items())
    ]
    with ui.card().classes("pg-answer"):
        ui.label("Agreement").classes("pg-side")
        _table(columns, rows)


def _raters(found: Quality, names: dict[str, tuple[str, str]]) -> None:
    columns = [
        ("name", "person"),
        ("kind", "kind"),
        ("state", "account"),
        ("answers", "answers"),
        ("gold", "gold right"),
        ("agreement", "agrees with others"),
        ("position", "first chosen"),
        ("length", "length slope"),
        ("consistency", "consistent"),
        ("seconds", "median s"),
        ("fast", "too fast"),
        ("weight", "weight"),
    ]
    rows = [
        {
            "id": r.rater_id,
            "name": names.get(r.rater_id, (r.rater_id, ""))[0],
            "kind": r.kind,
            "state": names.get(r.rater_id, ("", ""))[1],
            "answers": r.answers,
            "gold": f"{r.gold_right} of {r.gold}" if r.gold else "",
            "agreement": _shown(r.agreement),
            "position": _shown(r.position),
            "length": _shown(r.length),
            "consistency": _shown(r.consistency),
            "seconds": "" if r.median_ms is None else f"{r.median_ms / 1000:.1f}",
            "fast": "" if r.too_fast is None else f"{r.too_fast:.0%}",
            "weight": _shown(r.weight),
        }
        for r in found.raters
    ]
    with ui.card().classes("pg-answer pg-wide"):
        ui.label("People and models").classes("pg-side")
        _table(columns, rows)


def _table(columns: Sequence[tuple[str, str]], rows: list[dict[str, Any]]) -> None:
    described = [
        {"name": key, "label": label, "field": key, "align": "left", "sortable": True} for key, label in columns
    ]
    ui.table(columns=described, rows=rows, row_key="id").props("flat dense wrap-cells").classes("pg-table")


def _shown(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
