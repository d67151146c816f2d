"""Labels for those who look at them: a page of a list, or one with all that is known of it.

Who may `read` sees everybody's labels, others their own alone. Answers keep their blinding where it still matters:
a labeler never learns which model wrote what, nor which questions are gold or repeats; and what others said about the
question in a reviewer's hands is kept from them until they have answered it. Names of raters are for who may see their
quality.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Select, Text, and_, cast, func, literal, or_, select, true
from sqlalchemy.orm import Session

from postgrad.db.tables import (
    AccountRow,
    AssignmentRow,
    ComparisonAnswerRow,
    ComparisonRow,
    GuidelineRow,
    LabelRow,
    PromptRow,
    RoundRow,
    SampleRow,
    TaskRow,
)
from postgrad.errors import DataError
from postgrad.feedback.newest import newest
from postgrad.feedback.people import Account
from postgrad.feedback.store import LabelStore
from postgrad.feedback.turns import TALKED
from postgrad.feedback.values import Kind
from postgrad.feedback.wording import in_words

PAGE: Final = 50
MAX_SEARCHED: Final = 200
"""Characters of a search text."""
SNIPPET: Final = 140
Only = Literal["work", "gold", "repeat"]
Standing = Literal["standing", "undone"]

_BATCH: Final = 400

_round = func.coalesce(TaskRow.round_id, ComparisonRow.round_id, SampleRow.round_id)
_gold = func.coalesce(AssignmentRow.gold, ComparisonRow.purpose == "gold", False)
_repeat = func.coalesce(AssignmentRow.repeat, False)


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """What a list of labels holds; an empty field holds back nothing."""

    text: str = ""
    """In the prompt, an answer, what was written or a remark."""
    kind: Kind | None = None
    rater: str = ""
    """A name or a rater's id."""
    round_id: str = ""
    task_id: int | None = None
    only: Only | None = None
    guideline: int | None = None
    standing: Standing | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A label in a list."""

    id: int
    kind: Kind
    round_id: str
    rater: str
    """A name where the reader may see it, else the rater's id."""
    created_at: datetime
    guideline: int | None
    mark: str
    """gold, repeat or nothing; nothing too where the reader may not know."""
    undone: bool
    prompt: str
    """How its last message begins."""
    said: str


@dataclass(frozen=True, slots=True)
class Choices:
    """What a filter can be set to."""

    rounds: tuple[str, ...]
    guidelines: tuple[int, ...]
    raters: tuple[str, ...]
    """Names, for who may see them."""


def browse(
    store: LabelStore, filters: LabelFilter, *, by: Account, before: int | None = None, limit: int = PAGE
) -> tuple[list[Line], int | None]:
    """A page of labels, newest first, and the number below which the next one begins.

    A search that finds little stops after two seconds, perhaps with nothing, and says where to go on. Letters beyond
    a to z are found in the case in which they were typed.

    Raises:
        AccessError: no permission to see any label.
        DataError: an unknown person, or a text that is too long.
    """
    with store.reading() as session:
        query = _filtered(session, visible(session, by), filters, by)
        needle = filters.text.strip()
        ids, older = newest(
            session, query, LabelRow.id, before=before, limit=limit,
            check=(lambda found: _holding(session, found, needle)) if needle else (lambda found: found),
        )  # fmt: skip
        return lines(session, ids, by), older


def choices(store: LabelStore, *, by: Account) -> Choices:
    with store.reading() as session:
        names = select(AccountRow.name).where(AccountRow.state != "invited").order_by(AccountRow.name)
        return Choices(
            rounds=tuple(session.scalars(select(RoundRow.id).order_by(RoundRow.created_at.desc(), RoundRow.id))),
            guidelines=tuple(session.scalars(select(GuidelineRow.version).order_by(GuidelineRow.version.desc()))),
            raters=tuple(session.scalars(names)) if sees_names(by) else (),
        )


def sees_all(by: Account) -> bool:
    return "read" in by.permissions


def sees_names(by: Account) -> bool:
    return "see_quality" in by.permissions


def visible(session: Session, by: Account) -> Any:
    """Which labels an account may see, as a condition.

    Raises:
        AccessError: none.
    """
    mine = LabelRow.rater_id == by.id
    if not sees_all(by):
        by.require("label")
        return mine
    if "manage_tasks" in by.permissions:
        return true()
    held = select(TaskRow.prompt_id).join(AssignmentRow, AssignmentRow.task_id == TaskRow.id)
    in_hand = session.scalar(held.where(AssignmentRow.rater_id == by.id, AssignmentRow.state == "leased"))
    return true() if in_hand is None else or_(mine, LabelRow.prompt_id != in_hand)


def names_of(session: Session, rater_ids: set[str], by: Account) -> Mapping[str, str]:
    """What the reader calls raters; those without an account go by their id."""
    if not sees_names(by):
        return {rater_id: by.name if rater_id == by.id else rater_id for rater_id in rater_ids}
    accounts = session.execute(select(AccountRow.rater_id, AccountRow.name).where(AccountRow.rater_id.in_(rater_ids)))
    return {rater_id: rater_id for rater_id in rater_ids} | {row.rater_id: row.name for row in accounts}


def order_of(display_order: str) -> tuple[int, ...]:
    return tuple(int(i) for i in display_order.split(",")) if display_order else ()


def joined(columns: Select[Any]) -> Select[Any]:
    """Labels with what they may be about and came from."""
    return (
        columns.select_from(LabelRow)
        .outerjoin(TaskRow, TaskRow.id == LabelRow.task_id)
        .outerjoin(AssignmentRow, AssignmentRow.id == LabelRow.assignment_id)
        .outerjoin(ComparisonRow, ComparisonRow.id == LabelRow.comparison_id)
        .outerjoin(SampleRow, SampleRow.id == LabelRow.sample_id)
    )


def mark_of(gold: bool, repeat: bool, by: Account) -> str:
    return ("gold" if gold else "repeat" if repeat else "") if sees_all(by) else ""


def _filtered(session: Session, seen: Any, filters: LabelFilter, by: Account) -> Select[Any]:
    conditions: list[Any] = [seen]
    if filters.kind is not None:
        conditions.append(LabelRow.kind == filters.kind)
    if filters.rater.strip():
        conditions.append(LabelRow.rater_id == _rater_id(session, filters.rater.strip(), by))
    if filters.round_id:
        conditions.append(_round == filters.round_id)
    if filters.task_id is not None:
        conditions.append(LabelRow.task_id == filters.task_id)
    if filters.only is not None:
        by.require("read")
        conditions.append({"gold": _gold, "repeat": _repeat, "work": and_(~_gold, ~_repeat)}[filters.only])
    if filters.guideline is not None:
        conditions.append(LabelRow.guideline == filters.guideline)
    if filters.standing is not None:
        undone = LabelRow.undone_at.is_not(None)
        conditions.append(undone if filters.standing == "undone" else ~undone)
    if filters.since is not None:
        conditions.append(LabelRow.created_at >= filters.since)
    if filters.until is not None:
        conditions.append(LabelRow.created_at < filters.until)
    if filters.text.strip():
        conditions.append(_mentioning(session, filters.text.strip()))
    needs_joins = bool(filters.round_id) or filters.only is not None
    query = joined(select(LabelRow.id)) if needs_joins else select(LabelRow.id)
    return query.where(*conditions)


def _rater_id(session: Session, name: str, by: Account) -> str:
    if not sees_names(by):
        return name
    known = session.scalar(select(AccountRow.rater_id).where(AccountRow.name == name))
    return name if known is None else known


def _mentioning(session: Session, needle: str) -> Any:
    """Labels whose rows hold the text somewhere, names of JSON fields included: more than are wanted, never fewer."""
    if len(needle) > MAX_SEARCHED:
        raise DataError(f"search for at most {MAX_SEARCHED} characters, not {len(needle)}")
    plain, stored = (_pattern(text) for text in (needle, json.dumps(needle)[1:-1]))
    like = "like" if session.get_bind().dialect.name == "sqlite" else "ilike"

    def holds(column: Any, pattern: str) -> Any:
        return getattr(column, like)(pattern, escape="!")

    def any_of(*conditions: Any) -> Any:
        # No EXISTS: PostgreSQL would look through all texts there are, to hash those that match.
        return select(literal(1)).where(*conditions).limit(1).scalar_subquery().is_not(None)

    one, side, candidate = (SampleRow.__table__.alias() for _ in range(3))
    return or_(
        holds(LabelRow.rationale, plain),
        holds(cast(LabelRow.value, Text), stored),
        any_of(PromptRow.id == LabelRow.prompt_id, holds(cast(PromptRow.conversation, Text), stored)),
        any_of(one.c.id == LabelRow.sample_id, holds(one.c.text, plain)),
        any_of(
            ComparisonAnswerRow.comparison_id == LabelRow.comparison_id,
            side.c.id == ComparisonAnswerRow.sample_id,
            holds(side.c.text, plain),
        ),
        any_of(LabelRow.kind.in_(TALKED), candidate.c.prompt_id == LabelRow.prompt_id, holds(candidate.c.text, plain)),
    )


def _pattern(text: str) -> str:
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return f"%{text}%"


def _holding(session: Session, ids: Sequence[int], needle: str) -> list[int]:
    """Those of the labels in whose texts it truly stands."""
    wanted = needle.casefold()
    rows = session.execute(select(LabelRow, PromptRow.conversation).join(PromptRow).where(LabelRow.id.in_(ids))).all()
    texts: dict[int, list[str]] = {}
    for label, conversation in rows:
        said = [message["content"] for message in conversation["messages"]]
        texts[label.id] = [*said, label.rationale, *_written(label.value)]
    sides = select(LabelRow.id, SampleRow.text).join(
        ComparisonAnswerRow, ComparisonAnswerRow.comparison_id == LabelRow.comparison_id
    ).join(SampleRow, SampleRow.id == ComparisonAnswerRow.sample_id)  # fmt: skip
    alone = select(LabelRow.id, SampleRow.text).join(SampleRow, SampleRow.id == LabelRow.sample_id)
    for query in (sides, alone):
        for label_id, text in session.execute(query.where(LabelRow.id.in_(ids))):
            texts[label_id].append(text)
    for label_id, text in _candidates(session, [label for label, _ in rows]):
        texts[label_id].append(text)
    return [i for i in ids if any(wanted in text.casefold() for text in texts[i])]


def _candidates(session: Session, labels: Sequence[LabelRow]) -> Iterator[tuple[int, str]]:
    """(label, text) of every answer that somebody could choose in a conversation."""
    named = [
        (candidate, label.id)
        for label in labels
        for turn in label.value.get("turns", ())
        for candidate in turn["candidates"]
    ]
    for start in range(0, len(named), _BATCH):
        batch = named[start : start + _BATCH]
        query = select(SampleRow.id, SampleRow.text).where(SampleRow.id.in_({sample_id for sample_id, _ in batch}))
        found = {row.id: row.text for row in session.execute(query)}
        yield from ((label_id, found[sample_id]) for sample_id, label_id in batch)


def _written(value: Mapping[str, Any]) -> list[str]:
    """What a person wrote in an answer."""
    return [
        value.get("text", ""),
        value.get("cannot_judge", ""),
        *(turn["message"] for turn in value.get("turns", ())),
        *value.get("flags", ()),
        *value.get("harms", ()),
    ]


def lines(session: Session, ids: Sequence[int], by: Account) -> list[Line]:
    """Of so many labels, newest first."""
    columns = (LabelRow, PromptRow.conversation, TaskRow.details, _round.label("round_id"))
    query = joined(select(*columns, _gold.label("gold"), _repeat.label("repeat"))).join(
        PromptRow, PromptRow.id == LabelRow.prompt_id
    )
    rows = session.execute(query.where(LabelRow.id.in_(ids)).order_by(LabelRow.id.desc())).all()
    names = names_of(session, {row.LabelRow.rater_id for row in rows}, by)
    return [
        Line(
            id=row.LabelRow.id,
            kind=row.LabelRow.kind,
            round_id=row.round_id or "",
            rater=names[row.LabelRow.rater_id],
            created_at=row.LabelRow.created_at,
            guideline=row.LabelRow.guideline,
            mark=mark_of(row.gold, row.repeat, by),
            undone=row.LabelRow.undone_at is not None,
            prompt=snippet(row.conversation, row.details),
            said=in_words(row.LabelRow.kind, row.LabelRow.value, order_of(row.LabelRow.display_order)),
        )
        for row in rows
    ]


def snippet(conversation: Mapping[str, Any], details: Mapping[str, Any] | None) -> str:
    """How the last message of a stored prompt begins; where nobody asked yet, what the task says to do."""
    messages: Sequence[Mapping[str, Any]] = conversation["messages"]
    role, content = (messages[-1]["role"], messages[-1]["content"]) if messages else ("system", "")
    told = (details or {}).get("instruction") if role == "system" else None
    text = " ".join(str(told or content)[: 4 * SNIPPET].split())
    return text if len(text) <= SNIPPET else f"{text[:SNIPPET]}..."
