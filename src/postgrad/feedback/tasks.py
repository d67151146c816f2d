"""What the queue takes and gives: tasks as they are added, assignments as a person sees them, receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from postgrad.db.tables import ComparisonAnswerRow, ComparisonRow, PromptRow, SampleRow
from postgrad.errors import DataError, StoreError
from postgrad.feedback import codec
from postgrad.feedback.records import content_id
from postgrad.feedback.turns import ShownTurn
from postgrad.feedback.values import ABOUT_ONE, BETWEEN, CHECKABLE, Kind, check_value
from postgrad.types import Conversation


@dataclass(frozen=True, slots=True)
class NewTask:
    """A question for the queue.

    `subject` names a comparison (compare, rank, adjudicate), a sample (rate, edit, review) or a prompt (write,
    converse, redteam).
    """

    kind: Kind
    subject: str
    details: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any] | None = None
    """The known one; makes this a gold task, of one of the kinds in `CHECKABLE`."""
    priority: int = 0
    """Higher ones are asked first."""
    overlap: int = 1
    """Different people who are to answer."""

    @property
    def key(self) -> str:
        return content_id("task", self.kind, self.subject, dict(self.details), self.answer is not None)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one of those who disagreed said, without a name."""

    said: str
    """In words; A is what stands first on the screen of whoever reads it."""
    remark: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """A task in one person's hands, and nothing that they may not know before they have answered."""

    id: str
    task_id: int
    kind: Kind
    prompt: Conversation
    answers: tuple[str, ...]
    """As displayed: `order[i]` is the answer index of the i-th."""
    order: tuple[int, ...]
    details: Mapping[str, Any]
    lease_until: datetime
    draft: Mapping[str, Any] | None
    draft_version: int
    votes: tuple[Vote, ...] = ()
    """Of an adjudication: what the others said."""
    turns: tuple[ShownTurn, ...] = ()
    """What was said so far, where the task is to talk."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Says that a label is stored, and under which number."""

    label_id: int
    assignment_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Nothing:
    """Why there is no task."""

    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Tasks of one kind in one state, gold apart."""

    kind: str
    state: str
    tasks: int
    wanted: int
    """Answers that they ask for in all."""
    done: int
    leased: int


def coverage(comparison_ids: Sequence[str], *, overlap: int, share: float, priority: int = 0) -> list[NewTask]:
    """Comparisons as tasks: this share of them for `overlap` people, chosen by hash, the others for one."""
    return [
        NewTask(
            "compare",
            comparison_id,
            overlap=overlap if int(content_id("coverage", comparison_id), 16) < share * 16**24 else 1,
            priority=priority,
        )
        for comparison_id in comparison_ids
    ]


def task_rows(session: Session, tasks: Sequence[NewTask], round_id: str) -> list[dict[str, Any]]:
    """Columns of new tasks, after checking that what they ask about is stored.

    Raises:
        StoreError: a subject that the store does not hold.
        DataError: a known answer that is none, or an overlap of nobody.
    """
    prompts: dict[tuple[str, str], tuple[str, int, str]] = {}
    for name in _SUBJECTS:
        wanted = [task.subject for task in tasks if _subject(task.kind) == name]
        for start in range(0, len(wanted), _BATCH):
            for row in session.execute(_SUBJECTS[name].where(_IDS[name].in_(wanted[start : start + _BATCH]))):
                prompts[name, row[0]] = row[1], row[2], row[3]
    return [_row(task, prompts.get((_subject(task.kind), task.subject)), round_id) for task in tasks]


def _row(task: NewTask, found: tuple[str, int, str] | None, round_id: str) -> dict[str, Any]:
    name = _subject(task.kind)
    if found is None:
        raise StoreError(f"a {task.kind} task names the {name} {task.subject!r}, which is not stored")
    prompt_id, num_answers, purpose = found
    if task.overlap < 1:
        raise DataError(f"task {task.subject!r}: overlap {task.overlap} asks nobody")
    gold = task.answer is not None
    if gold and task.kind not in CHECKABLE:
        raise DataError(
            f"gold task {task.subject!r}: many answers to a task of kind {task.kind} are right, so that none is known; "
            f"make gold of {', '.join(CHECKABLE)}"
        )
    if gold and name == "comparison" and purpose != "gold":
        raise DataError(f"gold task {task.subject!r}: its comparison is for {purpose!r}, not 'gold'")
    answer = check_value(task.kind, task.answer, num_answers=num_answers, details=task.details) if gold else None
    return {
        "key": task.key,
        "kind": task.kind,
        "round_id": round_id,
        "prompt_id": prompt_id,
        "comparison_id": task.subject if name == "comparison" else None,
        "sample_id": task.subject if name == "sample" else None,
        "details": codec.plain(task.details),
        "gold": gold,
        "answer": answer,
        "turn": -task.priority,
        "overlap": task.overlap,
        "free": 0 if gold else task.overlap,
        "done": 0,
        "state": "open",
    }


def _subject(kind: Kind) -> str:
    return "comparison" if kind in BETWEEN else "sample" if kind in ABOUT_ONE else "prompt"


_BATCH = 400
_SIDES = select(func.count()).where(ComparisonAnswerRow.comparison_id == ComparisonRow.id).scalar_subquery()
_IDS: Mapping[str, Any] = {"comparison": ComparisonRow.id, "sample": SampleRow.id, "prompt": PromptRow.id}
_SUBJECTS: Mapping[str, Any] = {
    "comparison": select(ComparisonRow.id, ComparisonRow.prompt_id, _SIDES, ComparisonRow.purpose),
    "sample": select(SampleRow.id, SampleRow.prompt_id, literal(1), literal("")),
    "prompt": select(PromptRow.id, PromptRow.id, literal(0), literal("")),
}
"""Of each subject: its id, its prompt, how many answers it shows, and what it is for."""
