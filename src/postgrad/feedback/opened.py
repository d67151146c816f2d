"""One label with its question, its answers, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, ComparisonAnswerRow, GuidelineRow, LabelRow, PromptRow, SampleRow, TaskRow
from postgrad.errors import DataError
from postgrad.feedback import browse, codec
from postgrad.feedback.browse import Line
from postgrad.feedback.people import Account
from postgrad.feedback.store import LabelStore
from postgrad.feedback.wording import in_words, letters
from postgrad.types import Conversation


@dataclass(frozen=True, slots=True)
class Source:
    """Which model gave an answer, and how it was asked."""

    stage: str
    checkpoint: str
    policy_version: int
    params: Mapping[str, Any]
    seed: str
    finish_reason: str
    sample_id: str


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    name: str
    text: str
    verdict: str
    """What the label says of it: chosen, tied, rank 2; nothing where it says nothing."""
    source: Source | None
    """None where the reader may not know."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a person said to the policy, and the candidates for its answer."""

    message: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True)
class Happening:
    at: datetime
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class Opened:
    line: Line
    prompt: Conversation
    answers: tuple[ShownAnswer, ...]
    """As this rater saw them, from left to right."""
    turns: tuple[Turn, ...]
    """Of a conversation; empty in every other kind."""
    value: Mapping[str, Any]
    """As it is stored: `said` of the line in full."""
    rationale: str
    seconds: float | None
    task_id: int | None
    details: Mapping[str, Any]
    """Of the task: axes, steps."""
    known: str
    """The answer to a gold question in words, for who manages tasks."""
    correct: bool | None
    guideline: str
    """The text of the version that the label names."""
    history: tuple[Happening, ...]
    """Of its assignment, oldest first."""


def open_label(store: LabelStore, label_id: int, *, by: Account) -> Opened:
    """Everything about a label that `by` may know.

    Raises:
        AccessError: no permission to see any label.
        DataError: there is no such label, or none that this account may see now.
    """
    with store.reading() as session:
        seen = browse.visible(session, by)
        label = session.scalars(select(LabelRow).where(LabelRow.id == label_id, seen)).first()
        if label is None:
            raise DataError(
                f"there is no label {label_id} that you may see now; if it is about the question that you hold, "
                "answer or skip that first"
            )
        (line,) = browse.lines(session, [label_id], by)
        task = session.get(TaskRow, label.task_id) if label.task_id is not None else None
        assignment = session.get(AssignmentRow, label.assignment_id) if label.assignment_id is not None else None
        guideline = session.get(GuidelineRow, label.guideline) if label.guideline is not None else None
        manages = "manage_tasks" in by.permissions
        order = browse.order_of(label.display_order)
        knows = manages and task is not None and task.answer is not None
        return Opened(
            line=line,
            prompt=codec.conversation_from_json(session.get_one(PromptRow, label.prompt_id).conversation),
            answers=_answers(session, label, by),
            turns=_turns(session, label, by),
            value=label.value,
            rationale=label.rationale,
            seconds=None if label.milliseconds is None else label.milliseconds / 1000,
            task_id=label.task_id,
            details={} if task is None else task.details,
            known=in_words(label.kind, task.answer, order) if knows and task is not None and task.answer else "",
            correct=assignment.correct if manages and assignment is not None else None,
            guideline="" if guideline is None else guideline.text,
            history=_history(session, label, assignment, by),
        )


def _answers(session: Session, label: LabelRow, by: Account) -> tuple[ShownAnswer, ...]:
    if label.sample_id is not None:
        return (_shown(session.get_one(SampleRow, label.sample_id), "Answer", "", by),)
    if label.comparison_id is None:
        return ()
    query = select(SampleRow).join(ComparisonAnswerRow, ComparisonAnswerRow.sample_id == SampleRow.id)
    query = query.where(ComparisonAnswerRow.comparison_id == label.comparison_id)
    samples = session.scalars(query.order_by(ComparisonAnswerRow.position)).all()
    order = browse.order_of(label.display_order) or tuple(range(len(samples)))
    tiers = label.value.get("tiers", [])
    return tuple(
        _shown(samples[i], name, _verdict(tiers, i), by) for name, i in zip(letters(len(order)), order, strict=True)
    )


def _verdict(tiers: list[list[int]], answer: int) -> str:
    rank = next((rank for rank, tier in enumerate(tiers, start=1) if answer in tier), 0)
    if len(tiers) == 1:
        return "tied"
    if len(tiers) == 2 and len(tiers[0]) == len(tiers[1]) == 1:
        return "chosen" if rank == 1 else ""
    return f"rank {rank}" if rank else ""


def _turns(session: Session, label: LabelRow, by: Account) -> tuple[Turn, ...]:
    turns = label.value.get("turns", ())
    wanted = {candidate for turn in turns for candidate in turn["candidates"]}
    samples = {row.id: row for row in session.scalars(select(SampleRow).where(SampleRow.id.in_(wanted)))}
    return tuple(
        Turn(
            turn["message"],
            tuple(
                _shown(samples[turn["candidates"][i]], name, "chosen" if i == turn["chosen"] else "", by)
                for name, i in zip(letters(len(turn["order"])), turn["order"], strict=True)
            ),
        )
        for turn in turns
    )


def _shown(row: SampleRow, name: str, verdict: str, by: Account) -> ShownAnswer:
    source = Source(
        row.stage, row.checkpoint, row.policy_version, row.params, row.seed, row.finish_reason, row.id
    )  # fmt: skip
    return ShownAnswer(name, row.text, verdict, source if browse.sees_all(by) else None)


def _history(session: Session, label: LabelRow, assignment: AssignmentRow | None, by: Account) -> tuple[Happening, ...]:
    """Told by the rows themselves; the audit holds the same, in a chain."""
    labels = [label]
    if assignment is not None:
        own = LabelRow.task_id == label.task_id, LabelRow.assignment_id == assignment.id
        labels = list(session.scalars(select(LabelRow).where(*own)))
    who = browse.names_of(session, {label.rater_id}, by)[label.rater_id]
    found = [Happening(row.created_at, who, f"answered: label {row.id}") for row in labels]
    found += [Happening(row.undone_at, who, f"label {row.id} taken back") for row in labels if row.undone_at]
    if assignment is not None:
        found.append(Happening(assignment.opened_at, who, "was given the task"))
        if assignment.closed_at is not None and assignment.state != "submitted":
            found.append(Happening(assignment.closed_at, who, f"the task was {assignment.state}"))
    return tuple(sorted(found, key=lambda happening: happening.at))
