"""The native format: one JSON object a line, and all that the store knows about a label.

A line of type "label" holds its prompt, answers, task and assignment. The round, rater or guideline that a label is the
first to name stands on a line of its own before it. The database itself writes the objects, which is several times
faster than to take them apart and encode them here, and copies JSON columns as it holds them; a store filled from an
export therefore gives the same bytes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Text, case, cast, func, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from postgrad.feedback.formats import Labelled, Piece
from postgrad.feedback.pages import ASSIGNMENT, COMPARISON, LABEL, PROMPT, SAMPLE, TABLES, TASK, Columns


class json_text(GenericFunction[str]):
    """A text as JSON."""

    type = Text()
    inherit_cache = True


class json_instant(GenericFunction[str]):
    """A time as JSON, in UTC, to the microsecond."""

    type = Text()
    inherit_cache = True


class filled(GenericFunction[str]):
    """A template with its places filled, at once: a chain of `||` would copy what is there at every link."""

    type = Text()
    inherit_cache = True


@compiles(json_text, "sqlite")
def _sqlite_text(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"json_quote({compiler.process(element.clauses, **kwargs)})"


@compiles(json_text, "postgresql")
def _postgresql_text(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"coalesce(to_json({compiler.process(element.clauses, **kwargs)}::text)::text, 'null')"


@compiles(json_instant, "sqlite")
def _sqlite_instant(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    own = compiler.process(element.clauses, **kwargs)
    return f"coalesce('\"' || replace({own}, ' ', 'T') || '+00:00\"', 'null')"


@compiles(json_instant, "postgresql")
def _postgresql_instant(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    own = compiler.process(element.clauses, **kwargs)
    shape = """'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'"""
    return f"coalesce('\"' || to_char({own} AT TIME ZONE 'UTC', {shape}) || '\"', 'null')"


@compiles(filled, "sqlite")
def _sqlite_filled(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"printf({compiler.process(element.clauses, **kwargs)})"


@compiles(filled, "postgresql")
def _postgresql_filled(element: Any, compiler: SQLCompiler, **kwargs: Any) -> str:
    return f"format({compiler.process(element.clauses, **kwargs)})"


def _plain(column: Any) -> ColumnElement[str]:
    """A number, or JSON as it is stored."""
    return func.coalesce(cast(column, Text), "null")


def _flag(column: Any) -> ColumnElement[str]:
    return case((column.is_(None), "null"), (column, "true"), else_="false")


def _members(**members: ColumnElement[str]) -> ColumnElement[str]:
    template = ",".join(f'"{name}":%s' for name in members)
    return filled(cast(literal(template), Text), *members.values())


def _object(**members: ColumnElement[str]) -> ColumnElement[str]:
    template = ",".join(f'"{name}":%s' for name in members)
    return filled(cast(literal(f"{{{template}}}"), Text), *members.values())


def _or_null(key: Any, written: ColumnElement[str]) -> ColumnElement[str]:
    return case((key.is_(None), "null"), else_=written)


_COMPARISON = _object(
    id=json_text(LABEL.comparison_id),
    round=json_text(COMPARISON.round_id),
    purpose=json_text(COMPARISON.purpose),
    created_at=json_instant(COMPARISON.created_at),
)
_TASK = _object(
    key=json_text(TASK.key),
    round=json_text(TASK.round_id),
    details=_plain(TASK.details),
    gold=_flag(TASK.gold),
    answer=_plain(TASK.answer),
    turn=_plain(TASK.turn),
    overlap=_plain(TASK.overlap),
    created_at=json_instant(TASK.created_at),
)
_ASSIGNMENT = _object(
    id=json_text(LABEL.assignment_id),
    repeat=_flag(ASSIGNMENT.repeat),
    correct=_flag(ASSIGNMENT.correct),
    opened_at=json_instant(ASSIGNMENT.opened_at),
)
_LABEL = _members(
    type=json_text(literal("label", Text())),
    kind=json_text(LABEL.kind),
    key=json_text(LABEL.client_key),
    rater=json_text(LABEL.rater_id),
    rater_kind=json_text(TABLES["raters"].c.kind),
    value=_plain(LABEL.value),
    display_order=json_text(LABEL.display_order),
    rationale=json_text(LABEL.rationale),
    milliseconds=_plain(LABEL.milliseconds),
    guideline=_plain(LABEL.guideline),
    created_at=json_instant(LABEL.created_at),
    undone_at=json_instant(LABEL.undone_at),
    comparison=_or_null(LABEL.comparison_id, _COMPARISON),
    sample=json_text(LABEL.sample_id),
    task=_or_null(LABEL.task_id, _TASK),
    assignment=_or_null(LABEL.assignment_id, _ASSIGNMENT),
)
_PROMPT = _object(
    id=json_text(PROMPT.id),
    conversation=_plain(PROMPT.conversation),
    target=json_text(PROMPT.target),
    details=_plain(PROMPT.details),
    created_at=json_instant(PROMPT.created_at),
)
_SAMPLE = _object(
    id=json_text(SAMPLE.id),
    prompt=json_text(SAMPLE.prompt_id),
    round=json_text(SAMPLE.round_id),
    stage=json_text(SAMPLE.stage),
    checkpoint=json_text(SAMPLE.checkpoint),
    policy_version=_plain(SAMPLE.policy_version),
    params=_plain(SAMPLE.params),
    seed=json_text(SAMPLE.seed),
    text=json_text(SAMPLE.text),
    token_ids=_plain(SAMPLE.token_ids),
    finish_reason=json_text(SAMPLE.finish_reason),
    created_at=json_instant(SAMPLE.created_at),
)
WIDE = Columns(
    (_LABEL.label("line"), LABEL.weight, COMPARISON.round_id.label("asked_in"), TASK.round_id.label("task_round")),
    (_PROMPT.label("line"),),
    (_SAMPLE.label("line"), SAMPLE.round_id),
)


class Native:
    """Lines of labels, in order; remembers which rounds, raters and guidelines it has told."""

    def __init__(self, connection: Connection) -> None:
        rounds, raters, guidelines = (TABLES[name].c for name in ("rounds", "raters", "guidelines"))
        params = cast(raters.params, Text).label("params")
        read = connection.execute
        self._rounds = {r.id: _line("round", r) for r in read(select(rounds.id, rounds.recipe, rounds.created_at))}
        self._raters = {
            r.id: _line("rater", r, params=orjson.Fragment(r.params))
            for r in read(select(raters.id, raters.kind, params, raters.created_at))
        }
        columns = (guidelines.version, guidelines.text, guidelines.author_id, guidelines.created_at)
        self._guidelines = {g.version: (g.author_id, _line("guideline", g)) for g in read(select(*columns))}

    def pieces(self, page: Sequence[Labelled]) -> Iterator[Piece]:
        if not self._has_news(page):
            yield Piece(b"".join([_written(one) for one in page]), len(page))
            return
        for one in page:
            yield from (Piece(line, 1, is_news=True) for line in self._news(one))
            yield Piece(_written(one), 1)

    def _has_news(self, page: Sequence[Labelled]) -> object:
        """Whether a page names what was not told before; almost none does."""
        return (
            (self._raters and not self._raters.keys().isdisjoint([one.label.rater_id for one in page]))
            or (self._guidelines and not self._guidelines.keys().isdisjoint([one.label.guideline for one in page]))
            or (self._rounds and not self._rounds.keys().isdisjoint([name for one in page for name in _rounds(one)]))
        )

    def _news(self, one: Labelled) -> Iterator[bytes]:
        label = one.label
        yield from (self._rounds.pop(round_id) for round_id in _rounds(one) if round_id in self._rounds)
        author, guideline = self._guidelines.pop(label.guideline, (None, None))
        yield from (self._raters.pop(rater) for rater in (label.rater_id, author) if rater in self._raters)
        if guideline is not None:
            yield guideline


def _rounds(one: Labelled) -> list[str | None]:
    return [one.label.asked_in, one.label.task_round, *(sample.round_id for sample in one.samples)]


def _written(one: Labelled) -> bytes:
    label = one.label
    answers = ",".join([sample.line for sample in one.samples])
    return f'{{{label.line},"weight":{label.weight!r},"prompt":{one.prompt.line},"answers":[{answers}]}}\n'.encode()


def _line(kind: str, row: Any, **other: Any) -> bytes:
    return orjson.dumps({"type": kind, **row._mapping, **other}, option=orjson.OPT_APPEND_NEWLINE)
