"""The queue's tasks for who leads it: look at them, and pause, open, close or hurry many at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from nicegui import ui

from postgrad.errors import DataError
from postgrad.feedback.browse import Choices, choices
from postgrad.feedback.people import Account
from postgrad.feedback.store import LabelStore
from postgrad.feedback.task_list import (
    TASK_STATES,
    TaskFilter,
    TaskLine,
    TaskState,
    change_tasks,
    count_tasks,
    task_page,
)
from postgrad.feedback.values import KINDS
from postgrad.web.frame import Frame, Visitor, address
from postgrad.web.labels_page import number
from postgrad.web.tables import choice, plain_table

HERE: Final = "/tasks"
_FIELDS: Final = ("kind", "state", "round", "gold", "only")
_GOLD: Final = {"": "gold or not", "no": "no gold", "yes": "gold"}
_ONLY: Final = {"": "any", "disputed": "disputed", "skipped": "skipped", "waiting": "with free places"}
_COLUMNS: Final = (
    ("id", "task"),
    ("kind", "kind"),
    ("state", "state"),
    ("priority", "priority"),
    ("done", "answers"),
    ("free", "free"),
    ("leased", "in hand"),
    ("mark", ""),
    ("skips", "skipped because"),
    ("prompt", "about"),
    ("round", "round"),
)
_CHANGES: Final[tuple[tuple[str, TaskState], ...]] = (("Open", "open"), ("Pause", "paused"), ("Close", "closed"))


class TasksPage:
    """One list of tasks; what is ticked, or all that the filter holds, can be changed."""

    def __init__(self, store: LabelStore, visitor: Visitor, asked: Mapping[str, str]) -> None:
        self._store = store
        self._asked = {name: asked.get(name, "").strip() for name in (*_FIELDS, "before")}
        self._frame = Frame(visitor, HERE)
        self._table: ui.table | None = None

    async def build(self) -> None:
        self._confirm = ui.dialog()
        with self._frame.build():
            self._form = ui.element("div").classes("pg-filters").props("role=search")
            self._tools = ui.row().classes("items-center")
            self._list = ui.column().classes("w-full")
        await self._refresh()

    async def _refresh(self) -> None:
        got = await self._frame.ask("manage_tasks", self._read)
        self._list.clear()
        if got is None:
            return
        found, older, options = got
        if self._table is None:
            self._filters(options)
            self._buttons()
        with self._list:
            self._table = None
            if not found:
                filtered = any(self._asked.values())
                ui.label(
                    "No task matches." if filtered else "The queue is empty: `postgrad label add ROUND` fills it."
                ).classes("pg-nothing")
            with ui.card().classes("pg-answer pg-wide") as card:
                self._table = plain_table(_COLUMNS, [_row(line) for line in found], selection="multiple")
            card.set_visibility(bool(found))
            self._table.add_slot("body-cell-id", _LABELS_OF)
            with ui.row().classes("items-center"):
                if older is not None:
                    ui.link("Older", address(HERE, {**self._asked, "before": older})).classes("pg-link")
                if self._asked["before"]:
                    ui.link("Newest", address(HERE, {**self._asked, "before": ""})).classes("pg-link")

    def _read(self, *, by: Account) -> tuple[list[TaskLine], int | None, Choices]:
        before = number(self._asked, "before")
        found, older = task_page(self._store, filter_of(self._asked), by=by, before=before)
        return found, older, choices(self._store, by=by)

    def _filters(self, options: Choices) -> None:
        fields: dict[str, Any] = {}

        def search() -> None:
            ui.navigate.to(address(HERE, {name: field.value for name, field in fields.items()}))

        with self._form:
            fields["kind"] = choice("Kind", ["", *KINDS], self._asked["kind"])
            fields["state"] = choice("State", ["", *TASK_STATES], self._asked["state"])
            fields["round"] = choice("Round", ["", *options.rounds], self._asked["round"])
            fields["gold"] = choice("Gold", _GOLD, self._asked["gold"])
            fields["only"] = choice("Only", _ONLY, self._asked["only"])
            ui.button("Show", on_click=search).props("no-caps unelevated")
            ui.link("Clear", HERE).classes("pg-link")

    def _buttons(self) -> None:
        with self._tools:
            self._scope = ui.radio({"ticked": "those ticked", "all": "all that match"}, value="ticked").props("inline")
            for name, state in _CHANGES:
                ui.button(name, on_click=lambda name=name, state=state: self._ask_first(name, state=state)).props(
                    "no-caps outline"
                )
            self._priority = ui.number("Priority", value=0, format="%d").props("dense").classes("pg-narrow")
            ui.button("Set priority", on_click=self._set_priority).props("no-caps outline")

    async def _set_priority(self) -> None:
        if self._priority.value is None:
            self._frame.say("Say which priority.", "warning")
            return
        wanted = int(self._priority.value)
        await self._ask_first(f"Set priority {wanted} of", priority=wanted)

    async def _ask_first(self, name: str, **change: Any) -> None:
        """Change what is ticked at once, everything that matches after a question."""
        self._frame.say("")
        if self._scope.value == "ticked":
            ticked = [row["id"] for row in self._table.selected] if self._table is not None else []
            if ticked:
                await self._change(ticked, change)
            else:
                self._frame.say("Tick some tasks first, or choose all that match.", "warning")
            return
        num = await self._frame.ask("manage_tasks", self._count)
        if num is None:
            return
        which = filter_of(self._asked)
        self._confirm.clear()
        with self._confirm, ui.card():
            ui.label(f"{name} {num:,} tasks? They match: {which.in_words()}.")
            with ui.row():
                ui.button("Yes", on_click=self._then(which, change)).props("no-caps unelevated autofocus")
                ui.button("No", on_click=self._confirm.close).props("no-caps flat")
        self._confirm.open()

    def _count(self, *, by: Account) -> int:
        return count_tasks(self._store, filter_of(self._asked), by=by)

    def _then(self, which: TaskFilter, change: dict[str, Any]) -> Callable[[], Awaitable[None]]:
        async def go_on() -> None:
            self._confirm.close()
            await self._change(which, change)

        return go_on

    async def _change(self, which: list[int] | TaskFilter, change: dict[str, Any]) -> None:
        num = await self._frame.ask("manage_tasks", change_tasks, self._store, which, **change)
        if num is not None:
            await self._refresh()
            self._frame.say(f"Changed: {num:,}." if num else "They were so already.", "positive")


_LABELS_OF: Final = """
<q-td :props="props">
  <a class="pg-link" :href="'/labels?task=' + props.value" title="Its labels">{{ props.value }}</a>
</q-td>
"""


def filter_of(asked: Mapping[str, str]) -> TaskFilter:
    """What an address asks for.

    Raises:
        DataError: something that is no choice.
    """
    for name, known in (("kind", KINDS), ("state", TASK_STATES), ("gold", tuple(_GOLD)), ("only", tuple(_ONLY))):
        if asked[name] and asked[name] not in known:
            raise DataError(f"{name} {asked[name]!r} is not one of {', '.join(k for k in known if k)}")
    kind: Any = asked["kind"] or None
    state: Any = asked["state"] or None
    return TaskFilter(
        kind=kind,
        state=state,
        round_id=asked["round"],
        gold=None if not asked["gold"] else asked["gold"] == "yes",
        disputed=asked["only"] == "disputed",
        skipped=asked["only"] == "skipped",
        waiting=asked["only"] == "waiting",
    )


def _row(line: TaskLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "kind": line.kind,
        "state": line.state,
        "priority": line.priority,
        "done": f"{line.done}" if line.gold else f"{line.done} of {line.overlap}",
        "free": "everyone" if line.gold else line.free,
        "leased": line.leased or "",
        "mark": ", ".join(m for m, on in (("gold", line.gold), ("disputed", line.disputed)) if on),
        "skips": "; ".join(line.skips),
        "prompt": line.prompt,
        "round": line.round_id,
    }
