"""The native format: one JSON object a line, and all that the store knows about a label.

A line of type "label" holds its prompt, answers, task and assignment. The round, rater or guideline that a label is the
first to name stands on a line of its own before it. The database itself writes the objects, which is several times
faster than to take them apart and encode them here, and copies JSON columns as it holds them; a store filled from an
export therefore gives the same bytes again.
"""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Text, case, cast, func, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from postgrad.feedback.formats import Labelled
from postgrad.feedback.pages import ASSIGNMENT, COMPARISON, LABEL, PROMPT, SAMPLE, TABLES, TASK, Columns


class json_text(GenericFunction[str]):
    """A text as JSON."""

    type = Text()
    inherit_cache = True


class json_instant(GenericFunction[str]):
    """A time as JSON, in UTC, to the microsecond."""

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


def _plain(column: Any) -> ColumnElement[str]:
    """A number, or JSON as it is stored."""
    return func.coalesce(cast(column, Text), "null")


def _flag(column: Any) -> ColumnElement[str]:
    return case((column.is_(None), "null"), (column, "true"), else_="false")


def _members(**members: ColumnElement[str]) -> ColumnElement[str]:
    written: ColumnElement[str] = literal("", Text())
    for i, (name, value) in enumerate(members.items()):
        written = written + literal(f'{"," if i else ""}"{name}":', Text()) + value
    return written


def _object(**members: ColumnElement[str]) -> ColumnElement[str]:
    return literal("{", Text()) + _members(**members) + literal("}", Text())


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
    """Lines of labels, in order; remembers which rounds, raters and guidelines were told already."""

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

    def lines(self, one: Labelled) -> list[bytes]:
        label = one.label
        lines: list[bytes] = []
        for round_id in (label.asked_in, label.task_round, *(sample.round_id for sample in one.samples)):
            if round_id in self._rounds:
                lines.append(self._rounds.pop(round_id))
        raters = [label.rater_id]
        guideline = self._guidelines.pop(label.guideline, None)
        if guideline is not None:
            raters.append(guideline[0])
        lines += [self._raters.pop(rater_id) for rater_id in dict.fromkeys(raters) if rater_id in self._raters]
        if guideline is not None:
            lines.append(guideline[1])
        answers = ",".join([sample.line for sample in one.samples])
        line = f'{{{label.line},"weight":{label.weight!r},"prompt":{one.prompt.line},"answers":[{answers}]}}\n'
        lines.append(line.encode())
        return lines


def _line(kind: str, row: Any, **other: Any) -> bytes:
    return orjson.dumps({"type": kind, **row._mapping, **other}, option=orjson.OPT_APPEND_NEWLINE)
