"""Which task a person gets next: gold, a repeat with its sides swapped, or work.

Statements are built once, with names for what changes: building them costs more than running them.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, bindparam, exists, func, select, text
from sqlalchemy.orm import Session, aliased

from postgrad.config.queue import QueueConfig
from postgrad.db.tables import AssignmentRow, ComparisonAnswerRow, LabelRow, TaskRow
from postgrad.feedback.values import BETWEEN, CHECKABLE, Kind

REPEAT_DISTANCE: Final = 10
"""Tasks in between before one is asked again."""

_RATER: Any = bindparam("rater")
_MINE = AssignmentRow.rater_id == _RATER
_SUBMITTED = and_(_MINE, AssignmentRow.state == "submitted")
_OPEN = and_(TaskRow.state == "open", TaskRow.kind.in_(bindparam("kinds", expanding=True)))
_GOLD, _NOT_GOLD = text("tasks.gold"), text("NOT tasks.gold")
"""As the partial indexes have it: SQLite does not see that `gold = 0`, which SQLAlchemy writes, is the same."""
_WAITING = and_(TaskRow.free > 0, _NOT_GOLD, _OPEN)
_TOUCHED = and_(AssignmentRow.task_id == TaskRow.id, _MINE)
_NEW = ~exists().where(_TOUCHED)
"""This person never had the task."""
_UNDONE = ~exists().where(_TOUCHED, AssignmentRow.state != "expired")
"""This person has neither answered nor skipped the task, and does not hold it."""
_AGAIN = aliased(AssignmentRow)

NUM_ANSWERED = select(func.count()).where(_SUBMITTED, ~AssignmentRow.gold, ~AssignmentRow.repeat)
_NUM_GOLD = (
    select(func.count())
    .join_from(AssignmentRow, TaskRow)
    .where(_SUBMITTED, AssignmentRow.gold, TaskRow.state != "closed")
)
_SAID_BEFORE = exists().where(
    LabelRow.comparison_id == TaskRow.comparison_id, LabelRow.rater_id == _RATER, LabelRow.undone_at.is_(None)
)
"""This person's answer is one of those that made a comparison gold."""
_NEXT_GOLD = (
    select(TaskRow)
    .where(_GOLD, _OPEN, TaskRow.kind.in_(CHECKABLE), _UNDONE, ~_SAID_BEFORE)
    .order_by(TaskRow.id)
    .limit(1)
)
_OLD_COMPARISON = (
    select(AssignmentRow.display_order, TaskRow)
    .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
    .where(_SUBMITTED, ~AssignmentRow.gold, ~AssignmentRow.repeat, TaskRow.kind == "compare")
    .where(~exists().where(_AGAIN.task_id == AssignmentRow.task_id, _AGAIN.rater_id == _RATER, _AGAIN.repeat))
    .order_by(AssignmentRow.opened_at.desc())
    .offset(REPEAT_DISTANCE)
    .limit(1)
)
_LAST = (
    select(TaskRow.turn, TaskRow.id, AssignmentRow.state)
    .join(AssignmentRow, AssignmentRow.task_id == TaskRow.id)
    .where(_MINE, ~AssignmentRow.gold, ~AssignmentRow.repeat)
    .order_by(AssignmentRow.opened_at.desc())
    .limit(1)
)
_FIRST = select(TaskRow).order_by(TaskRow.turn, TaskRow.id).limit(1).with_for_update(skip_locked=True)
_THE_SAME = _FIRST.where(_WAITING, TaskRow.id == bindparam("id"))
_URGENT = _FIRST.where(_WAITING, TaskRow.turn < bindparam("turn"), _NEW)
_FOLLOWING = _FIRST.where(_WAITING, TaskRow.turn == bindparam("turn"), TaskRow.id > bindparam("id"), _NEW)
_ANY = _FIRST.where(_WAITING, _UNDONE)
_EXPIRED = select(AssignmentRow).where(_MINE, AssignmentRow.task_id == bindparam("id"), ~AssignmentRow.repeat)
_NUM_SIDES = select(func.count()).where(ComparisonAnswerRow.comparison_id == bindparam("comparison"))


def next_assignment(
    session: Session, rater_id: str, kinds: Collection[Kind], config: QueueConfig, now: datetime
) -> AssignmentRow | None:
    """A new lease, not yet dated; None where nothing waits for this person."""
    asked = {"rater": rater_id, "kinds": list(kinds)}
    dice = random.random()
    answered = session.scalar(_NUM_GOLD, asked) or 0 if config.exam_tasks else 0
    if answered < config.exam_tasks or dice < config.gold_frac:
        task = session.scalars(_NEXT_GOLD, asked).first()
        if task is not None:
            return _reopened(session, task, rater_id, now) or _assigned(session, task, rater_id, now)
    elif dice < config.gold_frac + config.repeat_frac:
        first = session.execute(_OLD_COMPARISON, asked).first()
        if first is not None:
            swapped = ",".join(reversed(first.display_order.split(",")))
            return _assigned(session, first.TaskRow, rater_id, now, repeated=swapped)
    return _work(session, rater_id, asked, now)


def takes_place(row: AssignmentRow) -> bool:
    return not (row.gold or row.repeat)


def _work(session: Session, rater_id: str, asked: dict[str, Any], now: datetime) -> AssignmentRow | None:
    """What expired in this person's hands first; then what follows it, which saves passing over all that is behind."""
    last = session.execute(_LAST, asked).first()
    if last is not None:
        after = {**asked, "turn": last.turn, "id": last.id}
        if last.state == "expired":
            task = session.scalars(_THE_SAME, after).first()
            if task is not None:
                task.free -= 1
                return _reopened(session, task, rater_id, now)
        for search in (_URGENT, _FOLLOWING):
            task = session.scalars(search, after).first()
            if task is not None:
                task.free -= 1
                return _assigned(session, task, rater_id, now)
    task = session.scalars(_ANY, asked).first()
    if task is None:
        return None
    task.free -= 1
    return _reopened(session, task, rater_id, now) or _assigned(session, task, rater_id, now)


def _reopened(session: Session, task: TaskRow, rater_id: str, now: datetime) -> AssignmentRow | None:
    """The expired assignment that this person has of the task, with its order and its draft."""
    row = session.scalars(_EXPIRED, {"rater": rater_id, "id": task.id}).first()
    if row is not None:
        row.state, row.closed_at, row.opened_at = "leased", None, now
    return row


def _assigned(
    session: Session, task: TaskRow, rater_id: str, now: datetime, *, repeated: str | None = None
) -> AssignmentRow:
    """A new assignment, its sides in an order of its own, or in that of a repeat."""
    indices: list[int] = []
    if task.kind in BETWEEN and repeated is None:
        indices = list(range(session.scalar(_NUM_SIDES, {"comparison": task.comparison_id}) or 0))
        random.shuffle(indices)
    row = AssignmentRow(
        id=uuid.uuid4().hex,
        task_id=task.id,
        rater_id=rater_id,
        repeat=repeated is not None,
        gold=task.gold,
        state="leased",
        display_order=",".join(map(str, indices)) if repeated is None else repeated,
        lease_until=now,
        draft_version=0,
        reason="",
        opened_at=now,
    )
    session.add(row)
    return row
