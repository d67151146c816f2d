"""What a lead looks at: how far the queue is, how fast, how far people agree, and how each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from nicegui import background_tasks, ui

from postgrad.feedback.intervals import Estimate
from postgrad.feedback.people import Account, People
from postgrad.feedback.quality import Quality
from postgrad.feedback.quality_tables import MEASURES
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.tasks import Progress
from postgrad.web.frame import Frame, Visitor
from postgrad.web.shared_quality import Measured, SharedQuality
from postgrad.web.tables import plain_table

REFRESH_S: Final = 30.0
LOOK_S: Final = 1.0
"""How soon a page notices that the shared quality is there."""
FAINT: Final = {"lineStyle": {"opacity": 0.25}}
GREY: Final = {"color": "#8a94a3"}


class DashboardPage:
    """Refreshes itself. Progress and pace are counted each time; the quality of labels is shared among all pages."""

    def __init__(self, queue: LabelQueue, people: People, visitor: Visitor, shared: SharedQuality) -> None:
        self._queue, self._people, self._shared = queue, people, shared
        self._frame = Frame(visitor, "/queue")
        self._drawn: Measured | None = None

    async def build(self) -> None:
        with self._frame.build():
            self._progress = ui.column().classes("w-full")
            with ui.element("div").classes("pg-sides"):
                self._pace = ui.column().classes("w-full")
                self._agreement = ui.column().classes("w-full")
            self._raters = ui.column().classes("w-full")
        await self.refresh()
        ui.timer(REFRESH_S, self.refresh, immediate=False)
        ui.timer(LOOK_S, self._draw_quality, immediate=False)

    async def refresh(self) -> None:
        shown = await self._frame.ask("see_quality", self._read)
        if shown is None:
            for part in (self._progress, self._pace, self._agreement, self._raters):
                part.clear()
            return
        progress, hours, self._names = shown
        background_tasks.create(self._shared.freshen())
        self._progress.clear()
        with self._progress:
            _progress(progress)
        self._pace.clear()
        with self._pace:
            _throughput(hours)
        self._draw_quality(anew=True)
        self._frame.say(f"as of {datetime.now().astimezone():%H:%M:%S}")

    def _read(self, *, by: Account) -> tuple[list[Progress], list[tuple[datetime, int]], dict[str, tuple[str, str]]]:
        """What is counted each time, and (name, state) by rater."""
        names: dict[str, tuple[str, str]] = {
            account.id: (account.name, account.state) for account in self._people.everyone()
        }
        return self._queue.progress(), self._queue.per_hour(), names

    def _draw_quality(self, *, anew: bool = False) -> None:
        """Where there is a newer one than what stands there; `anew` for its age and for names."""
        measured = self._shared.latest
        if measured is self._drawn and not anew:
            return
        self._drawn = measured
        self._agreement.clear()
        with self._agreement:
            _agreement(measured)
        self._raters.clear()
        if measured is not None:
            with self._raters:
                _raters(measured.found, self._names)


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


def _agreement(measured: Measured | None) -> None:
    with ui.card().classes("pg-answer"):
        ui.label("Agreement").classes("pg-side")
        if measured is None:
            ui.label("One moment: agreement and people are being worked out.").classes("pg-hint")
            return
        minutes = int((datetime.now(UTC) - measured.at).total_seconds() / 60)
        ui.label(
            f"This and the table of people as of {measured.at.astimezone():%H:%M:%S}, {minutes} min ago; "
            f"worked out in {measured.seconds:.1f} s, anew when labels have changed."
        ).classes("pg-hint")
        _measures(measured.found)


def _measures(found: Quality) -> None:
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
    plain_table(columns, rows, sortable=True)


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
        plain_table(columns, rows, sortable=True)


def _shown(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
