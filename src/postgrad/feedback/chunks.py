"""A page of labels as the bytes that a file takes, in this process or in another."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import Connection

from postgrad.feedback.formats import FORMATS, Format, Labelled, Piece, Row, defused
from postgrad.feedback.native import WIDE, Native
from postgrad.feedback.pages import TABLE, TRAINING, Filters, Reader, Reading

NATIVE: Final = "native"
_AS_NATIVE: Final = Format(lambda one: iter(()), (), None, ".jsonl", everything=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process must know to write its part of an export."""

    format_name: str
    filters: Filters
    valid_share: float | None
    """None where nobody wants to know the split."""
    held_out: bool
    """Rows of the split "valid" go into a second file."""


class Chunk(NamedTuple):
    """What a page of labels comes to."""

    pieces: Sequence[Sequence[Piece]]
    """Of each file."""
    counts: Counter[tuple[str, str, int | None]]
    """Labels by kind, kind of rater and guideline."""
    without_rows: int


def format_of(name: str) -> Format:
    return FORMATS.get(name, _AS_NATIVE)


class Chunker:
    """Reads and formats ranges of labels, which must ascend."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        form = format_of(plan.format_name)
        is_native = plan.format_name == NATIVE
        columns = WIDE if is_native else TRAINING if form.splits else TABLE
        reading = Reading(plan.filters, form.kinds, not form.everything, columns, plan.valid_share)
        self._reader = Reader(connection, reading)
        self._native = Native(connection) if is_native else None
        self._form = form
        self._held_out = plan.held_out

    def chunk(self, first: int, last: int) -> Chunk:
        """The labels from number `first` to `last`."""
        page = self._reader.page(first, last)
        counts = Counter((one.label.kind, one.label.rater_kind, one.label.guideline) for one in page)
        if self._native is not None:
            return Chunk([list(self._native.pieces(page))], counts, 0)
        rows = [(one, list(self._form.rows(one))) for one in page]
        parts = [rows]
        if self._held_out:
            parts = [[pair for pair in rows if (pair[0].split == "valid") == held] for held in (False, True)]
        return Chunk([self._pieces(part) for part in parts], counts, sum(not own for _, own in rows))

    def _pieces(self, part: Sequence[tuple[Labelled, Sequence[Row]]]) -> list[Piece]:
        rows = [row for _, own in part for row in own]
        return [Piece(_ENCODED[self._form.suffix](rows), len(rows))] if rows else []


def _json_lines(rows: Sequence[Row]) -> bytes:
    return b"".join([orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows])


def csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


_ENCODED: Final[Mapping[str, Callable[[Sequence[Row]], Any]]] = {
    ".jsonl": _json_lines,
    ".csv": lambda rows: csv_lines([[defused(cell) for cell in row.values()] for row in rows]),
    ".parquet": lambda rows: rows,
}
