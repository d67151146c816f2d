"""The turns of a conversation under way, as its assignment's draft keeps them under "turns".

They are the server's own: pages and clients see texts by their place on the screen, and what they send never
reaches them. A turn is an `Exchange` whose `chosen` is None until somebody goes on with a candidate, and `ask` names
the request that its candidates answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, ComparisonAnswerRow, LabelRow, SampleRow, TaskRow
from postgrad.errors import DataError, StaleError
from postgrad.feedback.codec import opening
from postgrad.feedback.values import Kind
from postgrad.types import Conversation, Message

TALKED: Final[frozenset[Kind]] = frozenset({"converse", "redteam"})
"""Kinds of task in which a person talks with a policy."""
STAGE: Final = "live"
"""Of the samples that are a conversation's candidates."""
MIN_CANDIDATES: Final = 2
_EXCHANGE: Final = ("message", "candidates", "order", "chosen", "strength")

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """A turn as its person may see it."""

    message: str
    answers: tuple[str, ...]
    """As displayed; none while there are too few to choose from."""
    chosen: int | None
    """Place on the screen of the one that went on."""
    strength: int | None


def turns_of(draft: Mapping[str, Any] | None) -> list[Turn]:
    """Copies, because the mapper only notices a draft that is replaced."""
    return [dict(turn) for turn in (draft or {}).get("turns", ())]


def without_turns(draft: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if draft is None else {key: value for key, value in draft.items() if key != "turns"}


def is_open(turn: Turn) -> bool:
    return turn["chosen"] is None


def can_choose(turn: Turn) -> bool:
    return len(turn["candidates"]) >= MIN_CANDIDATES


def shown(session: Session, turns: Sequence[Turn]) -> tuple[ShownTurn, ...]:
    wanted = {sample_id for turn in turns for sample_id in turn["candidates"]}
    found = session.execute(select(SampleRow.id, SampleRow.text).where(SampleRow.id.in_(wanted)))
    texts = {row.id: row.text for row in found}
    return tuple(
        ShownTurn(
            turn["message"],
            tuple(texts[turn["candidates"][i]] for i in turn["order"]) if can_choose(turn) or not is_open(turn) else (),
            None if is_open(turn) else turn["order"].index(turn["chosen"]),
            turn["strength"],
        )
        for turn in turns
    )


def conversation(session: Session, prompt: Conversation, turns: Sequence[Turn]) -> Conversation:
    """What the policies read before they answer the last of the turns."""
    start, _ = opening(prompt)
    messages = list(start.messages)
    for turn in turns:
        messages.append(Message("user", turn["message"]))
        if not is_open(turn):
            sample = session.get_one(SampleRow, turn["candidates"][turn["chosen"]])
            messages.append(Message("assistant", sample.text))
    return Conversation(tuple(messages), start.tools)


def whole(value: Mapping[str, Any], turns: Sequence[Turn]) -> dict[str, Any]:
    """What is submitted, with the turns that the server keeps in place of the number of them.

    A last message that too few answered is left out.

    Raises:
        DataError: no number, or answers that wait for a choice.
        StaleError: another number of turns than there are.
    """
    given = value.get("turns")
    if not isinstance(given, int) or isinstance(given, bool):
        raise DataError("'turns' is the number of turns that you saw; what was said in them is here already")
    if turns and is_open(turns[-1]) and can_choose(turns[-1]):
        raise DataError("choose one of the last answers first")
    said = [turn for turn in turns if not is_open(turn)]
    if given != len(said):
        raise StaleError(f"this conversation has {len(said)} turns, not {given}; reload to see them")
    return {**value, "turns": [{key: turn[key] for key in _EXCHANGE} for turn in said]}


def forget(session: Session, sample_ids: Collection[str]) -> None:
    """Delete candidates that nothing names any more."""
    named = (
        exists().where(ComparisonAnswerRow.sample_id == SampleRow.id),
        exists().where(LabelRow.sample_id == SampleRow.id),
        exists().where(TaskRow.sample_id == SampleRow.id),
    )
    ours = SampleRow.id.in_(sample_ids), SampleRow.stage == STAGE
    session.execute(delete(SampleRow).where(*ours, *(~by for by in named)))


def forget_conversations(session: Session, rater_id: str) -> None:
    """Delete what policies answered this person: it may repeat what they said."""
    drafts = select(AssignmentRow.draft).join(TaskRow, TaskRow.id == AssignmentRow.task_id)
    drafts = drafts.where(AssignmentRow.rater_id == rater_id, TaskRow.kind.in_(TALKED))
    labels = select(LabelRow.value).where(LabelRow.rater_id == rater_id, LabelRow.kind.in_(TALKED))
    for held in [*session.scalars(drafts), *session.scalars(labels)]:
        forget(session, [sample_id for turn in turns_of(held) for sample_id in turn["candidates"]])
