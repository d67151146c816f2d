from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update
from workbench import (
    A_BETTER,
    B_BETTER,
    PEOPLE,
    ROUND,
    TIE,
    answer,
    assert_places_add_up,
    claim,
    everything,
    fill,
    finish,
    plain,
    queue_of,
    shown,
    talked,
)

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AssignmentRow, EventRow, LabelRow, TaskRow
from postgrad.errors import AccessError, StaleError, StoreError
from postgrad.feedback import audit, passwords
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask, Nothing
from postgrad.feedback.turns import STAGE

MARKER = "xyzzy-marker"
PASSWORD = "a horse, a staple"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))


@pytest.fixture
def store(url: str) -> Iterator[LabelStore]:
    with LabelStore(url) as opened:
        yield opened


def shift(store: LabelStore, person: str) -> LabelQueue:
    """Everything that a person can write: a label of each kind, an undone one, a skip and a draft."""
    queue = LabelQueue(store, plain())
    comparisons = fill(store, 5)
    (sample,) = store.add_samples([answer("p0", "third p0", 2)])
    (reply,) = store.add_samples([replace(answer("p0", f"You said {MARKER}."), stage=STAGE)])
    turn = {"message": f"hello {MARKER}", "candidates": [reply], "order": [0], "chosen": 0}
    work: list[tuple[NewTask, dict[str, Any]]] = [
        (NewTask("compare", comparisons[0], overlap=2), A_BETTER),
        (NewTask("compare", comparisons[1]), {"tiers": [], "cannot_judge": f"because {MARKER}"}),
        (NewTask("rate", sample, details={"axes": ["helpful"]}), {"axes": {"helpful": 7}}),
        (NewTask("review", sample, details={"steps": ["a"]}), {"steps": ["good"]}),
        (NewTask("edit", sample), {"text": f"better {MARKER}"}),
        (NewTask("write", "p0"), {"text": f"a demonstration {MARKER}"}),
        (NewTask("converse", "p0"), {"turns": [turn]}),
        (NewTask("redteam", "p0", details={"harms": ["x"]}), {"turns": [turn], "severity": 1, "harms": ["x"]}),
    ]
    for task, value in work:
        queue.add([task], round_id=ROUND)
        got = claim(queue, person)
        queue.save_draft(got.id, person, {"text": f"half a thought {MARKER}"}, version=0)
        placed = shown(got, value) if task.kind == "compare" else value
        if "turns" in value:
            placed = value | talked(store, got, value["turns"])
        queue.submit(
            got.id, person, placed, client_key=f"{MARKER} {got.id}", rationale=f"why: {MARKER}", milliseconds=1234
        )
    queue.add([NewTask("compare", c) for c in comparisons[2:]], round_id=ROUND)
    finish(queue, person, {"tiers": [], "cannot_judge": f"undone {MARKER}"})
    queue.undo(person)
    queue.skip(claim(queue, person).id, person, f"no idea {MARKER}")
    finish(queue, person, B_BETTER)
    got = claim(queue, person)
    queue.save_draft(got.id, person, {"text": f"half a thought {MARKER}"}, version=0)
    return queue


def labels(store: LabelStore, person: str) -> dict[str, list[tuple[bool, dict[str, object]]]]:
    """By kind: whether it stands, and its value."""
    found: dict[str, list[tuple[bool, dict[str, object]]]] = {}
    with store.reading() as session:
        for row in session.scalars(select(LabelRow).where(LabelRow.rater_id == person).order_by(LabelRow.id)):
            found.setdefault(row.kind, []).append((row.undone_at is None, row.value))
    return found


@pytest.mark.parametrize("keep_labels", [True, False])
def test_nothing_that_an_erased_person_wrote_is_left(store: LabelStore, url: str, keep_labels: bool) -> None:
    people = People(store)
    ada = people.add(f"Ada {MARKER}", PASSWORD, "labeler", by=OPERATOR)
    people.make_token(f"laptop {MARKER}", "labeler", 30, by=ada)
    queue = shift(store, ada.id)
    people.pause(ada.id, f"left us {MARKER}", by=OPERATOR)
    queue.submit(claim(queue, "bob").id, "bob", A_BETTER, client_key="bob", rationale="of bob")
    before = everything(url)
    assert before.count(MARKER) > 20
    removed = people.erase(ada.id, keep_labels=keep_labels, by=OPERATOR)
    assert removed == (4 if keep_labels else 9)
    after = everything(url)
    assert MARKER not in after
    assert ada.id in after
    assert "of bob" in after
    assert_places_add_up(store)
    with store.reading() as session:
        last = next(audit.events(session, limit=1))
    assert (last.action, last.object) == ("erase", f"account {ada.id}")
    assert last.details == {"keep_labels": keep_labels, "removed": removed}
    assert people.find(ada.id).name == ada.id


def test_a_sqlite_file_holds_no_trace_of_an_erased_person(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    with LabelStore(sqlite_url(path)) as store:
        # Some builds of SQLite overwrite what they delete by themselves.
        event.listen(store._engine, "connect", lambda c, _: c.execute("PRAGMA secure_delete=OFF").close())
        store._engine.dispose()
        people = People(store)
        ada = people.add(f"Ada {MARKER}", PASSWORD, "labeler", by=OPERATOR)
        shift(store, ada.id)
        assert any(MARKER.encode() in file.read_bytes() for file in tmp_path.iterdir())
        people.erase(ada.id, keep_labels=True, by=OPERATOR)
        assert [file.name for file in tmp_path.iterdir() if MARKER.encode() in file.read_bytes()] == []
        assert store.counts()["prompts"] == 5


def test_a_reader_that_keeps_the_old_pages_alive_is_named(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    with LabelStore(url, busy_timeout_s=0.1) as store, LabelStore(url) as other:
        people = People(store)
        ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
        with other.reading() as session:
            assert session.scalars(select(EventRow)).all()
            with pytest.raises(StoreError, match="being read by another process"):
                people.erase(ada.id, keep_labels=True, by=OPERATOR)
        assert people.find(ada.id).state == "erased"
        assert people.erase(ada.id, keep_labels=True, by=OPERATOR) == 0


def test_judgements_survive_with_keep_labels_and_texts_do_not(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    shift(store, ada.id)
    preferences = [j.preference.tiers for j in store.preferences(purpose="train", rater_id=ada.id)]
    people.erase(ada.id, keep_labels=True, by=OPERATOR)
    kept = list(store.preferences(purpose="train", rater_id=ada.id))
    assert [j.preference.tiers for j in kept] == preferences == [((0,), (1,)), (), ((1,), (0,))]
    assert [j.preference.rationale for j in kept] == ["", "", ""]
    assert list(store.edits()) == []
    found = labels(store, ada.id)
    assert found["rate"] == [(True, {"axes": {"helpful": 7}, "flags": []})]
    assert found["review"] == [(True, {"steps": ["good"]})]
    assert [found[kind] for kind in ("edit", "write", "converse", "redteam")] == [[(False, {})]] * 4
    assert [stands for stands, _ in found["compare"]] == [True, True, False, True]


def test_without_keep_labels_every_label_is_a_tombstone(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    shift(store, ada.id)
    people.erase(ada.id, keep_labels=False, by=OPERATOR)
    assert {(stands, str(value)) for rows in labels(store, ada.id).values() for stands, value in rows} == {
        (False, "{}")
    }
    with store.reading() as session:
        assert set(session.scalars(select(LabelRow.milliseconds))) == {None}
    assert store.counts()["preferences"] == 0


def test_places_that_come_back_go_to_somebody_else(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    queue = shift(store, ada.id)
    for person in PEOPLE:
        while not isinstance(got := queue.claim(person, kinds=("compare",)), Nothing):
            queue.submit(got.id, person, A_BETTER, client_key=got.id)
    assert isinstance(queue.claim("dee", kinds=("compare",)), Nothing)
    people.erase(ada.id, keep_labels=False, by=OPERATOR)
    while not isinstance(got := queue.claim("dee", kinds=("compare",)), Nothing):
        queue.submit(got.id, "dee", A_BETTER, client_key=got.id)
    assert len({j.preference.comparison_id for j in store.preferences(purpose="train")}) == 5
    assert_places_add_up(store)
    with store.reading() as session:
        compared = session.scalars(select(TaskRow).where(TaskRow.kind == "compare")).all()
        assert {(task.done, task.free) for task in compared} == {(1, 0), (2, 0)}


def test_what_an_erased_person_held_can_be_neither_answered_nor_drafted_nor_claimed(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    token = people.sign_in("Ada", PASSWORD)
    queue = shift(store, ada.id)
    got = claim(queue, ada.id)
    people.erase(ada.id, keep_labels=True, by=OPERATOR)
    with pytest.raises(StaleError, match="erased"):
        queue.save_draft(got.id, ada.id, {"text": MARKER}, version=1)
    with pytest.raises(StaleError, match="erased"):
        queue.submit(got.id, ada.id, A_BETTER, client_key="late")
    assert queue.claim(ada.id) == Nothing("this account is erased: ")
    with pytest.raises(AccessError):
        people.who(token)
    with pytest.raises(AccessError, match="wrong"):
        people.sign_in("Ada", PASSWORD)
    with pytest.raises(AccessError, match="wrong"):
        people.sign_in(ada.id, "")


def test_an_expired_lease_gives_its_place_back_once(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    queue = queue_of(store, 1)
    got = claim(queue, ada.id)
    with store.writing() as session:
        session.execute(update(AssignmentRow).values(lease_until=datetime(2026, 1, 1, tzinfo=UTC)))
    assert queue.sweep() == 1
    people.erase(ada.id, keep_labels=True, by=OPERATOR)
    assert_places_add_up(store)
    with pytest.raises(StaleError, match="erased"):
        queue.submit(got.id, ada.id, TIE, client_key="late")


def test_gold_and_repeats_give_no_place_back(store: LabelStore) -> None:
    people = People(store)
    ada = people.add("Ada", PASSWORD, "labeler", by=OPERATOR)
    queue = LabelQueue(store, plain(repeat_frac=1))
    queue.add([NewTask("compare", c, overlap=2) for c in fill(store, 11)], round_id=ROUND)
    for _ in range(12):
        finish(queue, ada.id, A_BETTER)
    exam = LabelQueue(store, plain(gold_frac=1))
    exam.add([NewTask("compare", c, answer=A_BETTER) for c in fill(store, 1, purpose="gold", first=50)], round_id=ROUND)
    finish(exam, ada.id, A_BETTER)
    assert people.erase(ada.id, keep_labels=False, by=OPERATOR) == 13
    assert_places_add_up(store)
    with store.reading() as session:
        assert {(task.done, task.free) for task in session.scalars(select(TaskRow).where(~TaskRow.gold))} == {(0, 2)}
        rows = session.execute(select(AssignmentRow.state, AssignmentRow.correct)).all()
        assert {(row.state, row.correct) for row in rows} == {("erased", None)}
