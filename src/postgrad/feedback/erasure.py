"""Forgetting what a person did: their rows stay, so that nothing that names them breaks, with nothing in them."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import String, and_, cast, exists, func, literal, or_, select, true, update
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, LabelRow, RaterRow, TaskRow
from postgrad.feedback.choose import takes_place
from postgrad.feedback.turns import forget_conversations
from postgrad.feedback.values import BETWEEN, Kind

WRITTEN: Final[tuple[Kind, ...]] = ("edit", "write", "converse", "redteam")
"""Kinds that are nothing without the text that the person wrote."""


def erase_work(session: Session, rater_id: str, *, keep_labels: bool, at: datetime) -> int:
    """Blank everything that a person wrote; how many of their labels are tombstones from now on.

    What policies answered in their conversations is deleted. Judgements survive with `keep_labels`, without their
    reasons. A label that goes gives its place back to its task, and so does what the person holds; none of it can be
    answered late, nor drafted.
    """
    # Locks the person first, as everything does that they do.
    session.execute(update(RaterRow).where(RaterRow.id == rater_id).values(params={}))
    mine = AssignmentRow.rater_id == rater_id
    gone = and_(LabelRow.rater_id == rater_id, LabelRow.kind.in_(WRITTEN) if keep_labels else true())
    answered = exists().where(LabelRow.assignment_id == AssignmentRow.id, LabelRow.undone_at.is_(None), gone)
    ending = and_(mine, or_(AssignmentRow.state.in_(("leased", "expired")), answered))
    # Assignments before tasks and tasks in order of id, as everyone locks them.
    rows = session.scalars(select(AssignmentRow).where(ending).order_by(AssignmentRow.task_id).with_for_update()).all()
    theirs = TaskRow.id.in_(select(AssignmentRow.task_id).where(ending))
    tasks = {t.id: t for t in session.scalars(select(TaskRow).where(theirs).order_by(TaskRow.id).with_for_update())}
    for row in rows:
        if takes_place(row) and row.state != "expired":
            tasks[row.task_id].free += 1
            tasks[row.task_id].done -= 1 if row.state == "submitted" else 0
        row.state, row.closed_at, row.correct = "erased", at, None
    session.flush()
    forget_conversations(session, rater_id)
    session.execute(update(AssignmentRow).where(mine).values(draft=None, reason=""))
    standing = and_(gone, LabelRow.undone_at.is_(None))
    removed = session.scalar(select(func.count()).select_from(LabelRow).where(standing)) or 0
    session.execute(update(LabelRow).where(standing).values(undone_at=at))
    session.execute(update(LabelRow).where(gone).values(value={}, milliseconds=None))
    session.execute(
        update(LabelRow)
        .where(LabelRow.rater_id == rater_id)
        .values(rationale="", client_key=literal("erased ") + cast(LabelRow.id, String))
    )
    abstained = select(LabelRow).where(LabelRow.rater_id == rater_id, LabelRow.kind.in_(BETWEEN), ~gone)
    for label in session.scalars(abstained.execution_options(yield_per=1000)):
        if label.value.get("cannot_judge"):
            label.value = {**label.value, "cannot_judge": ""}
    return removed
