"""Labels to browse and search. The question stands in the address, so that its answer can be linked to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any, Final

from nicegui import ui

from postgrad.errors import DataError
from postgrad.feedback.browse import Choices, LabelFilter, Line, browse, choices, sees_all, sees_names
from postgrad.feedback.people import Account
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import KINDS
from postgrad.web.frame import Frame, Visitor, address
from postgrad.web.tables import cell_links, choice, plain_table

HERE: Final = "/labels"
_ONLY: Final = {"": "work, gold, repeats", "work": "work", "gold": "gold", "repeat": "repeats"}
_STANDING: Final = {"": "standing or undone", "standing": "standing", "undone": "undone"}
_COLUMNS: Final = (
    ("id", "label"),
    ("at", "time"),
    ("kind", "kind"),
    ("rater", "rater"),
    ("said", "says"),
    ("prompt", "about"),
    ("round", "round"),
    ("guideline", "guideline"),
    ("mark", ""),
)


class LabelsPage:
    """One list, for one person; a new search is a new page."""

    def __init__(self, store: LabelStore, visitor: Visitor, asked: Mapping[str, str]) -> None:
        self._store, self._visitor = store, visitor
        self._asked = {name: asked.get(name, "").strip() for name in (*_FIELDS, "before")}
        self._frame = Frame(visitor, HERE)

    async def build(self) -> None:
        main = self._frame.build()
        got = await self._frame.ask(None, self._read)
        if got is None:
            with main:
                ui.link("All labels", HERE).classes("pg-link pg-nothing")
            return
        found, older, options = got
        with main:
            self._search_form(options)
            if not found and not older:
                anything = any(self._asked.values())
                ui.label("No label matches." if anything else "There are no labels yet.").classes("pg-nothing")
                return
            with ui.card().classes("pg-answer pg-wide"):
                table = plain_table(_COLUMNS, [_row(line) for line in found])
                cell_links(table, "id", "/labels/")
            self._turning(found, older)

    def _read(self, *, by: Account) -> tuple[list[Line], int | None, Choices]:
        before = number(self._asked, "before")
        found, older = browse(self._store, filter_of(self._asked), by=by, before=before)
        return found, older, choices(self._store, by=by)

    def _search_form(self, options: Choices) -> None:
        account = self._visitor.loaded_by
        fields: dict[str, Any] = {}

        def search() -> None:
            ui.navigate.to(address(HERE, {name: field.value for name, field in fields.items()}))

        with ui.element("div").classes("pg-filters").props("role=search"):
            fields["text"] = ui.input("Text in prompts, answers, remarks", value=self._asked["text"]).classes("pg-grow")
            fields["kind"] = choice("Kind", ["", *KINDS], self._asked["kind"])
            if sees_names(account):
                fields["rater"] = ui.input("Rater", value=self._asked["rater"], autocomplete=list(options.raters))
            elif sees_all(account):
                fields["rater"] = ui.input("Rater's id", value=self._asked["rater"])
            fields["round"] = choice("Round", ["", *options.rounds], self._asked["round"])
            if sees_all(account):
                fields["only"] = choice("Of", _ONLY, self._asked["only"])
            fields["standing"] = choice("State", _STANDING, self._asked["standing"])
            guidelines = ["", *map(str, options.guidelines)]
            fields["guideline"] = choice("Guideline", guidelines, self._asked["guideline"])
            for name, title in (("since", "From"), ("until", "To")):
                fields[name] = ui.input(title, value=self._asked[name]).props("type=date stack-label")
            fields["task"] = ui.input("Task", value=self._asked["task"]).classes("pg-narrow")
            for field in fields.values():
                field.on("keydown.enter", search)
            with ui.row().classes("items-center"):
                ui.button("Search", on_click=search).props("no-caps unelevated")
                ui.link("Clear", HERE).classes("pg-link")

    def _turning(self, found: list[Line], older: int | None) -> None:
        with ui.row().classes("items-center"):
            if older is not None:
                if self._asked["text"] and not found:
                    ui.label(f"Nothing down to label {older}; the search took too long and stopped there.")
                query = {**self._asked, "before": older}
                name = "Older" if found else "Search on"
                ui.link(name, address(HERE, query)).classes("pg-link").props("rel=next")
            else:
                ui.label("These are the oldest.").classes("pg-hint")
            if self._asked["before"]:
                ui.link("Newest", address(HERE, {**self._asked, "before": ""})).classes("pg-link")


_FIELDS: Final = ("text", "kind", "rater", "round", "only", "standing", "guideline", "since", "until", "task")


def filter_of(asked: Mapping[str, str]) -> LabelFilter:
    """What an address asks for.

    Raises:
        DataError: something that is no choice, number or date.
    """
    for name, known in (("kind", KINDS), ("only", tuple(_ONLY)), ("standing", tuple(_STANDING))):
        if asked[name] and asked[name] not in known:
            raise DataError(f"{name} {asked[name]!r} is not one of {', '.join(k for k in known if k)}")
    kind: Any = asked["kind"] or None
    only: Any = asked["only"] or None
    standing: Any = asked["standing"] or None
    return LabelFilter(
        text=asked["text"],
        kind=kind,
        rater=asked["rater"],
        round_id=asked["round"],
        task_id=number(asked, "task"),
        only=only,
        guideline=number(asked, "guideline"),
        standing=standing,
        since=_day(asked, "since", time.min),
        until=_day(asked, "until", time.max),
    )


def number(asked: Mapping[str, str], name: str) -> int | None:
    """A number of an address, None where there is none.

    Raises:
        DataError: it is something else.
    """
    text = asked[name]
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise DataError(f"{name} {text!r} is not a number")
    return int(text)


def _day(asked: Mapping[str, str], name: str, at: time) -> datetime | None:
    """A day's beginning or end, in the server's time zone."""
    if not asked[name]:
        return None
    try:
        return datetime.combine(date.fromisoformat(asked[name]), at).astimezone()
    except ValueError:
        raise DataError(f"{name} {asked[name]!r} is not a day like 2026-11-27") from None


def _row(line: Line) -> dict[str, Any]:
    return {
        "id": line.id,
        "at": f"{line.created_at.astimezone():%Y-%m-%d %H:%M}",
        "kind": line.kind,
        "rater": line.rater,
        "said": line.said,
        "prompt": line.prompt,
        "round": line.round_id,
        "guideline": "" if line.guideline is None else f"v{line.guideline}",
        "mark": ", ".join(part for part in (line.mark, "undone" if line.undone else "") if part),
    }
