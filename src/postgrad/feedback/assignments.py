"""Assignments: whose they are, and how their person sees them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from postgrad.db.tables import AccountRow, AssignmentRow, ComparisonAnswerRow, PromptRow, RaterRow, SampleRow, TaskRow
from postgrad.errors import DataError, StaleError, StoreError
from postgrad.feedback import codec
from postgrad.feedback.tasks import Assigned
from postgrad.feedback.turns import TALKED, shown, turns_of, without_turns
from postgrad.feedback.votes import earlier_votes

_PERSON = (
    select(RaterRow.kind, AccountRow.state, AccountRow.reason)
    .outerjoin(AccountRow, AccountRow.rater_id == RaterRow.id)
    .where(RaterRow.id == bindparam("rater"))
    .with_for_update(of=RaterRow)
)
_ASSIGNMENT = (
    select(AssignmentRow, TaskRow)
    .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
    .where(AssignmentRow.id == bindparam("id"))
    .with_for_update()
)
_CONVERSATION = select(PromptRow.conversation).where(PromptRow.id == bindparam("prompt"))
_SIDES = (
    select(SampleRow.text)
    .join(ComparisonAnswerRow, ComparisonAnswerRow.sample_id == SampleRow.id)
    .where(ComparisonAnswerRow.comparison_id == bindparam("comparison"))
    .order_by(ComparisonAnswerRow.position)
)


def now_of(session: Session) -> datetime:
    """By the database's clock where it has one, so that servers on several machines agree."""
    if session.get_bind().dialect.name == "postgresql":
        now = session.scalar(select(func.clock_timestamp()))
        assert isinstance(now, datetime)
        return now.astimezone(UTC)
    return datetime.now(UTC)


def lock_person(session: Session, rater_id: str) -> Any:
    """One thing at a time for each person; their account's state and reason where they have one."""
    person = session.execute(_PERSON, {"rater": rater_id}).first()
    if person is None:
        raise StoreError(f"rater {rater_id!r} is unknown; add it before it labels")
    if person.kind != "human":
        raise StoreError(f"rater {rater_id!r} is of kind {person.kind!r}, and the queue is for people")
    return person


def own(session: Session, assignment_id: str, rater_id: str) -> AssignmentRow:
    row = session.get(AssignmentRow, assignment_id, with_for_update=True)
    if row is None or row.rater_id != rater_id:
        raise DataError(f"there is no assignment {assignment_id!r} of yours")
    return row


def own_with_task(session: Session, assignment_id: str, rater_id: str) -> tuple[AssignmentRow, TaskRow]:
    found = session.execute(_ASSIGNMENT, {"id": assignment_id}).first()
    if found is None or found.AssignmentRow.rater_id != rater_id:
        raise DataError(f"there is no assignment {assignment_id!r} of yours")
    return found.AssignmentRow, found.TaskRow


def check_unfinished(row: AssignmentRow, version: int) -> None:
    """Raise StaleError where a draft is not to be changed any more, or not by who saw another version."""
    if row.state not in ("leased", "expired"):
        raise StaleError(f"this task is {row.state}; reload the page for the next one")
    if row.draft_version != version:
        raise StaleError("this draft was changed in another tab or window; reload to see it")


def order_of(row: AssignmentRow) -> list[int]:
    return [int(i) for i in row.display_order.split(",")] if row.display_order else []


def by_answer(value: dict[str, Any], row: AssignmentRow) -> dict[str, Any]:
    """Tiers of places on the screen as tiers of answers."""
    order = order_of(row)
    return value | {"tiers": [sorted(order[i] for i in tier) for tier in value["tiers"]]} if order else value


def by_place(value: dict[str, Any], row: AssignmentRow) -> dict[str, Any]:
    """Tiers of answers as tiers of places on the screen."""
    order = order_of(row)
    return value | {"tiers": [sorted(order.index(i) for i in tier) for tier in value["tiers"]]} if order else value


def assigned(session: Session, row: AssignmentRow) -> Assigned:
    """What their person may know."""
    session.flush()
    task = session.get_one(TaskRow, row.task_id)
    conversation = session.scalar(_CONVERSATION, {"prompt": task.prompt_id})
    assert conversation is not None
    texts: list[str] = []
    if task.sample_id is not None:
        texts = [session.get_one(SampleRow, task.sample_id).text]
    elif task.comparison_id is not None:
        texts = list(session.scalars(_SIDES, {"comparison": task.comparison_id}))
    order = tuple(order_of(row) or range(len(texts)))
    kind: Any = task.kind
    return Assigned(
        id=row.id,
        task_id=task.id,
        kind=kind,
        prompt=codec.conversation_from_json(conversation),
        answers=tuple(texts[i] for i in order),
        order=order,
        details=task.details,
        lease_until=row.lease_until,
        draft=without_turns(row.draft) if kind in TALKED else row.draft,
        draft_version=row.draft_version,
        turns=shown(session, turns_of(row.draft)) if kind in TALKED else (),
        votes=earlier_votes(session, task.comparison_id, order) if kind == "adjudicate" and task.comparison_id else (),
    )
