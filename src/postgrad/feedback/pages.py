"""Labels with all that they are about, page by page: plain columns, no objects of the mapper, JSON left as text."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Select, Text, case, cast, func, select
from sqlalchemy.orm import Session

from postgrad.db.tables import Base
from postgrad.feedback.formats import Labelled
from postgrad.feedback.records import Purpose, RaterKind, content_id
from postgrad.feedback.values import Kind

PAGE: Final = 500
"""Labels in memory at a time; an answer may be 400,000 characters long."""
_HASHED: Final = 2**32

TABLES: Final = Base.metadata.tables
LABEL, PROMPT, SAMPLE = (TABLES[name].c for name in ("labels", "prompts", "samples"))
COMPARISON, TASK, ASSIGNMENT = (TABLES[name].c for name in ("comparisons", "tasks", "assignments"))
_RATER, _SIDE = TABLES["raters"].c, TABLES["comparison_answers"].c
_round_id = func.coalesce(COMPARISON.round_id, TASK.round_id, SAMPLE.round_id)
_purpose = case((ASSIGNMENT.gold, "gold"), else_=func.coalesce(COMPARISON.purpose, "train"))
"""Of a label without a comparison: gold where the task was, else train."""


@dataclass(frozen=True, slots=True)
class Filters:
    round_id: str | None = None
    purpose: Purpose | None = None
    rater_kinds: tuple[RaterKind, ...] = ()
    """All, where none is named."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What to read beside ids and what filters look at."""

    label: tuple[Any, ...]
    prompt: tuple[Any, ...]
    sample: tuple[Any, ...]


_TOLD: Final = (cast(PROMPT.conversation, Text).label("conversation"),)
_ANSWERED: Final = (SAMPLE.text, SAMPLE.checkpoint)
TRAINING: Final = Columns((cast(TASK.details, Text).label("details"),), _TOLD, _ANSWERED)
TABLE: Final = Columns(
    (
        LABEL.display_order, LABEL.rationale, LABEL.milliseconds, LABEL.weight, LABEL.created_at, LABEL.undone_at,
        _round_id.label("round_id"), ASSIGNMENT.repeat,
    ),
    _TOLD,
    _ANSWERED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    filters: Filters
    kinds: tuple[Kind, ...]
    """All, where none is named."""
    standing: bool
    """Neither undone labels nor gold nor repeats."""
    columns: Columns
    valid_share: float | None
    """None where nobody wants to know the split."""


def snapshot(session: Session, name: str | None = None) -> tuple[Connection, tuple[int, int]]:
    """A connection that sees one state of the store, whatever it is asked; the lowest and highest number of a label.

    Args:
        session: that has not read yet. SQLite's transactions are such anyway, PostgreSQL is asked for it.
        name: of another connection's snapshot in PostgreSQL, to see the same.
    """
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    connection = session.connection(execution_options={"isolation_level": "REPEATABLE READ"} if is_postgresql else {})
    if name is not None:
        connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{name}'")
    first, last = connection.execute(select(func.min(LABEL.id), func.max(LABEL.id))).one()
    return connection, (1, 0) if first is None else (first, last)


def split_of(prompt_id: str, valid_share: float) -> str:
    """Train or valid, by the prompt alone."""
    return "valid" if int(content_id("split", prompt_id)[:8], 16) < valid_share * _HASHED else "train"


class Reader:
    """Pages of labels in the order of their submission."""

    def __init__(self, connection: Connection, reading: Reading) -> None:
        self._connection = connection
        self._share = reading.valid_share
        self._is_told = reading.columns.prompt == _TOLD
        self._labels = _labels(reading)
        self._prompts = select(PROMPT.id, *reading.columns.prompt)
        self._samples = select(SAMPLE.id, *reading.columns.sample)
        self._sides = (
            select(_SIDE.comparison_id, SAMPLE.id, *reading.columns.sample)
            .join_from(TABLES["comparison_answers"], TABLES["samples"])
            .order_by(_SIDE.comparison_id, _SIDE.position)
        )

    def page(self, first: int, last: int) -> list[Labelled]:
        """The labels from number `first` to `last`."""
        rows = self._read(self._labels.where(LABEL.id.between(first, last)))
        prompts = {p.id: self._prompt(p) for p in self._found(self._prompts, PROMPT.id, {r.prompt_id for r in rows})}
        asked = {row.comparison_id for row in rows if row.comparison_id is not None}
        sides: dict[str, list[Any]] = {comparison_id: [] for comparison_id in asked}
        for side in self._found(self._sides, _SIDE.comparison_id, asked):
            sides[side.comparison_id].append(side)
        alone = {row.id: _named(row) for row in rows if row.comparison_id is None}
        wanted = {sample_id for named in alone.values() for sample_id in named}
        samples = {row.id: row for row in self._found(self._samples, SAMPLE.id, wanted)}
        return [
            Labelled(
                row,
                _value(row.value),
                *prompts[row.prompt_id],
                [samples[name] for name in alone[row.id]] if row.comparison_id is None else sides[row.comparison_id],
            )
            for row in rows
        ]

    def _prompt(self, row: Any) -> tuple[Any, Any, Any, str]:
        """(row, messages, tools, split), as far as they were read."""
        split = "" if self._share is None else split_of(row.id, self._share)
        if not self._is_told:
            return row, [], [], split
        conversation = orjson.loads(row.conversation)
        return row, conversation["messages"], conversation["tools"], split

    def _found(self, query: Select[Any], column: Any, ids: set[str]) -> list[Any]:
        wanted = sorted(ids)
        batches = [wanted[start : start + PAGE] for start in range(0, len(wanted), PAGE)]
        return [row for batch in batches for row in self._read(query.where(column.in_(batch)))]

    def _read(self, query: Select[Any]) -> list[Any]:
        """Rows as named tuples, whose attributes cost a tenth of those of SQLAlchemy's rows."""
        result = self._connection.execute(query)
        return list(map(_named_tuple(tuple(result.keys()))._make, result.all()))


@lru_cache(maxsize=16)
def _named_tuple(columns: tuple[str, ...]) -> Any:
    return namedtuple("Columns", columns)


def _labels(reading: Reading) -> Select[Any]:
    columns = (
        LABEL.comparison_id, LABEL.prompt_id, cast(LABEL.value, Text).label("value"), LABEL.id, LABEL.kind,
        LABEL.sample_id, LABEL.rater_id, LABEL.guideline, _purpose.label("purpose"), _RATER.kind.label("rater_kind"),
    )  # fmt: skip
    query = select(*columns, *reading.columns.label).select_from(TABLES["labels"]).order_by(LABEL.id)
    joined = {"comparisons": LABEL.comparison_id, "samples": LABEL.sample_id, "assignments": LABEL.assignment_id}
    for name, own in {**joined, "tasks": LABEL.task_id, "raters": LABEL.rater_id}.items():
        query = query.outerjoin(TABLES[name], TABLES[name].c.id == own)
    filters = reading.filters
    if filters.round_id is not None:
        query = query.where(_round_id == filters.round_id)
    if filters.purpose is not None:
        query = query.where(_purpose == filters.purpose)
    if filters.rater_kinds:
        query = query.where(_RATER.kind.in_(filters.rater_kinds))
    if reading.kinds:
        query = query.where(LABEL.kind.in_(reading.kinds))
    if reading.standing:
        again = func.coalesce(ASSIGNMENT.repeat, False)
        query = query.where(LABEL.undone_at.is_(None), ~again, _purpose != "gold")
    return query


@lru_cache(maxsize=256)
def _short_value(text: str) -> Any:
    return orjson.loads(text)


def _value(text: str) -> Any:
    """Parsed; most comparisons say one of a few things, which are parsed once. Nobody changes it."""
    return _short_value(text) if len(text) < 120 else orjson.loads(text)


def _named(row: Any) -> list[str]:
    """Samples of a label without a comparison: the one that it is about, or a conversation's candidates."""
    if row.sample_id is not None:
        return [row.sample_id]
    turns = orjson.loads(row.value).get("turns", ())
    return list(dict.fromkeys(candidate for turn in turns for candidate in turn["candidates"]))
