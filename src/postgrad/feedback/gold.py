"""Gold tasks, whose answers are known: made of comparisons on which people agree, watched, and retired.

A comparison that becomes gold keeps its row and changes its purpose, so that every reader that asks for training data
passes over all that was ever said of it. There is no way back: who saw its known answer cannot unsee it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from sqlalchemy import select, update

from postgrad.db.tables import AssignmentRow, ComparisonRow, PromptRow, TaskRow
from postgrad.errors import DataError
from postgrad.feedback import audit
from postgrad.feedback.intervals import Estimate, share_of
from postgrad.feedback.people import Account
from postgrad.feedback.records import Judged
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask, task_rows
from postgrad.feedback.values import BETWEEN, Kind

COMPETENT: Final = 0.7
"""Share of the other gold tasks that a competent person gets right."""
FEWEST: Final = 3
"""Other gold tasks from which a person counts as competent, and competent people from which a task counts as bad."""
_BATCH: Final = 400


@dataclass(frozen=True, slots=True)
class Agreed:
    """A comparison whose better answer is known: adjudicated, or said alike by everybody."""

    comparison_id: str
    round_id: str
    kind: Kind
    tiers: tuple[tuple[int, ...], ...]
    people: int
    """Who named this winner, the adjudicator among them."""


@dataclass(frozen=True, slots=True)
class GoldTask:
    id: int
    kind: str
    round_id: str
    state: str
    """open, or closed once it is retired."""
    asked: str
    """The prompt's last message."""
    right: Estimate | None
    """Share of the answers that were right."""
    competent_right: Estimate | None
    """The same, of people who are right on other gold tasks."""

    @property
    def bad(self) -> bool:
        """Whether most competent people get it wrong: its answer is then more likely wrong than they are."""
        found = self.competent_right
        return found is not None and found.num >= FEWEST and found.value < 0.5


def agreed(store: LabelStore, *, min_people: int, round_id: str | None = None) -> list[Agreed]:
    """Training comparisons with a known winner that at least so many people named; ties and abstentions name none."""
    rulings = {j.preference.comparison_id: j for j in _by_people(store, round_id, ("adjudicate",))}
    votes: dict[str, list[Judged]] = {comparison_id: [] for comparison_id in rulings}
    for j in _by_people(store, round_id, ("compare", "rank")):
        votes.setdefault(j.preference.comparison_id, []).append(j)
    found = []
    for comparison_id, given in votes.items():
        ruling = rulings.get(comparison_id)
        best = ruling or given[0]
        same = [j for j in given if _winners(j) == _winners(best)]
        people = {j.preference.rater_id for j in (*same, best)}
        if len(best.preference.tiers) > 1 and (ruling or len(same) == len(given)) and len(people) >= min_people:
            kind: Kind = "compare" if len(best.comparison.answers) == 2 else "rank"
            found.append(Agreed(comparison_id, best.round_id, kind, best.preference.tiers, len(people)))
    return found


def make_gold(store: LabelStore, chosen: Sequence[Agreed], *, by: Account) -> int:
    """Turn comparisons into gold tasks, and close what else was asked about them; how many tasks are new."""
    made = 0
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        ids = [one.comparison_id for one in batch]
        with store.writing() as session:
            asked = select(TaskRow.id).where(TaskRow.comparison_id.in_(ids), ~TaskRow.gold).order_by(TaskRow.id)
            closing = session.scalars(asked.with_for_update()).all()
            session.execute(update(TaskRow).where(TaskRow.id.in_(closing)).values(state="closed"))
            session.execute(update(ComparisonRow).where(ComparisonRow.id.in_(ids)).values(purpose="gold"))
            for one in batch:
                task = NewTask(one.kind, one.comparison_id, answer={"tiers": one.tiers})
                store.insert(session, TaskRow, task_rows(session, [task], one.round_id))
                audit.record(
                    session, actor=by.id, action="gold", about=f"comparison {one.comparison_id}", at=datetime.now(UTC),
                    people=one.people,
                )  # fmt: skip
        made += len(batch)
    return made


def gold_tasks(store: LabelStore) -> list[GoldTask]:
    """All gold tasks, the bad ones first, with how people do on them."""
    results: dict[int, dict[str, bool]] = {}
    answered = select(AssignmentRow.task_id, AssignmentRow.rater_id, AssignmentRow.correct)
    columns = (TaskRow.id, TaskRow.kind, TaskRow.round_id, TaskRow.state, PromptRow.conversation)
    with store.reading() as session:
        for row in session.execute(answered.where(AssignmentRow.gold, AssignmentRow.state == "submitted")):
            results.setdefault(row.task_id, {})[row.rater_id] = bool(row.correct)
        tasks = session.execute(select(*columns).join(PromptRow).where(TaskRow.gold).order_by(TaskRow.id)).all()
    totals: dict[str, list[bool]] = {}
    for rater_id, right in chain.from_iterable(given.items() for given in results.values()):
        totals.setdefault(rater_id, []).append(right)
    found = []
    for task in tasks:
        given = results.get(task.id, {})
        able = [right for rater_id, right in given.items() if _is_competent(totals[rater_id], right)]
        asked = task.conversation["messages"][-1]["content"]
        found.append(
            GoldTask(
                task.id,
                task.kind,
                task.round_id,
                task.state,
                asked,
                share_of(sum(given.values()), len(given)),
                share_of(sum(able), len(able)),
            )
        )
    return sorted(found, key=lambda task: not task.bad)


def retire(store: LabelStore, task_ids: Iterable[int], *, by: Account) -> None:
    """Ask gold tasks no more; what people answered pauses nobody from now on, and is still never trained on.

    Raises:
        DataError: a number that is no gold task's; nothing is retired then.
    """
    wanted = sorted(set(task_ids))
    with store.writing() as session:
        known = select(TaskRow.id).where(TaskRow.id.in_(wanted), TaskRow.gold).order_by(TaskRow.id)
        found = session.scalars(known.with_for_update()).all()
        if unknown := sorted(set(wanted) - set(found)):
            raise DataError(f"there is no gold task {unknown[0]}; `postgrad label gold list` shows them")
        session.execute(update(TaskRow).where(TaskRow.id.in_(found)).values(state="closed"))
        for task_id in found:
            audit.record(session, actor=by.id, action="retire", about=f"task {task_id}", at=datetime.now(UTC))


def known_answer(judgements: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one answer that several judgements of a question give.

    Raises:
        DataError: there is none, they differ, or they name no winner.
    """
    if not judgements:
        raise DataError("a gold question needs its answer")
    first = judgements[0]
    if any(other != first for other in judgements):
        raise DataError("its judgements differ, so that nobody knows the answer")
    if "tiers" in first and len(first["tiers"]) < 2:
        raise DataError("a tie is no known answer")
    return first


def _by_people(store: LabelStore, round_id: str | None, kinds: tuple[Kind, ...]) -> Iterable[Judged]:
    assert set(kinds) <= set(BETWEEN)
    given = store.preferences(purpose="train", round_id=round_id, kinds=kinds)
    return (j for j in given if j.rater_kind == "human")


def _winners(judged: Judged) -> frozenset[int]:
    return frozenset(judged.preference.tiers[0] if judged.preference.tiers else ())


def _is_competent(results: Sequence[bool], this: bool) -> bool:
    """By all of a person's results but this one."""
    others = len(results) - 1
    return others >= FEWEST and sum(results) - this >= COMPETENT * others
