"""Whose clock decides, and what becomes of leases when it jumps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

import pytest
from sqlalchemy import select
from workbench import A_BETTER, B_BETTER, assert_places_add_up, claim, finish, plain, queue_of, shown

from postgrad.db.tables import LabelRow
from postgrad.errors import StaleError
from postgrad.feedback import assignments
from postgrad.feedback import queue as queue_module
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Nothing

LEASE = plain().lease_s
HOUR = 3_600.0


class Same(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, datetime)


class Ahead(metaclass=Same):
    """The clock of a process that is three hours ahead."""

    @staticmethod
    def now(zone: tzinfo) -> datetime:
        return datetime.now(zone) + timedelta(hours=3)


class Clock:
    """The one that decides, off by `offset` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real = queue_module.now_of
        monkeypatch.setattr(queue_module, "now_of", lambda session: real(session) + timedelta(seconds=self.offset))


def seconds_from_now(at: datetime) -> float:
    return (at - datetime.now(UTC)).total_seconds()


def test_the_databases_clock_decides_where_it_has_one_and_never_a_clients(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0 if url.startswith("postgresql") else 3 * HOUR
    with LabelStore(url) as store:
        queue = queue_of(store, 1)
        monkeypatch.setattr(assignments, "datetime", Ahead)
        got = claim(queue, "ada")
        assert seconds_from_now(got.lease_until) == pytest.approx(LEASE + ahead, abs=60)
        receipt = queue.submit(got.id, "ada", shown(got, A_BETTER), client_key="k", milliseconds=10**9)
        assert seconds_from_now(receipt.created_at) == pytest.approx(ahead, abs=60)
        with store.reading() as session:
            label = session.scalars(select(LabelRow)).one()
            assert (label.created_at, label.milliseconds) == (receipt.created_at, 10**9)


def test_a_clock_that_jumps_back_keeps_leases_and_delays_only_those_that_nobody_renews(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with LabelStore(url) as store:
        queue = queue_of(store, 2)
        alive, dead = claim(queue, "ada"), claim(queue, "bob")
        clock.offset = -HOUR
        assert claim(queue, "ada").id == alive.id
        assert queue.heartbeat(alive.id, "ada") < alive.lease_until, "dated anew by the clock that there is"
        queue.submit(alive.id, "ada", shown(alive, A_BETTER), client_key="k")
        clock.offset = LEASE - HOUR + 60
        assert queue.sweep() == 0
        assert isinstance(queue.claim("cyd"), Nothing), "bob's lease ends when the clock is where it was again"
        clock.offset = LEASE + 60
        assert queue.sweep() == 1
        assert finish(queue, "cyd", B_BETTER).task_id == dead.task_id
        assert_places_add_up(store)


def test_a_clock_that_jumps_forward_ends_leases_and_loses_no_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with LabelStore(url) as store:
        queue = queue_of(store, 2)
        first, second = claim(queue, "ada"), claim(queue, "bob")
        queue.save_draft(second.id, "bob", {"value": A_BETTER}, version=0)
        clock.offset = HOUR
        assert queue.sweep() == 2
        with pytest.raises(StaleError, match="this task is expired"):
            queue.heartbeat(first.id, "ada")
        queue.submit(first.id, "ada", shown(first, A_BETTER), client_key="a")
        again = claim(queue, "bob")
        assert (again.id, again.draft) == (second.id, {"value": A_BETTER})
        clock.offset = 2 * HOUR
        assert queue.sweep() == 1
        assert finish(queue, "cyd", B_BETTER).task_id == second.task_id
        with pytest.raises(StaleError, match="others have this task now"):
            queue.submit(second.id, "bob", shown(second, A_BETTER), client_key="b")
        assert_places_add_up(store)
