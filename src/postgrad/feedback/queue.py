"""The queue: who is asked what next, and what becomes of the answer.

Invariants, each kept by one transaction and checked by the database: a task's `free`, `done` and leased places add up
to its overlap; a person holds one lease, and answers a task once (twice where it is repeated on purpose); a label is
stored before anyone is told so. The database's clock decides, never a client's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, bindparam, func, select, update
from sqlalchemy.orm import Session

from postgrad.config.queue import QueueConfig
from postgrad.db.engine import persistent
from postgrad.db.tables import (
    AccountRow,
    AssignmentRow,
    GuidelineRow,
    LabelRow,
    TaskRow,
)
from postgrad.errors import DataError, StaleError
from postgrad.feedback import audit, codec
from postgrad.feedback.agreement import matches
from postgrad.feedback.assignments import (
    assigned,
    by_answer,
    by_place,
    check_unfinished,
    lock_person,
    now_of,
    order_of,
    own,
    own_with_task,
)
from postgrad.feedback.choose import NUM_ANSWERED, next_assignment, takes_place
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask, Nothing, Progress, Receipt, task_rows
from postgrad.feedback.turns import TALKED, forget, is_open, turns_of, whole, without_turns
from postgrad.feedback.values import CHECKABLE, KINDS, Kind, check_value

SKIPS_TO_PAUSE: Final = 3
"""People who skip a task before it waits for a lead."""
ADJUDICATION_PRIORITY: Final = 1_000
_AT_ONCE: Final = 200
"""Tasks that are locked together where a change is of many."""
LABELER_KINDS: Final[frozenset[Kind]] = frozenset(KINDS) - {"adjudicate"}

_HELD = (
    select(AssignmentRow)
    .where(AssignmentRow.rater_id == bindparam("rater"), AssignmentRow.state == "leased")
    .with_for_update()
)
_BY_KEY = select(LabelRow).where(LabelRow.client_key == bindparam("key"))
_GUIDELINE = select(func.max(GuidelineRow.version))


class LabelQueue:
    """Tasks of a label store, handed to people one at a time.

    Every method but `prioritise` is one transaction, and raises StoreError as the store does; StaleError where an
    answer comes too late. All lock rows of PostgreSQL in one order: the person, assignments, tasks by number, the
    account, the audit. What the database takes back nevertheless is tried again.
    """

    def __init__(self, store: LabelStore, config: QueueConfig | None = None) -> None:
        self.store = store
        self.config = config or QueueConfig()

    def add(self, tasks: Iterable[NewTask], *, round_id: str) -> int:
        """Store tasks, leaving alone those that are there; how many are new.

        Raises:
            StoreError: a subject that the store does not hold.
            DataError: a known answer that is none, or an overlap of nobody.
        """
        wanted = {task.key: task for task in tasks}
        with self.store.writing() as session:
            before = session.scalar(select(func.count()).select_from(TaskRow)) or 0
            self.store.insert(session, TaskRow, task_rows(session, list(wanted.values()), round_id))
            return (session.scalar(select(func.count()).select_from(TaskRow)) or 0) - before

    @persistent
    def claim(self, rater_id: str, *, kinds: Collection[Kind] = LABELER_KINDS) -> Assigned | Nothing:
        """The task in this person's hands, its lease renewed, or else the next one."""
        with self.store.writing() as session:
            person = lock_person(session, rater_id)
            now = now_of(session)
            held = session.scalars(_HELD, {"rater": rater_id}).first()
            if held is None:
                if person.state not in (None, "active"):
                    return Nothing(f"this account is {person.state}: {person.reason}")
                cap = self.config.person_cap
                if cap is not None and (session.scalar(NUM_ANSWERED, {"rater": rater_id}) or 0) >= cap:
                    return Nothing(f"you have answered {cap} tasks, which is all one person may")
                held = next_assignment(session, rater_id, kinds, self.config, now)
            if held is None:
                return Nothing("there is nothing to label at the moment")
            held.lease_until = self.until(now)
            return assigned(session, held)

    @persistent
    def look(self, assignment_id: str, rater_id: str) -> Assigned:
        """An assignment of one's own as it stands; nothing is renewed."""
        with self.store.writing() as session:
            return assigned(session, own(session, assignment_id, rater_id))

    @persistent
    def heartbeat(self, assignment_id: str, rater_id: str) -> datetime:
        """Keep a lease alive; until when.

        Raises:
            StaleError: the lease has gone to somebody else, or the task is answered.
        """
        with self.store.writing() as session:
            row = own(session, assignment_id, rater_id)
            if row.state != "leased":
                raise StaleError(f"this task is {row.state}; reload the page for the next one")
            row.lease_until = self.until(now_of(session))
            return row.lease_until

    @persistent
    def save_draft(self, assignment_id: str, rater_id: str, draft: Mapping[str, Any], *, version: int) -> int:
        """Keep what is not finished; the draft's new version. Of a conversation, the turns stay as they are.

        Raises:
            StaleError: another tab has saved since `version` was read.
        """
        with self.store.writing() as session:
            row = own(session, assignment_id, rater_id)
            check_unfinished(row, version)
            kept = codec.plain(draft)
            if session.get_one(TaskRow, row.task_id).kind in TALKED:
                kept = {**kept, "turns": turns_of(row.draft)}
            row.draft, row.draft_version = kept, version + 1
            row.lease_until = max(row.lease_until, self.until(now_of(session)))
            return row.draft_version

    @persistent
    def submit(  # noqa: D417 - the other arguments say what they are
        self,
        assignment_id: str,
        rater_id: str,
        value: Mapping[str, Any],
        *,
        client_key: str,
        milliseconds: int | None = None,
        rationale: str = "",
    ) -> Receipt:
        """Store an answer; the same key with the same content again is the same answer, and gets the same receipt.

        Args:
            value: as `postgrad.feedback.values` defines it, but that tiers speak of places on the screen, 0 the first,
                and the turns of a conversation are their number.
            milliseconds: that the person spent, as their browser says.

        Raises:
            DataError: the value does not fit the task.
            StaleError: the lease ran out and others have the task, or it was answered in another tab.
        """
        with self.store.writing() as session:
            lock_person(session, rater_id)
            row, task = own_with_task(session, assignment_id, rater_id)
            stored = session.scalars(_BY_KEY, {"key": client_key}).first()
            if stored is None:
                self._take(row, task)
            said = turns_of(row.draft if stored is None else stored.value)
            if task.kind in TALKED:
                value = whole(value, said)
            checked = check_value(task.kind, value, num_answers=len(order_of(row)), details=task.details)
            checked = by_answer(checked, row)
            if stored is not None:
                if (stored.assignment_id, stored.value, stored.undone_at) != (assignment_id, checked, None):
                    raise StaleError(f"client key {client_key!r} names another answer, or an undone one; use a new key")
                return Receipt(stored.id, assignment_id, stored.created_at)
            now = now_of(session)
            row.state, row.closed_at, row.draft = "submitted", now, None
            if task.kind in TALKED:
                forget(session, [sample_id for turn in said if is_open(turn) for sample_id in turn["candidates"]])
            label = LabelRow(
                kind=task.kind,
                prompt_id=task.prompt_id,
                comparison_id=task.comparison_id,
                sample_id=task.sample_id,
                task_id=task.id,
                assignment_id=row.id,
                rater_id=rater_id,
                client_key=client_key,
                value=checked,
                display_order=row.display_order,
                rationale=rationale,
                milliseconds=milliseconds,
                weight=1.0,
                guideline=session.scalar(_GUIDELINE),
                created_at=now,
            )
            session.add(label)
            session.flush()
            if row.gold and task.kind in CHECKABLE:
                assert task.answer is not None
                row.correct = matches(task.kind, checked, task.answer)
                self._examine(session, rater_id)
            elif not row.repeat and task.kind in ("compare", "rank"):
                self._escalate(session, task, now)
            audit.record(
                session, actor=rater_id, action="label", about=f"label {label.id}", at=now,
                task=task.id, value=audit.digest_of(checked),
            )  # fmt: skip
            return Receipt(label.id, assignment_id, now)

    @persistent
    def skip(self, assignment_id: str, rater_id: str, reason: str) -> int:
        """Give a task back; this person is not asked again, and after `SKIPS_TO_PAUSE` people nobody is.

        Returns:
            The task's number.

        Raises:
            DataError: no reason.
            StaleError: the task is no longer in this person's hands.
        """
        if not reason.strip():
            raise DataError("a skipped task needs a reason, which helps to mend it")
        with self.store.writing() as session:
            lock_person(session, rater_id)
            row, task = own_with_task(session, assignment_id, rater_id)
            if row.state == "skipped":
                return task.id
            if row.state != "leased":
                raise StaleError(f"this task is {row.state}; reload the page for the next one")
            now = now_of(session)
            row.state, row.reason, row.closed_at = "skipped", reason.strip(), now
            if takes_place(row):
                task.free += 1
            session.flush()
            skipped = select(func.count()).where(AssignmentRow.task_id == task.id, AssignmentRow.state == "skipped")
            if not task.gold and (session.scalar(skipped) or 0) >= SKIPS_TO_PAUSE:
                task.state = "paused"
            audit.record(
                session, actor=rater_id, action="skip", about=f"task {task.id}", at=now,
                reason=audit.digest_of(row.reason),
            )  # fmt: skip
            return task.id

    @persistent
    def undo(self, rater_id: str) -> Assigned | None:
        """Take back this person's last answer and put its task into their hands again, the answer as its draft.

        What they held in its place goes back to the queue, with its draft. None where there is nothing to undo.
        """
        with self.store.writing() as session:
            lock_person(session, rater_id)
            last = session.scalars(
                select(LabelRow)
                .where(LabelRow.rater_id == rater_id, LabelRow.undone_at.is_(None), LabelRow.assignment_id.is_not(None))
                .order_by(LabelRow.id.desc())
                .limit(1)
            ).first()
            if last is None:
                return None
            now = now_of(session)
            row = session.get_one(AssignmentRow, last.assignment_id, with_for_update=True)
            held = session.scalars(_HELD, {"rater": rater_id}).first()
            both = [row.task_id] if held is None else [row.task_id, held.task_id]
            session.scalars(select(TaskRow).where(TaskRow.id.in_(both)).order_by(TaskRow.id).with_for_update()).all()
            if held is not None:
                _release(session, held, now)
                session.flush()
            last.undone_at = now
            task = session.get_one(TaskRow, row.task_id)
            task.done -= 1 if takes_place(row) else 0
            row.state, row.closed_at, row.correct = "leased", None, None
            row.draft = {"value": by_place(last.value, row), "rationale": last.rationale}
            if task.kind in TALKED:
                row.draft = {**row.draft, "value": without_turns(last.value), "turns": turns_of(last.value)}
            row.draft_version += 1
            row.lease_until = self.until(now)
            session.flush()
            audit.record(session, actor=rater_id, action="undo", about=f"label {last.id}", at=now)
            return assigned(session, row)

    def progress(self) -> list[Progress]:
        """How far the queue is, by kind of task."""
        query = select(
            TaskRow.kind,
            TaskRow.state,
            func.count(),
            func.sum(TaskRow.overlap),
            func.sum(TaskRow.done),
            func.sum(TaskRow.overlap - TaskRow.done - TaskRow.free),
        )
        with self.store.reading() as session:
            rows = session.execute(query.where(~TaskRow.gold).group_by(TaskRow.kind, TaskRow.state)).all()
        return [Progress(*row) for row in sorted(rows)]

    def waiting(self, kind: Kind, *, round_id: str, sample_ids: Collection[str]) -> int:
        """Tasks of a round about these samples that still want answers; closed ones do not."""
        query = select(TaskRow.sample_id).where(
            TaskRow.kind == kind,
            TaskRow.round_id == round_id,
            TaskRow.done < TaskRow.overlap,
            TaskRow.state != "closed",
        )
        with self.store.reading() as session:
            return len(set(sample_ids) & set(session.scalars(query)))

    def per_hour(self, *, hours: int = 24) -> list[tuple[datetime, int]]:
        """Standing labels of people in each of the last hours, oldest first."""
        with self.store.reading() as session:
            now = now_of(session)
            first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
            made = select(LabelRow.created_at).where(
                LabelRow.created_at >= first, LabelRow.undone_at.is_(None), LabelRow.assignment_id.is_not(None)
            )
            counts = Counter(at.replace(minute=0, second=0, microsecond=0) for at in session.scalars(made))
        return [(hour, counts[hour]) for hour in (first + timedelta(hours=i) for i in range(hours))]

    def answered(self, rater_id: str) -> int:
        """Standing labels of a person."""
        with self.store.reading() as session:
            mine = select(func.count()).where(LabelRow.rater_id == rater_id, LabelRow.undone_at.is_(None))
            return session.scalar(mine) or 0

    @persistent
    def sweep(self) -> int:
        """Hand the places of expired leases back; how many there were."""
        with self.store.writing() as session:
            now = now_of(session)
            over = select(AssignmentRow).where(AssignmentRow.state == "leased", AssignmentRow.lease_until < now)
            over = over.order_by(AssignmentRow.task_id)
            rows = session.scalars(over.with_for_update(skip_locked=True)).all()
            for row in rows:
                _release(session, row, now)
            return len(rows)

    def prioritise(self, scores: Mapping[str, float]) -> int:
        """Ask first what a reward model is least sure of.

        Args:
            scores: uncertainty by comparison id, from 0 (sure) to 1; what is not named keeps its priority.

        Returns:
            Waiting tasks whose priority, 0 to 100, is another now.
        """
        asked = select(TaskRow.id, TaskRow.comparison_id).where(TaskRow.kind.in_(("compare", "rank")), TaskRow.free > 0)
        with self.store.reading() as session:
            waiting = session.execute(asked.order_by(TaskRow.id)).all()
        named = [(task_id, scores[name]) for task_id, name in waiting if name is not None and name in scores]
        # Claims pass over what is locked, so that nobody is to find all tasks locked for long.
        pieces = (named[start : start + _AT_ONCE] for start in range(0, len(named), _AT_ONCE))
        return sum(self._set_turns([(i, -round(100 * min(1.0, max(0.0, s)))) for i, s in piece]) for piece in pieces)

    @persistent
    def _set_turns(self, turns: Sequence[tuple[int, int]]) -> int:
        """How many waiting tasks have another turn now; tasks by number, as everything locks them."""
        changed = 0
        with self.store.writing() as session:
            for task_id, turn in turns:
                still = TaskRow.id == task_id, TaskRow.free > 0, TaskRow.turn != turn
                result = session.execute(update(TaskRow).where(*still).values(turn=turn))
                changed += getattr(result, "rowcount", 0)
        return changed

    def add_guideline(self, text: str, *, author_id: str) -> int:
        """A new version, which labels name from now on."""
        with self.store.writing() as session:
            now = now_of(session)
            row = GuidelineRow(text=text, author_id=author_id, created_at=now)
            session.add(row)
            session.flush()
            audit.record(
                session, actor=author_id, action="guideline", about=f"guideline {row.version}", at=now,
                text=audit.digest_of(text),
            )  # fmt: skip
            return row.version

    def guideline(self) -> tuple[int, str] | None:
        with self.store.reading() as session:
            row = session.scalars(select(GuidelineRow).order_by(GuidelineRow.version.desc()).limit(1)).first()
            return None if row is None else (row.version, row.text)

    def until(self, now: datetime) -> datetime:
        """When a lease renewed now ends."""
        return now + timedelta(seconds=self.config.lease_s)

    def _take(self, row: AssignmentRow, task: TaskRow) -> None:
        """Move an assignment's place from leased to done; one that expired takes a free place, if there is one."""
        if row.state == "expired" and (not takes_place(row) or task.free > 0):
            task.free -= 1 if takes_place(row) else 0
        elif row.state != "leased":
            raise StaleError(
                "the lease ran out and others have this task now"
                if row.state == "expired"
                else f"this task is {row.state} already, perhaps in another tab"
            )
        task.done += 1 if takes_place(row) else 0

    def _examine(self, session: Session, rater_id: str) -> None:
        """Pause an account that fails its examination or too many gold tasks later."""
        session.flush()
        mine = and_(AssignmentRow.rater_id == rater_id, AssignmentRow.gold, AssignmentRow.state == "submitted")
        asked = select(AssignmentRow.correct).join(TaskRow, TaskRow.id == AssignmentRow.task_id)
        results = session.scalars(asked.where(mine, TaskRow.state != "closed", TaskRow.kind.in_(CHECKABLE))).all()
        right, num = sum(map(bool, results)), len(results)
        failed = num == self.config.exam_tasks and right < self.config.exam_pass * num
        slipped = num >= self.config.pause_after and right < self.config.pause_below * num
        account = session.get(AccountRow, rater_id)
        if account is not None and account.state == "active" and (failed or slipped):
            account.state = "paused"
            account.reason = f"{right} of {num} questions with known answers were right; a lead will look at it"

    def _escalate(self, session: Session, task: TaskRow, now: datetime) -> None:
        """One more person for a disputed comparison, up to `max_overlap`; then an adjudicator."""
        if task.free > 0 or task.done < task.overlap or self.config.max_overlap == 0:
            return
        values = session.scalars(
            select(LabelRow.value)
            .join(AssignmentRow, AssignmentRow.id == LabelRow.assignment_id)
            .where(LabelRow.task_id == task.id, LabelRow.undone_at.is_(None), ~AssignmentRow.repeat)
        ).all()
        winners = [tuple(sorted(value["tiers"][0])) for value in values if value["tiers"]]
        if not winners or max(map(winners.count, winners)) > self.config.agree_above * len(winners):
            return
        if task.overlap < self.config.max_overlap:
            task.overlap, task.free = task.overlap + 1, task.free + 1
        elif len(winners) > 1:
            assert task.comparison_id is not None
            ruling = NewTask("adjudicate", task.comparison_id, priority=ADJUDICATION_PRIORITY)
            self.store.insert(session, TaskRow, task_rows(session, [ruling], task.round_id))


def _release(session: Session, row: AssignmentRow, now: datetime) -> None:
    row.state, row.closed_at = "expired", now
    if takes_place(row):
        session.execute(update(TaskRow).where(TaskRow.id == row.task_id).values(free=TaskRow.free + 1))
