"""The queue's tasks for who leads it: a page of a list, and changes of many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import Text, and_, cast, exists, func, or_, select, update
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, LabelRow, PromptRow, TaskRow
from postgrad.errors import DataError
from postgrad.feedback import audit
from postgrad.feedback.browse import snippet
from postgrad.feedback.newest import newest
from postgrad.feedback.people import Account, authorised
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import Kind

TaskState = Literal["open", "paused", "closed"]
TASK_STATES: Final[tuple[TaskState, ...]] = get_args(TaskState)
PAGE: Final = 50
MAX_PRIORITY: Final = 1_000_000
_BATCH: Final = 400

_TIERS = cast(LabelRow.value["tiers"], Text)
_STANDING = and_(LabelRow.task_id == TaskRow.id, LabelRow.undone_at.is_(None))
_DISPUTED = and_(
    TaskRow.kind.in_(("compare", "rank")),
    ~TaskRow.gold,
    TaskRow.done > 1,
    select(func.count(_TIERS.distinct())).where(_STANDING, _TIERS != "[]").correlate(TaskRow).scalar_subquery() > 1,
)
"""Whether those who decided named more than one order; a person who was asked twice may dispute with themselves."""
_SKIPPED = exists().where(AssignmentRow.task_id == TaskRow.id, AssignmentRow.state == "skipped")


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """What a list of tasks holds; an empty field holds back nothing."""

    kind: Kind | None = None
    state: TaskState | None = None
    round_id: str = ""
    gold: bool | None = None
    disputed: bool = False
    skipped: bool = False
    waiting: bool = False
    """With free places."""

    def in_words(self) -> str:
        said = [self.kind or "", self.state or "", f"round {self.round_id}" if self.round_id else ""]
        said.append("" if self.gold is None else "gold" if self.gold else "no gold")
        said += [name for name in ("disputed", "skipped", "waiting") if getattr(self, name)]
        return ", ".join(part for part in said if part) or "all"


@dataclass(frozen=True, slots=True)
class TaskLine:
    id: int
    kind: Kind
    round_id: str
    state: TaskState
    priority: int
    overlap: int
    """Of gold tasks nothing: everyone is asked."""
    done: int
    free: int
    leased: int
    gold: bool
    disputed: bool
    skips: tuple[str, ...]
    """Reasons, oldest first."""
    prompt: str


def task_page(
    store: LabelStore, filters: TaskFilter, *, by: Account, before: int | None = None, limit: int = PAGE
) -> tuple[list[TaskLine], int | None]:
    """Tasks, newest first, and the number below which the next page begins.

    Raises:
        AccessError: no permission to manage tasks.
    """
    with store.reading() as session:
        authorised(session, by, "manage_tasks")
        query = select(TaskRow.id).where(*_conditions(filters))
        ids, older = newest(session, query, TaskRow.id, before=before, limit=limit)
        return _lines(session, ids), older


def count_tasks(store: LabelStore, filters: TaskFilter, *, by: Account) -> int:
    with store.reading() as session:
        authorised(session, by, "manage_tasks")
        return session.scalar(select(func.count()).select_from(TaskRow).where(*_conditions(filters))) or 0


def change_tasks(
    store: LabelStore,
    which: Sequence[int] | TaskFilter,
    *,
    by: Account,
    state: TaskState | None = None,
    priority: int | None = None,
) -> int:
    """Open, pause or close tasks, or have them asked sooner or later; how many were changed.

    What is in somebody's hands stays there. The audit says who did it, and to which tasks.

    Raises:
        AccessError: no permission to manage tasks.
        DataError: a priority beyond a million.
    """
    assert (state is None) != (priority is None), "one change at a time"
    if priority is not None and abs(priority) > MAX_PRIORITY:
        raise DataError(f"a priority lies between -{MAX_PRIORITY} and {MAX_PRIORITY}, not {priority}")
    values: dict[str, Any] = {"state": state} if priority is None else {"turn": -priority}
    (column, value), *_ = values.items()
    wanted = [_conditions(which)] if isinstance(which, TaskFilter) else [
        [TaskRow.id.in_(which[start : start + _BATCH])] for start in range(0, len(which), _BATCH)
    ]  # fmt: skip
    with store.writing() as session:
        authorised(session, by, "manage_tasks")
        # Locked in order of id, as by everyone who locks several.
        ids = [
            task_id
            for conditions in wanted
            for task_id in session.scalars(
                select(TaskRow.id)
                .where(*conditions, getattr(TaskRow, column) != value)
                .order_by(TaskRow.id)
                .with_for_update()
            )
        ]
        for start in range(0, len(ids), _BATCH):
            session.execute(update(TaskRow).where(TaskRow.id.in_(ids[start : start + _BATCH])).values(values))
        if ids:
            audit.record(
                session, actor=by.id, action="prioritise" if state is None else state, at=datetime.now(UTC),
                about=f"task {ids[0]}" if len(ids) == 1 else f"{len(ids)} tasks", tasks=ranges(ids),
                by_filter=which.in_words() if isinstance(which, TaskFilter) else "",
                **({} if priority is None else {"priority": priority}),
            )  # fmt: skip
        return len(ids)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `1-4,7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _conditions(filters: TaskFilter) -> list[Any]:
    conditions: list[Any] = []
    if filters.kind is not None:
        conditions.append(TaskRow.kind == filters.kind)
    if filters.state is not None:
        conditions.append(TaskRow.state == filters.state)
    if filters.round_id:
        conditions.append(TaskRow.round_id == filters.round_id)
    if filters.gold is not None:
        conditions.append(TaskRow.gold if filters.gold else ~TaskRow.gold)
    if filters.waiting:
        conditions.append(or_(TaskRow.free > 0, TaskRow.gold))
    if filters.disputed:
        conditions.append(_DISPUTED)
    if filters.skipped:
        conditions.append(_SKIPPED)
    return conditions


def _lines(session: Session, ids: Sequence[int]) -> list[TaskLine]:
    query = select(TaskRow, PromptRow.conversation, _DISPUTED.label("disputed")).join(PromptRow)
    rows = session.execute(query.where(TaskRow.id.in_(ids)).order_by(TaskRow.id.desc())).all()
    held = select(AssignmentRow.task_id, AssignmentRow.state, AssignmentRow.reason)
    held = held.where(AssignmentRow.task_id.in_(ids), ~AssignmentRow.repeat).order_by(AssignmentRow.closed_at)
    hands: defaultdict[int, list[str]] = defaultdict(list)
    skips: defaultdict[int, list[str]] = defaultdict(list)
    for task_id, state, reason in session.execute(held):
        hands[task_id].append(state)
        if state == "skipped":
            skips[task_id].append(reason or "(erased)")
    return [
        TaskLine(
            id=task.id,
            kind=task.kind,
            round_id=task.round_id,
            state=task.state,
            priority=-task.turn,
            overlap=task.overlap,
            done=hands[task.id].count("submitted") if task.gold else task.done,
            free=task.free,
            leased=hands[task.id].count("leased"),
            gold=task.gold,
            disputed=bool(disputed),
            skips=tuple(skips[task.id]),
            prompt=snippet(conversation, task.details),
        )
        for task, conversation, disputed in rows
    ]
