"""Gold tasks: made of agreed comparisons or of a file, kept out of training, watched and retired."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from tiny_round import call
from workbench import A_BETTER, B_BETTER, PEOPLE, ROUND, TIE, answer, claim, fill, finish, plain, queue_of, shown

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AssignmentRow, ComparisonRow, EventRow, TaskRow
from postgrad.errors import DataError
from postgrad.feedback import audit
from postgrad.feedback.exports import export_labels
from postgrad.feedback.gold import Agreed, agreed, gold_tasks, make_gold, retire
from postgrad.feedback.imports import Settings, import_labels
from postgrad.feedback.pages import Filters
from postgrad.feedback.people import OPERATOR
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask, Nothing
from postgrad.feedback.values import Kind
from postgrad.types import Preference

Capture = pytest.CaptureFixture[str]
CANNOT = {"tiers": [], "cannot_judge": "I do not know."}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


def said(store: LabelStore, comparison_id: str, **values: dict[str, Any]) -> None:
    """What people said of a comparison, without the queue."""
    store.add_raters("human", {person: {} for person in values})
    for person, value in values.items():
        given = Preference(
            comparison_id, person, tuple(map(tuple, value["tiers"])), rationale=value.get("cannot_judge", "")
        )
        store.answer([Submission(given, (0, 1))])


def trained_on(store: LabelStore) -> set[str]:
    return {j.preference.comparison_id for j in store.preferences(purpose="train", judges=True)}


def test_what_people_agree_on_or_an_adjudicator_ruled_has_a_known_answer(url: str) -> None:
    with LabelStore(url) as store:
        one, split, tied, unsure, ruled, judged = fill(store, 6)
        said(store, one, ada=A_BETTER, bob=A_BETTER, cyd=A_BETTER)
        said(store, split, ada=A_BETTER, bob=A_BETTER, cyd=B_BETTER)
        said(store, tied, ada=TIE, bob=TIE, cyd=TIE)
        said(store, unsure, ada=A_BETTER, bob=A_BETTER, cyd=A_BETTER, dee=CANNOT)
        said(store, ruled, ada=A_BETTER, bob=B_BETTER)
        queue = LabelQueue(store, plain())
        queue.add([NewTask("adjudicate", ruled)], round_id=ROUND)
        ruling = queue.claim("cyd", kinds=("adjudicate",))
        assert not isinstance(ruling, Nothing)
        queue.submit(ruling.id, "cyd", shown(ruling, B_BETTER), client_key="ruling")
        store.add_raters("model", {f"m{i}": {} for i in range(3)})
        for i in range(3):
            store.answer([Submission(Preference(judged, f"m{i}", ((0,), (1,))), (0, 1))])
        both = {Agreed(one, ROUND, "compare", ((0,), (1,)), 3), Agreed(ruled, ROUND, "compare", ((1,), (0,)), 2)}
        assert set(agreed(store, min_people=2)) == both
        assert [a.comparison_id for a in agreed(store, min_people=3, round_id=ROUND)] == [one]
        assert agreed(store, min_people=4) == []
        store.add_round("0002-other", recipe="test")
        assert agreed(store, min_people=1, round_id="0002-other") == []


def test_what_became_gold_is_never_trained_on_again(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 2, overlap=3)
        for person in PEOPLE[:2]:
            finish(queue, person, A_BETTER)
            finish(queue, person, A_BETTER)
        sides = [c.sources for c in store.comparisons(purpose="train")]
        gold, kept = sorted(trained_on(store), key=lambda i: i != agreed(store, min_people=2)[0].comparison_id)
        assert make_gold(store, agreed(store, min_people=2)[:1], by=OPERATOR) == 1
        assert trained_on(store) == {kept}
        assert [c.id for c in store.comparisons(purpose="train")] == [kept]
        store.ask(sides, purpose="train", round_id=ROUND)
        assert [c.id for c in store.comparisons(purpose="train")] == [kept], "a resumed stage asks the same again"
        said(store, gold, stranger=B_BETTER)
        assert trained_on(store) == {kept}, "nor is what is said of it later"
        for format_name in ("trl-preference", "hh"):
            export_labels(store, tmp_path / format_name, format_name, filters=Filters(), valid_share=0.0)
            rows = (tmp_path / format_name / "train.jsonl").read_text().splitlines()
            assert len(rows) == 2, format_name
        with store.reading() as session:
            assert audit.first_broken(session) is None
            assert session.scalars(select(EventRow.object).where(EventRow.action == "gold")).all() == [
                f"comparison {gold}"
            ]


def test_newcomers_are_asked_what_became_gold_and_those_who_made_it_are_not(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, overlap=4)
        for person in ("ada", "bob", "cyd"):
            finish(queue, person, A_BETTER)
        make_gold(store, agreed(store, min_people=3), by=OPERATOR)
        exam = LabelQueue(store, plain(gold_frac=1))
        assert isinstance(exam.claim("ada"), Nothing)
        got = finish(exam, "dee", B_BETTER)
        assert isinstance(exam.claim("dee"), Nothing), "the task for training is closed"
        with store.reading() as session:
            row = session.get_one(AssignmentRow, got.id)
            assert (row.gold, row.correct) == (True, False)


def test_a_backup_of_made_gold_comes_back_as_gold(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 1, overlap=2)
        for person in ("ada", "bob"):
            finish(queue, person, A_BETTER)
        make_gold(store, agreed(store, min_people=2), by=OPERATOR)
        finish(LabelQueue(store, plain(gold_frac=1)), "cyd", A_BETTER)
        export_labels(store, tmp_path / "out", "native", filters=Filters(), valid_share=0.0)
    (written,) = (tmp_path / "out").glob("*.jsonl")
    with LabelStore(sqlite_url(tmp_path / "again.db")) as store:
        assert import_labels(store, written, "native").labels == 3
        assert trained_on(store) == set()
        with store.reading() as session:
            assert session.scalars(select(ComparisonRow.purpose)).all() == ["gold"]
        assert len(list(store.preferences(purpose="gold"))) == 3


def answered_gold(store: LabelStore, *, num: int, bad: set[int]) -> None:
    """Nine good people and three careless ones on gold tasks of which some have the wrong answer."""
    people = {f"good{i}": 0.95 for i in range(9)} | {f"careless{i}": 0.5 for i in range(3)}
    store.add_raters("human", {person: {} for person in people})
    queue = LabelQueue(store, plain(gold_frac=1, pause_after=1000))
    comparisons = fill(store, num, purpose="gold")
    known = [B_BETTER if i in bad else A_BETTER for i in range(num)]
    queue.add([NewTask("compare", c, answer=a) for c, a in zip(comparisons, known, strict=True)], round_id=ROUND)
    dice = random.Random(0)
    for person, skill in people.items():
        for _ in range(num):
            finish(queue, person, A_BETTER if dice.random() < skill else B_BETTER)


def test_a_planted_wrong_answer_is_flagged_and_retiring_it_pauses_nobody(tmp_path: Path, capsys: Capture) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    with LabelStore(url) as store:
        answered_gold(store, num=12, bad={4, 9})
        found = gold_tasks(store)
        assert [task.id for task in found if task.bad] == [5, 10] == [task.id for task in found[:2]]
        assert all(t.right and t.competent_right and t.right.num == 12 for t in found)
        assert found[-1].right.value < found[-1].competent_right.value  # type: ignore[union-attr]
        assert found[0].competent_right.num == 9  # type: ignore[union-attr]
        with pytest.raises(DataError, match="there is no gold task 99"):
            retire(store, [5, 99], by=OPERATOR)
    code, out, err = call(capsys, "label", "gold", "retire", 5, 10, "--db", url)
    assert (code, out, err) == (0, "retired: 5, 10\n", "")
    out = call(capsys, "label", "gold", "list", "--db", url)[1]
    assert out.count("most competent people get it wrong") == out.count("retired") == 2
    with LabelStore(url) as store:
        fresh = LabelQueue(store, plain(exam_tasks=4, exam_pass=1.0))
        store.add_raters("human", {"new": {}})
        asked = [finish(fresh, "new", A_BETTER).task_id for _ in range(4)]
        assert asked == [1, 2, 3, 4]
        retire(store, [4], by=OPERATOR)
        assert claim(fresh, "new").task_id == 6, "one more takes the place of the one that no longer counts"


def test_a_person_with_too_few_other_results_says_nothing_of_a_gold_task(url: str) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain(gold_frac=1))
        comparisons = fill(store, 3, purpose="gold")
        queue.add([NewTask("compare", c, answer=A_BETTER) for c in comparisons], round_id=ROUND)
        for person in PEOPLE:
            finish(queue, person, B_BETTER)
            finish(queue, person, A_BETTER)
        first = gold_tasks(store)[0]
        assert (first.right.value, first.competent_right, first.bad) == (0.0, None, False)  # type: ignore[union-attr]


def test_a_file_of_questions_with_answers_becomes_gold(url: str, tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    rows = [
        {"prompt": "2 + 2?", "answers": ["4", "5"], "best": 0},
        {"prompt": "Sky?", "answers": ["red", "green", "blue"], "best": 2},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with LabelStore(url) as store:
        for tasks in (2, 0):
            assert import_labels(store, path, "questions", Settings(gold=True)).tasks == tasks
        assert trained_on(store) == set()
        with store.reading() as session:
            tasks = session.scalars(select(TaskRow).order_by(TaskRow.id)).all()
            assert [(t.kind, t.gold, t.answer["tiers"]) for t in tasks] == [  # type: ignore[index]
                ("compare", True, [[0], [1]]), ("rank", True, [[2], [0, 1]]),
            ]  # fmt: skip
        store.add_raters("human", {"ada": {}})
        finish(LabelQueue(store, plain(gold_frac=1)), "ada", A_BETTER)
        assert [t.right.value for t in gold_tasks(store) if t.right] == [1.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "?", "answers": ["a", "b"]}, "line 1: a gold question needs its answer"),
        ({"prompt": "?", "answers": ["a"], "best": 0}, "'answers' must hold two or more texts"),
        ({"prompt": "?", "answers": ["a", "b"], "best": 2}, "'best' must be the index of an answer, 0 to 1"),
        ({"prompt": "?", "answers": ["a", "b"], "best": True}, "'best' must be the index"),
        ({"prompt": "?", "answers": ["a", "a"], "best": 0}, "the answers are the same"),
    ],
)
def test_a_question_without_a_clear_answer_is_refused(
    tmp_path: Path, capsys: Capture, row: dict[str, Any], said: str
) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text(json.dumps(row) + "\n")
    arguments = ("label", "import", path, "--workspace", tmp_path, "--gold", "--format")
    code, _, err = call(capsys, *arguments, "questions")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert "--gold needs questions with their answers" in call(capsys, *arguments, "prompts")[2]


def test_the_command_makes_gold_and_says_how_much(url: str, capsys: Capture) -> None:
    with LabelStore(url) as store:
        for comparison_id in fill(store, 5):
            said(store, comparison_id, ada=A_BETTER, bob=A_BETTER, cyd=A_BETTER)
    code, out, err = call(capsys, "label", "gold", "make", 2, "--db", url)
    assert (code, err) == (0, "")
    assert out == "2 of 5 comparisons with a known answer are gold now, and no longer trained on\n"
    with LabelStore(url) as store:
        assert len(trained_on(store)) == 3
    assert "0 of 0" in call(capsys, "label", "gold", "make", 2, "--db", url, "--min-people", 4)[1]


ANSWERS: dict[Kind, tuple[dict[str, Any], dict[str, Any]]] = {
    "edit": ({}, {"text": "x p0!"}),
    "write": ({}, {"text": "Mine."}),
    "converse": ({}, {"turns": [{"message": "Hi", "candidates": ["a"], "order": [0], "chosen": 0}]}),
    "redteam": (
        {"harms": ["insult"]},
        {"turns": [{"message": "Hi", "candidates": ["a"], "order": [0], "chosen": 0}], "severity": 0},
    ),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_kinds_of_which_many_answers_are_right_are_no_gold(url: str, kind: Kind) -> None:
    details, known = ANSWERS[kind]
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain(gold_frac=1))
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "x p0", 3)])
        task = NewTask(kind, sample if kind == "edit" else "p0", details=details, answer=known)
        with pytest.raises(DataError, match=f"of kind {kind} are right, so that none is known; make gold of compare,"):
            queue.add([task], round_id=ROUND)


@pytest.mark.parametrize(
    ("kind", "details", "known", "wrong"),
    [
        ("rate", {"axes": ["clear"], "flags": ["rude"]}, {"axes": {"clear": 6}}, {"axes": {"clear": 4}}),
        ("review", {"steps": ["one", "two"]}, {"steps": ["good", "bad"]}, {"steps": ["good", "good"]}),
    ],
)
def test_gold_of_the_other_kinds_tells_right_from_wrong(
    url: str, kind: Kind, details: dict[str, Any], known: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain(gold_frac=1))
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "x p0", 3)])
        queue.add([NewTask(kind, sample, details=details, answer=known)], round_id=ROUND)
        finish(queue, "ada", known)
        finish(queue, "bob", wrong)
        (task,) = gold_tasks(store)
        assert task.right is not None
        assert (task.right.value, task.right.num) == (0.5, 2)


def test_a_gold_edit_of_an_earlier_version_loses_no_label_and_is_asked_no_more(url: str) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain(gold_frac=1, pause_after=1))
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "x p0", 3)])
        queue.add([NewTask("edit", sample)], round_id=ROUND)
        got = claim(queue, "ada")
        with store.writing() as session:
            session.execute(update(TaskRow).values(gold=True, answer={"text": "x p0!"}, free=0))
            session.execute(update(AssignmentRow).values(gold=True))
        assert queue.submit(got.id, "ada", {"text": "y"}, client_key="k").label_id == 1
        assert isinstance(queue.claim("bob"), Nothing)
