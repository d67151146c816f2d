import json
import random
from pathlib import Path

import pytest
from tiny_round import call
from workbench import A_BETTER, B_BETTER, ROUND, TIE, fill, finish, plain, queue_of, shown

from postgrad.errors import StoreError
from postgrad.feedback.choose import REPEAT_DISTANCE
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.quality import Agreement, Quality, RaterQuality, quality
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask, Nothing
from postgrad.types import Preference


def rater(found: Quality, name: str) -> RaterQuality:
    return next(r for r in found.raters if r.rater_id == name)


def among(found: Quality, first: str, second: str) -> Agreement:
    return next(a for a in found.agreement if (a.first, a.second) == (first, second))


def share(estimate: Estimate | None) -> tuple[float, int]:
    assert estimate is not None
    return estimate.value, estimate.num


def test_agreement_of_people_by_hand(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, 4, overlap=3)
        said = {"ada": (A_BETTER,) * 4, "bob": (A_BETTER, A_BETTER, B_BETTER, TIE), "cyd": (A_BETTER, *(B_BETTER,) * 3)}
        for person, values in said.items():
            for value in values:
                finish(queue, person, value)
        found = quality(store)
        assert (found.labels, found.questions) == ({"compare": 12}, 4)
        # Pairs that agree: 3 of 3, 1, 1, 0.
        (people,) = found.agreement
        assert share(people.measures["raw"]) == (pytest.approx(5 / 12), 4)
        # ada with bob and cyd: 2, 1, 0 and 0 of 2.
        assert share(rater(found, "ada").agreement) == (pytest.approx(3 / 8), 4)
        assert [r.rater_id for r in found.raters] == ["ada", "bob", "cyd"]


def test_skipped_undone_repeated_gold_and_adjudicated_answers_are_no_agreement(url: str) -> None:
    with LabelStore(url) as store:
        queue = queue_of(store, REPEAT_DISTANCE + 2, config=plain(repeat_frac=1))
        comparisons = fill(store, 2, purpose="gold", first=100)
        queue.add([NewTask("compare", c, answer=A_BETTER) for c in comparisons], round_id=ROUND)
        for _ in range(REPEAT_DISTANCE + 1):
            finish(queue, "ada", A_BETTER)
        finish(queue, "ada", B_BETTER)
        queue.undo("ada")
        finish(queue, "ada", A_BETTER, key="second thought")
        exam = LabelQueue(store, plain(gold_frac=1))
        finish(exam, "bob", A_BETTER)
        finish(exam, "bob", B_BETTER)
        queue.add([NewTask("adjudicate", queue_comparison(store))], round_id=ROUND)
        ruling = queue.claim("cyd", kinds=("adjudicate",))
        assert not isinstance(ruling, Nothing)
        queue.submit(ruling.id, "cyd", shown(ruling, B_BETTER), client_key="ruling")
        found = quality(store)
        assert found.labels == {"adjudicate": 1, "compare": REPEAT_DISTANCE + 4}
        ada, bob, cyd = (rater(found, name) for name in ("ada", "bob", "cyd"))
        assert ada.answers == REPEAT_DISTANCE + 2
        assert share(ada.position)[1] == REPEAT_DISTANCE + 1
        assert share(ada.consistency) == (1.0, 1)
        assert (bob.answers, bob.gold_right, bob.gold, bob.position) == (2, 1, 2, None)
        assert (cyd.answers, cyd.agreement) == (1, None)
        assert [a.measures["raw"] for a in found.agreement] == [None]


def queue_comparison(store: LabelStore) -> str:
    return next(store.comparisons(purpose="train", round_id=ROUND)).id


def with_judge(store: LabelStore, num: int) -> None:
    """Ada and bob answer everything, and so does a model that is right where they are and else coin-like."""
    comparisons = fill(store, num)
    store.add_raters("model", {"judge": {}})
    dice = random.Random(0)
    for comparison in comparisons:
        for name in ("ada", "bob", "judge"):
            better = dice.random() < 0.8
            tiers = ((0,), (1,)) if better else ((1,), (0,))
            order = (0, 1) if dice.random() < 0.5 else (1, 0)
            given = Preference(
                comparison, name, tiers, strength=dice.randint(1, 3), milliseconds=dice.randint(1, 9) * 100
            )
            store.answer([Submission(given, order)])


def test_a_model_and_rewards_stand_beside_people_and_never_among_them(url: str) -> None:
    with LabelStore(url) as store:
        with_judge(store, 30)
        rewards = {s.id: float(s.text.startswith("x")) for s in store.samples(round_id=ROUND)}
        found = quality(store, round_id=ROUND, rewards=rewards)
        assert [(a.first, a.second) for a in found.agreement] == [
            ("human", "human"), ("model", "model"), ("human", "model"), ("human", "reward model"),
            ("model", "reward model"),
        ]  # fmt: skip
        assert among(found, "model", "model").measures["raw"] is None
        people = [j.preference for j in store.preferences(purpose="train") if j.rater_kind == "human"]
        right = sum(p.tiers[0] == (0,) for p in people) / len(people)
        assert share(among(found, "human", "reward model").measures["raw"]) == (pytest.approx(right), 30)
        assert among(found, "human", "reward model").measures["cohen_kappa_quadratic_strength"] is None
        assert among(found, "human", "model").measures["cohen_kappa_quadratic_strength"] is not None
        judge = rater(found, "judge")
        assert (judge.kind, judge.agreement) == ("model", None)
        assert share(judge.weight) == (pytest.approx(1.0), 30)
        assert rater(quality(store, too_fast_s=9.0), "ada").too_fast == pytest.approx(
            sum(p.milliseconds < 900 * 6 / 10 for p in people if p.rater_id == "ada" and p.milliseconds) / 30
        )


def test_ratings_reviews_and_haste_of_every_kind_are_counted(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LabelStore(url) as store:
        queue = LabelQueue(store, plain())
        (_comparison,) = fill(store, 1)
        sample = next(store.comparisons(purpose="train")).sources[0]
        details = {"axes": ["helpful"], "flags": ["rude"]}
        rating = {"axes": {"helpful": 6}, "flags": []}
        tasks = [
            NewTask("rate", sample, details=details, overlap=2),
            NewTask("review", sample, details={"steps": ["one", "two"]}, overlap=2),
            NewTask("write", "p0"),
        ]
        gold = NewTask("rate", sample, details=details | {"axes": ["clear"]}, answer=rating | {"axes": {"clear": 6}})
        queue.add([*tasks, gold], round_id=ROUND)
        values = {"rate": rating, "review": {"steps": ["good", "bad"]}, "write": {"text": "My own."}}
        for person, more in (("ada", {}), ("bob", {"rate": rating | {"axes": {"helpful": 2}, "flags": ["rude"]}})):
            for _value in (values | more).values():
                got = queue.claim(person)
                if isinstance(got, Nothing):
                    continue
                # Two words of the prompt, and two of the answer where there is one.
                milliseconds = 99 if person == "ada" and got.kind == "rate" else 401
                queue.submit(got.id, person, (values | more)[got.kind], client_key=got.id, milliseconds=milliseconds)
        exam = LabelQueue(store, plain(gold_frac=1))
        finish(exam, "cyd", {"axes": {"clear": 1}, "flags": []})
        found = quality(store, too_fast_s=10.0)
        assert [(s.name, s.level, s.raw and s.raw.value) for s in found.scales] == [
            ("flag rude", "nominal", 0.0), ("helpful", "ordinal", 0.0), ("steps", "ordinal", 1.0),
        ]  # fmt: skip
        # Four words at ten seconds a hundred are 0.4 s.
        assert [(r.rater_id, r.too_fast) for r in found.raters] == [
            ("ada", pytest.approx(1 / 3)), ("bob", 0.0), ("cyd", None),
        ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    out = call(capsys, "label", "stats", "--db", url)[1]
    assert "Agreement on ratings, reviews and red teaming" in out
    assert "flag rude" in out
    assert json.loads(call(capsys, "label", "stats", "--db", url, "--round", ROUND, "--json")[1])["scales"] != []


def test_other_rounds_do_not_count_and_an_unknown_one_is_named(url: str) -> None:
    with LabelStore(url) as store:
        with_judge(store, 3)
        store.add_round("0002-other", recipe="test")
        assert quality(store, round_id="0002-other") == Quality({}, 0, (), ())
        with pytest.raises(StoreError, match="no round 'elsewhere' in the label store; rounds: 0001-test, 0002-other"):
            quality(store, round_id="elsewhere")


def test_the_command_prints_tables_and_json(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LabelStore(url) as store:
        with_judge(store, 20)
        ada = quality(store).raters[0]
    assert ada.agreement is not None
    code, out, err = call(capsys, "label", "stats", "--db", url, "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert (printed["labels"], printed["questions"]) == ({"compare": 60}, 20)
    assert printed["raters"][0]["rater_id"] == ada.rater_id == "ada"
    assert printed["raters"][0]["agreement"]["value"] == ada.agreement.value
    monkeypatch.setenv("COLUMNS", "240")
    code, out, err = call(capsys, "label", "stats", "--db", url, "--too-fast", "9")
    assert (code, err) == (0, "")
    assert f"{ada.agreement.value:.0%} [{ada.agreement.low:.0%}, {ada.agreement.high:.0%}]" in out
    assert "human and model" in out
    assert "Krippendorff's \u03b1" in out
    assert "Agreement by" not in out
    out = call(capsys, "label", "stats", "--db", url, "--by", "rater")[1]
    assert "Agreement by rater" in out
    assert "Cohen's \u03ba with the others" in out
    mistake = call(capsys, "label", "stats", "--db", url, "--by", "month")[2]
    assert mistake == "error: --by 'month' is not one of week, round, rater\n"
    by_week = json.loads(call(capsys, "label", "stats", "--db", url, "--by", "week", "--json")[1])["by"]
    assert [(one["raters"], one["labels"]) for one in by_week] == [("human", 40), ("model", 20)]


def test_a_workspace_without_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "label", "stats", "--workspace", tmp_path)
    assert (code, err) == (
        2,
        f"error: workspace '{tmp_path}' holds no labels yet; name another, or a store by --db\n",
    )
    assert list(tmp_path.iterdir()) == []
