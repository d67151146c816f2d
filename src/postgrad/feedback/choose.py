"""Which task a person gets next: gold, a repeat with its sides swapped, or work."""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session, aliased

from postgrad.config import QueueConfig
from postgrad.db.tables import AccountRow, AssignmentRow, ComparisonAnswerRow, TaskRow
from postgrad.feedback.tasks import Nothing
from postgrad.feedback.values import BETWEEN, Kind

REPEAT_DISTANCE: Final = 10
"""Tasks in between before one is asked again."""


def refusal(session: Session, rater_id: str, config: QueueConfig) -> Nothing | None:
    """Why this person may have no task now."""
    account = session.get(AccountRow, rater_id)
    if account is not None and account.state != "active":
        return Nothing(f"this account is {account.state}: {account.reason}")
    if config.person_cap is not None:
        answered = select(func.count()).where(
            AssignmentRow.rater_id == rater_id, AssignmentRow.state == "submitted", ~AssignmentRow.gold,
            ~AssignmentRow.repeat,
        )  # fmt: skip
        if (session.scalar(answered) or 0) >= config.person_cap:
            return Nothing(f"you have answered {config.person_cap} tasks, which is all one person may")
    return None


def next_assignment(
    session: Session, rater_id: str, kinds: Collection[Kind], config: QueueConfig, now: datetime
) -> AssignmentRow | None:
    """A new lease, not yet dated; None where nothing waits for this person."""
    dice = random.random()
    answered = 0
    if config.exam_tasks:
        golden = select(func.count()).where(AssignmentRow.rater_id == rater_id, AssignmentRow.gold)
        answered = session.scalar(golden.where(AssignmentRow.state == "submitted")) or 0
    if answered < config.exam_tasks or dice < config.gold_frac:
        row = _gold(session, rater_id, kinds, now)
        if row is not None:
            return row
    elif dice < config.gold_frac + config.repeat_frac:
        row = _repeat(session, rater_id, now)
        if row is not None:
            return row
    return _work(session, rater_id, kinds, now)


def _gold(session: Session, rater_id: str, kinds: Collection[Kind], now: datetime) -> AssignmentRow | None:
    task = session.scalars(
        select(TaskRow)
        .where(TaskRow.gold, TaskRow.state == "open", TaskRow.kind.in_(kinds), ~_met(rater_id))
        .order_by(TaskRow.id)
        .limit(1)
    ).first()
    return None if task is None else assign(session, task, rater_id, now)


def _repeat(session: Session, rater_id: str, now: datetime) -> AssignmentRow | None:
    again = aliased(AssignmentRow)
    first = session.execute(
        select(AssignmentRow, TaskRow)
        .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
        .where(AssignmentRow.rater_id == rater_id, AssignmentRow.state == "submitted", ~AssignmentRow.gold)
        .where(TaskRow.kind == "compare", ~AssignmentRow.repeat)
        .where(~exists().where(again.task_id == AssignmentRow.task_id, again.rater_id == rater_id, again.repeat))
        .order_by(AssignmentRow.opened_at.desc())
        .offset(REPEAT_DISTANCE)
        .limit(1)
    ).first()
    if first is None:
        return None
    swapped = ",".join(reversed(first.AssignmentRow.display_order.split(",")))
    return assign(session, first.TaskRow, rater_id, now, order=swapped, repeat=True)


def _work(session: Session, rater_id: str, kinds: Collection[Kind], now: datetime) -> AssignmentRow | None:
    """Own unfinished work first; then what follows the last task, which saves passing over all that is behind."""
    waiting = and_(TaskRow.free > 0, TaskRow.state == "open", ~TaskRow.gold, TaskRow.kind.in_(kinds))
    drafted = session.scalars(
        select(AssignmentRow)
        .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
        .where(AssignmentRow.rater_id == rater_id, AssignmentRow.state == "expired", waiting)
        .order_by(AssignmentRow.opened_at.desc())
        .limit(1)
        .with_for_update(of=TaskRow, skip_locked=True)
    ).first()
    if drafted is not None:
        session.get_one(TaskRow, drafted.task_id).free -= 1
        drafted.state, drafted.closed_at, drafted.opened_at = "leased", None, now
        return drafted
    last = session.execute(
        select(TaskRow.turn, TaskRow.id)
        .join(AssignmentRow, AssignmentRow.task_id == TaskRow.id)
        .where(AssignmentRow.rater_id == rater_id, ~AssignmentRow.gold, ~AssignmentRow.repeat)
        .order_by(AssignmentRow.opened_at.desc())
        .limit(1)
    ).first()
    everywhere: list[ColumnElement[bool]] = [TaskRow.id > 0]
    if last is not None:
        same = and_(TaskRow.turn == last.turn, TaskRow.id > last.id)
        everywhere = [TaskRow.turn < last.turn, same, *everywhere]
    for where in everywhere:
        task = session.scalars(
            select(TaskRow)
            .where(waiting, where, ~_met(rater_id))
            .order_by(TaskRow.turn, TaskRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if task is not None:
            task.free -= 1
            return assign(session, task, rater_id, now)
    return None


def assign(
    session: Session, task: TaskRow, rater_id: str, now: datetime, *, order: str | None = None, repeat: bool = False
) -> AssignmentRow:
    """A new assignment, or the expired one that this person has of the task; its sides in an order of their own."""
    old = session.scalars(
        select(AssignmentRow).where(
            AssignmentRow.task_id == task.id, AssignmentRow.rater_id == rater_id, AssignmentRow.repeat == repeat
        )
    ).first()
    if old is not None:
        old.state, old.closed_at, old.opened_at = "leased", None, now
        return old
    indices = list(range(num_answers(session, task))) if task.kind in BETWEEN else []
    random.shuffle(indices)
    row = AssignmentRow(
        id=uuid.uuid4().hex,
        task_id=task.id,
        rater_id=rater_id,
        repeat=repeat,
        gold=task.gold,
        state="leased",
        display_order=",".join(map(str, indices)) if order is None else order,
        lease_until=now,
        draft_version=0,
        reason="",
        opened_at=now,
    )
    session.add(row)
    return row


def takes_place(row: AssignmentRow) -> bool:
    return not (row.gold or row.repeat)


def num_answers(session: Session, task: TaskRow) -> int:
    if task.comparison_id is None:
        return 0
    sides = select(func.count()).where(ComparisonAnswerRow.comparison_id == task.comparison_id)
    return session.scalar(sides) or 0


def _met(rater_id: str) -> ColumnElement[bool]:
    """Whether a person has answered or skipped a task, or holds it."""
    return exists().where(
        AssignmentRow.task_id == TaskRow.id, AssignmentRow.rater_id == rater_id, AssignmentRow.state != "expired",
    )  # fmt: skip
