"""What an adjudicator is told of those who disagreed: their answers and remarks, and nothing about who they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, LabelRow, RaterRow
from postgrad.feedback.tasks import Vote
from postgrad.feedback.wording import in_words


def earlier_votes(session: Session, comparison_id: str, order: Sequence[int]) -> tuple[Vote, ...]:
    """Standing first answers of people, by what they say, so that their order tells nothing either.

    Args:
        session: to read from.
        comparison_id: what was disputed.
        order: answer indices as the adjudicator sees them, so that A is their A.
    """
    repeated = exists().where(AssignmentRow.id == LabelRow.assignment_id, AssignmentRow.repeat)
    rows: Any = session.execute(
        select(LabelRow.kind, LabelRow.value, LabelRow.rationale)
        .join(RaterRow, RaterRow.id == LabelRow.rater_id)
        .where(LabelRow.comparison_id == comparison_id, LabelRow.kind.in_(("compare", "rank")))
        .where(LabelRow.undone_at.is_(None), RaterRow.kind != "model", ~repeated)
    )
    votes = [Vote(in_words(kind, value, order), rationale.strip()) for kind, value, rationale in rows]
    return tuple(sorted(votes, key=lambda vote: (vote.said, vote.remark)))
