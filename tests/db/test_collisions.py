"""What happens in PostgreSQL where two transactions want the same rows, and the order in which the queue locks them."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select, text
from workbench import A_BETTER, assert_places_add_up, claim, finish, plain, queue_of, shown

from postgrad.db.tables import AssignmentRow, TaskRow
from postgrad.errors import CollisionError
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Nothing

HASTY = "?options=-c%20deadlock_timeout%3D2s"
"""A connection that looks for a deadlock, once, two seconds after it began to wait; the other one does not."""


@pytest.fixture
def other(cleared_postgresql: str, postgresql: Any) -> Iterator[Any]:
    """A connection of somebody else, which waits for twenty seconds at most, and never breaks a deadlock itself."""
    with type(postgresql).connect(cleared_postgresql) as connection:
        connection.execute("SET lock_timeout = '20s'")
        connection.execute("SET deadlock_timeout = '60s'")
        connection.commit()
        yield connection
        connection.rollback()


class Doing:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._found, self._error = call, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._call()
        except Exception as e:  # noqa: BLE001 - `result` raises it
            self._error = e

    def result(self) -> Any:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._found


def until_somebody_waits(postgresql: Any) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname LIKE 'postgrad_test_%'"
    deadline = time.monotonic() + 60
    while not postgresql.execute(waiting).fetchone()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_prioritise_locks_tasks_in_order_of_their_numbers(cleared_postgresql: str, other: Any, postgresql: Any) -> None:
    with LabelStore(cleared_postgresql) as store:
        queue = queue_of(store, 3)
        with store.reading() as session:
            asked = {row.id: row.comparison_id for row in session.execute(select(TaskRow.id, TaskRow.comparison_id))}
        other.execute("SELECT id FROM tasks WHERE id = 1 FOR UPDATE")
        doing = Doing(lambda: queue.prioritise({str(asked[task_id]): 1.0 for task_id in (3, 2, 1)}))
        until_somebody_waits(postgresql)
        assert other.execute("SELECT id FROM tasks WHERE id > 1 FOR UPDATE SKIP LOCKED").fetchall() == [(2,), (3,)]
        other.rollback()
        assert doing.result() == 3


def test_undo_locks_assignments_before_tasks_as_a_sweep_does(
    cleared_postgresql: str, other: Any, postgresql: Any
) -> None:
    with LabelStore(cleared_postgresql) as store:
        queue = queue_of(store, 2)
        done = finish(queue, "ada", A_BETTER)
        held = claim(queue, "ada")
        other.execute("SELECT id FROM assignments WHERE id = %s FOR UPDATE", [held.id])
        doing = Doing(lambda: queue.undo("ada"))
        until_somebody_waits(postgresql)
        # A sweep that found the lease expired hands its place back, and is not waited for with the task in hand.
        other.execute("UPDATE tasks SET free = free + 1 WHERE id = %s", [held.task_id])
        other.execute("UPDATE assignments SET state = 'expired' WHERE id = %s", [held.id])
        other.commit()
        assert doing.result().id == done.id
        assert_places_add_up(store)


def test_a_lease_that_ends_while_its_person_claims_is_not_renewed_as_if_it_stood(
    cleared_postgresql: str, other: Any, postgresql: Any
) -> None:
    with LabelStore(cleared_postgresql) as store:
        queue = queue_of(store, 1)
        held = claim(queue, "ada")
        other.execute("UPDATE tasks SET free = free + 1 WHERE id = %s", [held.task_id])
        other.execute("UPDATE assignments SET state = 'expired' WHERE id = %s", [held.id])
        doing = Doing(lambda: queue.claim("ada"))
        until_somebody_waits(postgresql)
        other.commit()
        assert doing.result().id == held.id
        with store.reading() as session:
            assert session.get_one(AssignmentRow, held.id).state == "leased"
        assert_places_add_up(store)


def deadlock(other: Any, postgresql: Any, call: Callable[[], Any], task_id: int) -> Any:
    """Let somebody else hold the task that a call wants and want the person that it holds; what comes of the call."""
    other.execute("SELECT id FROM tasks WHERE id = %s FOR UPDATE", [task_id])
    doing = Doing(call)
    until_somebody_waits(postgresql)
    other.execute("SELECT id FROM raters WHERE id = 'ada' FOR UPDATE")
    other.rollback()
    return doing.result()


def test_an_answer_that_a_deadlock_took_back_is_stored_all_the_same(
    cleared_postgresql: str, other: Any, postgresql: Any
) -> None:
    with LabelStore(cleared_postgresql + HASTY) as store:
        queue = queue_of(store, 1)
        got = claim(queue, "ada")
        value = shown(got, A_BETTER)
        receipt = deadlock(other, postgresql, lambda: queue.submit(got.id, "ada", value, client_key="k"), got.task_id)
        assert receipt.label_id
        assert store.counts()["preferences"] == 1
        assert_places_add_up(store)


def test_a_collision_that_does_not_end_says_what_to_do(
    cleared_postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LabelStore(cleared_postgresql) as store:
        queue = queue_of(store, 1)
        tried: list[str] = []

        def collide(session: Any, rater_id: str) -> None:
            tried.append(rater_id)
            session.execute(text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))

        monkeypatch.setattr("postgrad.feedback.queue.lock_person", collide)
        with pytest.raises(CollisionError, match="was changed by somebody else at the same moment; try again"):
            queue.claim("ada")
        assert tried == ["ada"] * 4


def test_people_who_undo_while_priorities_change_and_leases_end_lose_nothing(cleared_postgresql: str) -> None:
    with LabelStore(cleared_postgresql) as store:
        queue_of(store, 12, overlap=4)
        with store.reading() as session:
            comparisons = [str(c) for c in session.scalars(select(TaskRow.comparison_id))]
    ended = threading.Event()

    def shift(person: str) -> None:
        with LabelStore(cleared_postgresql) as own:
            queue = LabelQueue(own, plain())
            for i in range(12):
                got = queue.claim(person)
                while isinstance(got, Nothing):  # what priorities are written to at the moment is passed over
                    got = queue.claim(person)
                queue.submit(got.id, person, shown(got, A_BETTER), client_key=f"{got.id}-{got.draft_version}")
                if i % 2:
                    queue.claim(person)
                    back = queue.undo(person)
                    assert back is not None
                    queue.submit(back.id, person, shown(back, A_BETTER), client_key=f"{back.id}-{back.draft_version}")

    def lead() -> None:
        with LabelStore(cleared_postgresql) as own:
            queue, turn = LabelQueue(own, plain()), 0
            while not ended.is_set():
                turn += 1
                queue.prioritise({c: (turn + i) % 7 / 7 for i, c in enumerate(reversed(comparisons))})
                with own.writing() as session:
                    session.execute(
                        text("UPDATE assignments SET lease_until = now() - interval '1 h' WHERE rater_id = 'ada'")
                    )
                queue.sweep()

    people = [Doing(lambda person=person: shift(person)) for person in ("ada", "bob", "cyd")]  # type: ignore[misc]
    leading = Doing(lead)
    try:
        for one in people:
            one.result()
    finally:
        ended.set()
    leading.result()
    with LabelStore(cleared_postgresql) as store:
        assert store.counts()["preferences"] == 36
        assert_places_add_up(store)
