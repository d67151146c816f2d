"""Everybody with an account, and what they have done, for who manages people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from postgrad.db.tables import AssignmentRow, LabelRow, TokenRow
from postgrad.feedback.people import Account, People, authorised


@dataclass(frozen=True, slots=True)
class Member:
    account: Account
    answers: int
    """Standing labels, gold and repeats included."""
    gold_right: int
    gold: int
    sessions: int
    """Sessions, tokens and invitations that are still good."""


def roster(people: People, *, by: Account) -> list[Member]:
    """Oldest accounts first, erased ones among them.

    Raises:
        AccessError: no permission to manage people.
    """
    with people.store.reading() as session:
        authorised(session, by, "manage_people")
        standing = select(LabelRow.rater_id, func.count()).where(LabelRow.undone_at.is_(None))
        answers = {row[0]: row[1] for row in session.execute(standing.group_by(LabelRow.rater_id))}
        gold = select(AssignmentRow.rater_id, AssignmentRow.correct, func.count()).where(
            AssignmentRow.gold, AssignmentRow.state == "submitted"
        )
        judged: dict[str, dict[bool, int]] = {}
        for rater_id, correct, num in session.execute(gold.group_by(AssignmentRow.rater_id, AssignmentRow.correct)):
            judged.setdefault(rater_id, {})[bool(correct)] = num
        open_until = select(TokenRow.rater_id, func.count()).where(TokenRow.expires_at > datetime.now(UTC))
        sessions = {row[0]: row[1] for row in session.execute(open_until.group_by(TokenRow.rater_id))}
    return [
        Member(
            account=account,
            answers=answers.get(account.id, 0),
            gold_right=judged.get(account.id, {}).get(True, 0),
            gold=sum(judged.get(account.id, {}).values()),
            sessions=sessions.get(account.id, 0),
        )
        for account in people.everyone()
    ]
