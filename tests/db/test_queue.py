import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text
from workbench import (
    A_BETTER,
    B_BETTER,
    PEOPLE,
    ROUND,
    TIE,
    answer,
    assert_places_add_up,
    claim,
    fill,
    finish,
    plain,
    queue_of,
    shown,
)

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AccountRow, AssignmentRow, EventRow, LabelRow, TaskRow
from postgrad.errors import DataError, StaleError, StoreError
from postgrad.feedback import audit
from postgrad.feedback.choose import REPEAT_DISTANCE
from postgrad.feedback.people import OPERATOR
from postgrad.feedback.queue import SKIPS_TO_PAUSE, LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.task_list import change_tasks
from postgrad.feedback.tasks import Assigned, NewTask, Nothing, Vote
from postgrad.types import Preference


def task_rows(store: LabelStore) -> list[TaskRow]:
    with store.reading() as session:
        return list(session.scalars(select(TaskRow).order_by(TaskRow.id)))


def test_a_task_goes_to_as_many_different_people_as_it_asks_for_and_no_more(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2, overlap=3)
        for person in PEOPLE[:3]:
            assert [finish(queue, person, A_BETTER).task_id for _ in range(2)] == [1, 2]
            assert queue.claim(person) == Nothing("there is nothing to label at the moment")
        assert queue.claim("dee") == Nothing("there is nothing to label at the moment")
        assert [(t.done, t.free) for t in task_rows(store)] == [(3, 0), (3, 0)]
        assert len(list(store.preferences(purpose="train"))) == 6


def test_leases_count_towards_the_overlap(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, overlap=2)
        claim(queue, "ada"), claim(queue, "bob")
        assert isinstance(queue.claim("cyd"), Nothing)
        assert_places_add_up(store)


def test_claiming_again_returns_the_same_task_with_the_same_order(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 5)
        first, again = claim(queue, "ada"), claim(queue, "ada")
        assert again == replace(first, lease_until=again.lease_until)
        assert again.lease_until > first.lease_until


def test_adding_tasks_twice_adds_them_once(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3)
        assert (
            queue.add(
                [NewTask("compare", c.id) for c in store.comparisons(purpose="train", round_id=ROUND)], round_id=ROUND
            )
            == 0
        )
        assert len(task_rows(store)) == 3


def test_sides_are_shuffled_for_each_person_and_stored(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 40, overlap=2)
        orders: dict[str, list[tuple[int, ...]]] = {"ada": [], "bob": []}
        for _ in range(40):
            for person in orders:
                got = claim(queue, person)
                assert got.answers == tuple(f"{'xy'[i]} {got.prompt.messages[0].content[4:-1]}" for i in got.order)
                orders[person].append(got.order)
                queue.submit(got.id, person, shown(got, A_BETTER), client_key=got.id)
        assert orders["ada"] != orders["bob"]
        assert 5 < orders["ada"].count((0, 1)) < 35
        stored = [j.order for j in store.preferences(purpose="train", rater_id="ada")]
        assert stored == orders["ada"]


def test_higher_priority_comes_first_and_new_urgent_tasks_are_seen_at_once(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3)
        finish(queue, "ada", A_BETTER)
        urgent = fill(store, 1, first=50)
        queue.add([NewTask("compare", urgent[0], priority=5)], round_id=ROUND)
        assert claim(queue, "ada").prompt.messages[0].content == "Say p50."


def test_uncertain_comparisons_move_to_the_front(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3)
        comparisons = {c.prompt.messages[0].content: c.id for c in store.comparisons(purpose="train", round_id=ROUND)}
        assert queue.prioritise({comparisons["Say p2."]: 0.9, "nowhere": 1.0}) == 1
        assert claim(queue, "ada").prompt.messages[0].content == "Say p2."


def test_the_same_submission_twice_is_one_label_with_one_receipt(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2)
        got = claim(queue, "ada")
        receipts = [queue.submit(got.id, "ada", shown(got, A_BETTER), client_key="k") for _ in range(2)]
        assert receipts[0] == receipts[1]
        assert store.counts()["preferences"] == 1
        with pytest.raises(StaleError, match="'k' names another answer"):
            queue.submit(got.id, "ada", shown(got, B_BETTER), client_key="k")


def test_a_second_tab_cannot_answer_again_nor_overwrite_a_draft(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2)
        got = claim(queue, "ada")
        version = queue.save_draft(got.id, "ada", {"rationale": "first tab"}, version=0)
        with pytest.raises(StaleError, match="changed in another tab"):
            queue.save_draft(got.id, "ada", {"rationale": "second tab"}, version=0)
        assert claim(queue, "ada").draft == {"rationale": "first tab"}
        queue.save_draft(got.id, "ada", {"rationale": "first tab again"}, version=version)
        queue.submit(got.id, "ada", shown(got, A_BETTER), client_key="one")
        with pytest.raises(StaleError, match="submitted already, perhaps in another tab"):
            queue.submit(got.id, "ada", shown(got, A_BETTER), client_key="two")


def test_an_expired_lease_goes_to_somebody_else_and_a_late_answer_is_refused(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, config=plain(lease_s=0.05))
        late = claim(queue, "ada")
        time.sleep(0.1)
        assert queue.sweep() == 1
        other = claim(queue, "bob")
        with pytest.raises(StaleError, match="others have this task now"):
            queue.submit(late.id, "ada", shown(late, A_BETTER), client_key="late")
        with pytest.raises(StaleError, match="this task is expired"):
            queue.heartbeat(late.id, "ada")
        queue.submit(other.id, "bob", shown(other, B_BETTER), client_key="bob")
        assert_places_add_up(store)


def test_a_late_answer_counts_while_its_place_is_still_free(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, config=plain(lease_s=0.05))
        late = claim(queue, "ada")
        time.sleep(0.1)
        queue.sweep()
        queue.submit(late.id, "ada", shown(late, A_BETTER), client_key="late")
        assert isinstance(queue.claim("bob"), Nothing)
        assert_places_add_up(store)


def test_a_draft_survives_its_lease(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3, config=plain(lease_s=0.05))
        got = claim(queue, "ada")
        queue.save_draft(got.id, "ada", {"rationale": "half a th"}, version=0)
        time.sleep(0.1)
        queue.sweep()
        again = claim(queue, "ada")
        assert (again.id, again.draft, again.order) == (got.id, {"rationale": "half a th"}, got.order)


def test_a_heartbeat_keeps_a_lease(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, config=plain(lease_s=600))
        got = claim(queue, "ada")
        for _ in range(3):
            with store.writing() as session:  # as if five minutes had gone by
                row = session.get_one(AssignmentRow, got.id)
                row.lease_until -= timedelta(seconds=300)
            queue.heartbeat(got.id, "ada")
            assert queue.sweep() == 0


def test_a_skip_needs_a_reason_and_goes_to_the_others(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1)
        got = claim(queue, "ada")
        with pytest.raises(DataError, match="needs a reason"):
            queue.skip(got.id, "ada", "  ")
        queue.skip(got.id, "ada", "not my language")
        queue.skip(got.id, "ada", "not my language")
        assert isinstance(queue.claim("ada"), Nothing)
        assert claim(queue, "bob").task_id == got.task_id
        assert_places_add_up(store)


def test_a_task_that_nobody_wants_waits_for_a_lead(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1)
        for person in PEOPLE[:SKIPS_TO_PAUSE]:
            queue.skip(claim(queue, person).id, person, "broken")
        assert isinstance(queue.claim(PEOPLE[SKIPS_TO_PAUSE]), Nothing)
        change_tasks(store, [1], state="open", by=OPERATOR)
        assert claim(queue, PEOPLE[SKIPS_TO_PAUSE]).task_id == 1


def test_undo_brings_the_answer_back_as_a_draft_and_keeps_the_trace(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3)
        first = finish(queue, "ada", A_BETTER)
        held = claim(queue, "ada")
        queue.save_draft(held.id, "ada", {"rationale": "begun"}, version=0)
        back = queue.undo("ada")
        assert back is not None
        assert (back.id, back.order) == (first.id, first.order)
        assert back.draft is not None
        assert back.draft["value"]["tiers"] == [[first.order.index(0)], [first.order.index(1)]]
        assert store.counts()["preferences"] == 0
        assert_places_add_up(store)
        queue.submit(back.id, "ada", shown(back, B_BETTER), client_key="second thought")
        assert claim(queue, "ada").draft == {"rationale": "begun"}
        with store.reading() as session:
            assert [row.undone_at is None for row in session.scalars(select(LabelRow).order_by(LabelRow.id))] == [
                False,
                True,
            ]
        assert_places_add_up(store)


def test_undo_with_nothing_to_undo(url: str) -> None:
    with LabelStore(url) as store:
        assert queue_of(store, 1).undo("ada") is None


def test_an_undone_key_does_not_come_back(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1)
        got = finish(queue, "ada", A_BETTER, key="k")
        queue.undo("ada")
        with pytest.raises(StaleError, match="or an undone one"):
            queue.submit(got.id, "ada", shown(got, A_BETTER), client_key="k")


def test_disputed_comparisons_get_one_more_person_and_then_an_adjudicator(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2, overlap=2, config=plain(max_overlap=3))
        for person, value in (("ada", A_BETTER), ("bob", B_BETTER)):
            finish(queue, person, value)
            finish(queue, person, A_BETTER)
        assert [(t.overlap, t.free) for t in task_rows(store)] == [(3, 1), (2, 0)]
        assert finish(queue, "cyd", TIE).task_id == 1
        assert isinstance(queue.claim("dee"), Nothing)
        ruling = queue.claim("dee", kinds=("adjudicate",))
        assert isinstance(ruling, Assigned)
        queue.submit(ruling.id, "dee", shown(ruling, A_BETTER), client_key="ruling")
        assert [t.kind for t in task_rows(store)] == ["compare", "compare", "adjudicate"]


def test_an_adjudicator_reads_what_the_others_said_and_not_who_they_are(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, overlap=2, config=plain(max_overlap=2))
        for person, value in (("bob", B_BETTER), ("ada", A_BETTER)):
            got = claim(queue, person)
            assert got.votes == ()
            queue.submit(got.id, person, shown(got, value), client_key=got.id, rationale=" yes ")
        comparison_id = task_rows(store)[0].comparison_id
        assert comparison_id is not None
        store.add_raters("model", {"judge": {}})
        store.answer([Submission(Preference(comparison_id, "judge", ((0,), (1,)), 3), (0, 1))])
        ruling = queue.claim("dee", kinds=("adjudicate",))
        assert isinstance(ruling, Assigned)
        assert ruling.votes == (Vote("A better", "yes"), Vote("B better", "yes"))


def test_a_majority_is_no_dispute(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, overlap=3, config=plain(max_overlap=5))
        for person, value in zip(PEOPLE, (A_BETTER, B_BETTER, A_BETTER), strict=False):
            finish(queue, person, value)
        assert isinstance(queue.claim("dee"), Nothing)


def gold(store: LabelStore, queue: LabelQueue, num: int) -> None:
    comparisons = fill(store, num, purpose="gold", first=100)
    queue.add([NewTask("compare", c, answer=A_BETTER) for c in comparisons], round_id=ROUND)


def account(store: LabelStore, person: str) -> AccountRow:
    with store.reading() as session:
        return session.get_one(AccountRow, person)


def open_account(store: LabelStore, person: str) -> None:
    with store.writing() as session:
        session.execute(
            text(
                "INSERT INTO accounts (rater_id, name, password, role, state, reason, created_at)"
                " VALUES (:p, :p, '', 'labeler', 'active', '', '2026-01-01 00:00:00')"
            ),
            {"p": person},
        )


def test_newcomers_answer_gold_tasks_first_and_who_fails_is_paused(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 9, config=plain(exam_tasks=3))
        gold(store, queue, 3)
        for person in ("ada", "bob"):
            open_account(store, person)
        for value in (A_BETTER, A_BETTER, A_BETTER):
            finish(queue, "ada", value)
        for value in (A_BETTER, B_BETTER, TIE):
            finish(queue, "bob", value)
        assert claim(queue, "ada").task_id == 1
        assert queue.claim("bob") == Nothing(
            "this account is paused: 1 of 3 questions with known answers were right; a lead will look at it"
        )
        assert [j.purpose for j in store.preferences(purpose="train")] == []
        assert len(list(store.preferences(purpose="gold"))) == 6


def test_gold_tasks_come_in_between_and_slipping_pauses(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3, config=plain(gold_frac=1, pause_after=2))
        gold(store, queue, 2)
        open_account(store, "ada")
        finish(queue, "ada", B_BETTER)
        assert account(store, "ada").state == "active"
        finish(queue, "ada", B_BETTER)
        assert account(store, "ada").state == "paused"


def test_a_gold_task_needs_a_gold_comparison_and_an_answer_that_fits(url: str) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain())
        (train,) = fill(store, 1)
        (known,) = fill(store, 1, purpose="gold")
        with pytest.raises(DataError, match="is for 'train', not 'gold'"):
            queue.add([NewTask("compare", train, answer=A_BETTER)], round_id=ROUND)
        with pytest.raises(DataError, match="each of the 2 answers"):
            queue.add([NewTask("compare", known, answer={"tiers": [[0], [2]]})], round_id=ROUND)


def test_a_repeat_comes_with_its_sides_swapped_and_trains_nothing(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, REPEAT_DISTANCE + 2, config=plain(repeat_frac=1))
        seen = [finish(queue, "ada", A_BETTER) for _ in range(REPEAT_DISTANCE + 1)]
        repeat = finish(queue, "ada", B_BETTER)
        assert (repeat.task_id, repeat.order) == (seen[0].task_id, seen[0].order[::-1])
        trained = list(store.preferences(purpose="train"))
        assert len(trained) == REPEAT_DISTANCE + 1
        assert all(j.preference.tiers == ((0,), (1,)) for j in trained)
        assert_places_add_up(store)


def test_nobody_may_answer_more_than_the_cap(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 3, config=plain(person_cap=2))
        for _ in range(2):
            finish(queue, "ada", A_BETTER)
        assert queue.claim("ada") == Nothing("you have answered 2 tasks, which is all one person may")
        assert claim(queue, "bob").task_id == 3


def test_strangers_and_other_peoples_assignments_are_refused(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1)
        with pytest.raises(StoreError, match="rater 'eve' is unknown"):
            queue.claim("eve")
        got = claim(queue, "ada")
        meddling: list[Callable[[], object]] = [
            lambda: queue.submit(got.id, "bob", shown(got, A_BETTER), client_key="k"),
            lambda: queue.save_draft(got.id, "bob", {"rationale": "not mine"}, version=0),
            lambda: queue.heartbeat(got.id, "bob"),
            lambda: queue.skip(got.id, "bob", "not mine"),
        ]
        for meddle in meddling:
            with pytest.raises(DataError, match=r"no assignment .* of yours"):
                meddle()
        with pytest.raises(StoreError, match="names the comparison 'nowhere', which is not stored"):
            queue.add([NewTask("compare", "nowhere")], round_id=ROUND)


def test_labels_name_the_guideline_that_was_shown(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2)
        finish(queue, "ada", A_BETTER)
        assert queue.add_guideline("Prefer the shorter.", author_id="bob") == 1
        finish(queue, "ada", A_BETTER)
        assert queue.guideline() == (1, "Prefer the shorter.")
        with store.reading() as session:
            assert list(session.scalars(select(LabelRow.guideline).order_by(LabelRow.id))) == [None, 1]


def test_the_other_kinds_of_task_end_as_labels_of_their_kind(url: str) -> None:
    values: dict[str, dict[str, object]] = {
        "rate": {"axes": {"helpful": 7}, "flags": ["hallucination"]},
        "edit": {"text": "A better x p0 \u4f60\u597d \U0001f600"},
        "write": {"text": "A demonstration."},
        "review": {"steps": ["good", "bad"]},
    }
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain())
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "third p0", 2)])
        details = {"rate": {"axes": ["helpful"], "flags": ["hallucination"]}, "review": {"steps": ["a", "b"]}}
        queue.add(
            [NewTask(kind, "p0" if kind == "write" else sample, details=details.get(kind, {})) for kind in values],  # type: ignore[arg-type]
            round_id=ROUND,
        )
        for kind, value in values.items():
            got = claim(queue, "ada")
            assert got.kind == kind
            assert got.answers == (() if kind == "write" else ("third p0",))
            queue.submit(got.id, "ada", value, client_key=kind)
        (edit,) = store.edits()
        assert (edit.original, edit.text) == ("third p0", "A better x p0 \u4f60\u597d \U0001f600")
        with store.reading() as session:
            stored = {row.kind: row.value for row in session.scalars(select(LabelRow))}
        assert stored == values


def test_the_audit_chain_notices_a_changed_event_and_a_missing_one(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 4)
        for _ in range(4):
            finish(queue, "ada", A_BETTER)
        with store.reading() as session:
            assert audit.first_broken(session) is None
            assert [e.action for e in audit.events(session)] == ["label"] * 4
        with store.writing() as session:
            session.get_one(EventRow, 2).actor = "bob"
        with store.reading() as session:
            assert audit.first_broken(session) == 2
        with store.writing() as session:
            session.get_one(EventRow, 2).actor = "ada"
            session.delete(session.get_one(EventRow, 3))
        with store.reading() as session:
            assert audit.first_broken(session) == 3


def test_people_who_label_at_the_same_moment_lose_nothing_and_overfill_nothing(url: str) -> None:
    with LabelStore(url) as store:
        queue_of(store, 30, overlap=2)
    failures: list[Exception] = []

    def shift(person: str) -> None:
        try:
            with LabelStore(url) as own:
                queue = LabelQueue(own, plain())
                while not isinstance(got := queue.claim(person), Nothing):
                    queue.submit(got.id, person, shown(got, A_BETTER), client_key=got.id)
        except Exception as e:  # noqa: BLE001 - the thread reports whatever went wrong
            failures.append(e)

    threads = [threading.Thread(target=shift, args=(person,)) for person in PEOPLE]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    with LabelStore(url) as store:
        assert store.counts()["preferences"] == 60
        assert {(t.done, t.free) for t in task_rows(store)} == {(2, 0)}
        assert_places_add_up(store)
        with store.reading() as session:
            assert audit.first_broken(session) is None


def test_the_next_task_is_found_through_its_index_on_sqlite(tmp_path: Path) -> None:
    """With 100,000 tasks a scan for every claim took 19 ms of the server's time."""
    with LabelStore(sqlite_url(tmp_path / "labels.db")) as store:
        queue = queue_of(store, 30)
        finish(queue, "ada", A_BETTER)
        asked: list[tuple[str, Any]] = []
        with store.reading() as session:
            engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", lambda c, cursor, sql, values, *_: asked.append((sql, values)))
        claim(queue, "ada")
        searches = [(sql, values) for sql, values in asked if "FROM tasks" in sql and "ORDER BY" in sql]
        assert searches
        with store.reading() as session:
            for sql, values in searches:
                plan = [row[-1] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
                assert not any(step.startswith("SCAN tasks") and "INDEX" not in step for step in plan), plan
