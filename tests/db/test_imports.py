"""Other tools' files into the label store."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_round import call
from workbench import plain

from postgrad.errors import ConfigError, DataError, StoreError
from postgrad.feedback.exports import export_labels
from postgrad.feedback.imports import Settings, import_labels
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Judged
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned

HELLO = "\n\nHuman: Hello?\n\nAssistant: Hi!\n\nHuman: Sky?"
QUOTES = {"title": ["Sky (sky.org)"], "extract": ["It is blue."]}
NO_QUOTES: dict[str, list[str]] = {"title": [], "extract": []}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def judged(store: LabelStore) -> list[Judged]:
    return list(store.preferences(purpose="train"))


def winner(one: Judged) -> str:
    return one.comparison.answers[one.preference.tiers[0][0]]


def person_with_a_task(store: LabelStore, kind: Any) -> Assigned:
    store.add_raters("human", {"ada": {}})
    got = LabelQueue(store, plain()).claim("ada", kinds=(kind,))
    assert isinstance(got, Assigned), got
    return got


def test_hh(url: str, tmp_path: Path) -> None:
    rows = [
        {"chosen": f"{HELLO}\n\nAssistant: Blue {i}.", "rejected": f"{HELLO}\n\nAssistant: \u05d0 {i}."}
        for i in range(30)
    ]
    path = lines(tmp_path / "hh.v1.jsonl", *rows, rows[0])
    with LabelStore(url) as store:
        for _ in range(2):
            assert import_labels(store, path, "hh").labels == 31
        found = judged(store)
        assert [winner(one) for one in found] == [f"Blue {i}." for i in range(30)]
        assert 3 < sum(one.preference.tiers[0] == (0,) for one in found) < 27
        first = found[0]
        assert [(m.role, m.content) for m in first.comparison.prompt.messages] == [
            ("user", "Hello?"), ("assistant", "Hi!"), ("user", "Sky?"),
        ]  # fmt: skip
        assert len({one.prompt_id for one in found}) == 1
        assert (first.preference.rater_id, first.rater_kind, first.stages) == (
            "imported-hh", "human", ("imported", "imported"),
        )  # fmt: skip
        sample = next(iter(store.samples(round_id="imported")))
        assert sample.checkpoint == "imported:hh"


def webgpt(score: float | None, **changes: object) -> dict[str, object]:
    return {
        "question": {"full_text": "Why?", "id": "q1", "dataset": "eli5"},
        "answer_0": "It scatters [1].",
        "answer_1": "Because.",
        "quotes_0": QUOTES,
        "quotes_1": NO_QUOTES,
        "score_0": score,
        "score_1": None if score is None else -score,
        **changes,
    }


@pytest.mark.parametrize(("score", "tiers"), [(0.0, ((0, 1),)), (0.25, ((0,), (1,))), (-1, ((1,), (0,)))])
def test_webgpt(url: str, tmp_path: Path, score: float, tiers: tuple[tuple[int, ...], ...]) -> None:
    with LabelStore(url) as store:
        import_labels(store, lines(tmp_path / "w.jsonl", webgpt(score)), "webgpt")
        (one,) = judged(store)
        assert one.preference.tiers == tiers
        assert one.preference.strength is None
        assert one.comparison.answers == ("It scatters [1].\n\n[1] Sky (sky.org)\nIt is blue.", "Because.")


def test_questions_without_scores_wait_for_people(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        path = lines(tmp_path / "w.jsonl", webgpt(None))
        for expected in (1, 0):
            assert import_labels(store, path, "webgpt", Settings(overlap=2)).tasks == expected
        got = person_with_a_task(store, "compare")
        assert sorted(got.answers)[0] == "Because."
        import_labels(store, path, "webgpt", Settings(kind="edit"))
        assert person_with_a_task(store, "compare").id == got.id
        LabelQueue(store).skip(got.id, "ada", "later")
        assert len(person_with_a_task(store, "edit").answers) == 1


def annotation(selected: str, who: object, **more: object) -> dict[str, object]:
    result = {
        "type": "pairwise",
        "from_name": "comparison",
        "to_name": "answer1,answer2",
        "value": {"selected": selected},
    }
    return {"result": [result], "completed_by": who, "lead_time": 4.2, "was_cancelled": False, **more}


def test_label_studio(url: str, tmp_path: Path) -> None:
    data = {"prompt": "Sky?", "answer1": "Blue.", "answer2": "Green."}
    tasks = [
        {
            "id": 1,
            "data": data,
            "annotations": [
                annotation("left", 7),
                annotation("right", {"id": 8, "email": "b@example.org"}),
                annotation("left", 9, was_cancelled=True),
            ],
        },
        {"id": 2, "data": {**data, "prompt": "Grass?"}, "annotations": []},
    ]
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks, indent=2))
    with LabelStore(url) as store:
        done = import_labels(store, path, "label-studio")
        assert (done.rows, done.labels, done.tasks) == (2, 2, 1)
        assert [(one.preference.rater_id, winner(one), one.preference.milliseconds) for one in judged(store)] == [
            ("imported-project-7", "Blue.", 4200), ("imported-project-8", "Green.", 4200),
        ]  # fmt: skip
        assert person_with_a_task(store, "compare").prompt.messages[0].content == "Grass?"


def test_argilla_rankings_and_ratings(url: str, tmp_path: Path) -> None:
    ranked = {
        "fields": {"instruction": "Sky?", "r1": "Blue.", "r2": "Green.", "r3": "Red."},
        "responses": {"preference": [{"user_id": "u1", "value": ["r2", "r1", "r3"]}]},
    }
    old = {
        "fields": {"prompt": "Sea?", "r1": "Blue.", "r2": "Green."},
        "responses": [
            {"user_id": "u2", "status": "submitted", "values": {"rank": {"value": [
                {"rank": 1, "value": "r1"}, {"rank": 1, "value": "r2"}]}}},
            {"user_id": "u3", "status": "draft", "values": {}},
        ],
    }  # fmt: skip
    rated = {"fields": {"prompt": "Sun?", "reply": "Hot."}, "responses": {"quality": [{"user_id": "u1", "value": 5}]}}
    with LabelStore(url) as store:
        assert import_labels(store, lines(tmp_path / "a.jsonl", ranked, old, rated), "argilla").labels == 3
        found = {one.preference.rater_id: one.preference.tiers for one in judged(store)}
        assert found == {"imported-a-u1": ((1,), (0,), (2,)), "imported-a-u2": ((0, 1),)}


def test_prompts_become_tasks(url: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"id": "maths/1", "prompt": "Two and two?"}, {"prompt": "\U0001f600?"})
    with LabelStore(url) as store:
        assert import_labels(store, path, "prompts", Settings(kind="converse")).tasks == 2
        assert person_with_a_task(store, "converse").prompt.messages[0].content == "Two and two?"
        with pytest.raises(ConfigError, match="prompts have no answers"):
            import_labels(store, path, "prompts", Settings(kind="compare"))


def test_all_bad_rows_are_named_and_nothing_is_written(url: str, tmp_path: Path) -> None:
    good = {"chosen": f"{HELLO}\n\nAssistant: a", "rejected": f"{HELLO}\n\nAssistant: b"}
    rows = [
        good,
        {"chosen": 3, "rejected": "x"},
        {"chosen": "hello", "rejected": f"{HELLO}\n\nAssistant: b"},
        {**good, "chosen": "\n\nHuman: Other?\n\nAssistant: a"},
        {"chosen": good["rejected"], "rejected": good["chosen"]},
        {**good, "rejected": good["chosen"]},
        {**good, "rejected": "\n\nHuman: Hello?\n\nAssistant: "},
    ]
    with LabelStore(url) as store:
        with pytest.raises(DataError) as error:
            import_labels(store, lines(tmp_path / "hh.jsonl", *rows), "hh")
        assert "mend or remove 6 of 7 rows, nothing was taken from it" in str(error.value)
        for expected in (
            "line 2: 'chosen' is a number where text belongs",
            "line 3: 'chosen' is no transcript",
            "line 4: the conversations before the last answers",
            "line 5: the same rater judged the same answers otherwise in line 1",
            "line 6: the answers are the same",
            "line 7: the last answer of 'rejected' is empty",
        ):
            assert expected in str(error.value)
        assert set(store.counts().values()) == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_1": 0.5}, "add up to 0"),
        ({"score_0": "1"}, "must be numbers"),
        ({"score_0": True}, "must be numbers"),
        ({"quotes_0": {"title": ["a"], "extract": []}}, "1 titles and 0 extracts"),
        ({"quotes_0": {"title": [1], "extract": ["a"]}}, "'title' must be a list of texts"),
        ({"answer_0": ""}, "'answer_0' is empty"),
        ({"question": "Why?"}, "'question' is a text where an object belongs"),
    ],
)
def test_bad_webgpt_rows(url: str, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with LabelStore(url) as store, pytest.raises(DataError, match=message):
        import_labels(store, lines(tmp_path / "w.jsonl", webgpt(0.5, **changes)), "webgpt")


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/../b", "a\\b", "a\nb", "", "x" * 256, 1.5, True, "./a", "a//b"]
)
def test_names_that_are_paths_or_worse_are_refused(url: str, tmp_path: Path, name: object) -> None:
    with LabelStore(url) as store:
        with pytest.raises(DataError, match="line 1: 'id' "):
            import_labels(store, lines(tmp_path / "p.jsonl", {"id": name, "prompt": "x"}), "prompts")
        if isinstance(name, str):
            with pytest.raises(ConfigError, match="'--round' "):
                import_labels(store, lines(tmp_path / "w.jsonl", webgpt(1)), "webgpt", Settings(round_id=name))
        assert store.counts()["prompts"] == 0


def test_a_person_who_stands_elsewhere_in_the_store_is_not_overwritten(url: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        store.add_raters("model", {"imported-w": {}})
        with pytest.raises(StoreError, match="'imported-w' with another kind"):
            import_labels(store, lines(tmp_path / "w.jsonl", webgpt(1)), "webgpt")


def native_of(url: str, tmp_path: Path) -> list[dict[str, Any]]:
    with LabelStore(url) as store:
        import_labels(store, lines(tmp_path / "w.jsonl", webgpt(1)), "webgpt")
        export_labels(store, tmp_path / "native.jsonl", "native")
    return [json.loads(line) for line in (tmp_path / "native.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("answers.0.text", "other words", "is not what its id"),
        ("answers.0.seed", "1e3", "is not what its id"),
        ("comparison.purpose", "arena", "is not what its id"),
        ("comparison.purpose", "gold!", "comparison.purpose: Input should be"),
        ("rater", "nobody", "rater 'nobody' is told on no line before"),
        ("rater_kind", "model", "model rater 'imported-w' is told on no line before"),
        ("comparison.round", "9", "round '9' is told on no line before"),
        ("guideline", 3, "guideline 3 is told on no line before"),
        ("value.tiers", [[0], [2]], "tiers must name each of the 2 answers once"),
        ("value", {"tiers": [[0], [1]]}, "does not spell out every field"),
        ("display_order", "0,0", "does not name each answer once"),
        ("kind", "edit", "has no comparison"),
        ("milliseconds", "12", "milliseconds: Input should be a valid integer"),
        ("weight", -1.0, "weight: Input should be greater"),
        ("created_at", "2026-01-01T00:00:00", "created_at: Input should have timezone info"),
        ("prompt.conversation", {"messages": [{"role": "user", "content": 3}], "tools": []}, "is no conversation"),
        ("prompt.id", "../x", "prompt.id: "),
        ("extra", 1, "extra: Extra inputs are not permitted"),
    ],
)
def test_native_lines_that_somebody_changed(tmp_path: Path, path: str, value: Any, message: str) -> None:
    rows = native_of(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    *parents, last = path.split(".")
    part: Any = rows[-1]
    for name in parents:
        part = part[int(name)] if name.isdecimal() else part[name]
    part[last] = value
    with LabelStore(f"sqlite:///{tmp_path / 'b.db'}") as store:
        with pytest.raises(DataError, match=f"line {len(rows)}: .*{message}"):
            import_labels(store, lines(tmp_path / "changed.jsonl", *rows), "native")
        assert set(store.counts().values()) == {0}


def test_a_native_import_does_not_change_what_is_there(url: str, tmp_path: Path) -> None:
    rows = native_of(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    path = lines(tmp_path / "native.jsonl", *rows)
    with LabelStore(url) as store:
        import_labels(store, path, "native")
        rows[-1]["value"] = {**rows[-1]["value"], "tiers": [[1], [0]]}
        with pytest.raises(StoreError, match="another label under the key"):
            import_labels(store, lines(tmp_path / "changed.jsonl", *rows), "native")
        with pytest.raises(DataError, match="stands on a line before, too"):
            import_labels(store, lines(tmp_path / "twice.jsonl", *rows, rows[-1]), "native")
        assert [winner(one)[:11] for one in judged(store)] == ["It scatters"]


def test_a_gzipped_file_and_one_that_is_a_bomb(url: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl.gz"
    with LabelStore(url) as store:
        path.write_bytes(gzip.compress(json.dumps(webgpt(1)).encode()))
        assert import_labels(store, path, "webgpt").labels == 1
        path.write_bytes(gzip.compress(b" " * (3 * 2**20)))
        with pytest.raises(DataError, match="more than 2 MiB uncompressed"):
            import_labels(store, path, "webgpt", Settings(max_mb=2))


def test_bad_rows_are_skipped_on_request_and_listed(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"prompt": f"{i}?", "answers": ["a", "b"], "best": 0} for i in range(3)]
    bad = [{"prompt": "?", "answers": ["a"]}] * 25
    path = lines(tmp_path / "mixed.jsonl", good[0], *bad, good[1], good[2])
    arguments = ("label", "import", path, "--db", url, "--format", "questions")
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "mend or remove 25 of 28 rows, nothing was taken from it" in err
    code, out, err = call(capsys, *arguments, "--skip-bad")
    assert (code, out) == (1, "3 rows: 3 labels, 0 new tasks\n")
    assert err.startswith("25 rows were left out:\nline 2: 'answers' must hold two or more texts")
    assert err.endswith("\nand 5 more\n")
    assert len(err.splitlines()) == 22
    with LabelStore(url) as store:
        assert len(judged(store)) == 3
    nothing = lines(tmp_path / "bad.jsonl", *bad)
    code, _, err = call(capsys, "label", "import", nothing, "--db", url, "--format", "questions", "--skip-bad")
    assert (code, "mend or remove 25 of 25 rows" in err) == (2, True)
    code, _, err = call(capsys, "label", "import", path, "--db", url, "--format", "prompts", "--skip-bad")
    assert (code, "--skip-bad does not go with --format prompts" in err) == (2, True)


def test_native_lines_that_are_bad_are_skipped_with_what_hangs_on_them(tmp_path: Path) -> None:
    asked = [{"prompt": f"{i}?", "answers": ["a", "b"], "best": 0} for i in range(3)]
    with LabelStore(f"sqlite:///{tmp_path / 'a.db'}") as store:
        import_labels(store, lines(tmp_path / "q.jsonl", *asked), "questions")
        export_labels(store, tmp_path / "native.jsonl", "native")
    rows = [json.loads(line) for line in (tmp_path / "native.jsonl").read_text().splitlines()]
    labels = [i for i, row in enumerate(rows) if row["type"] == "label"]
    rows[labels[-1]]["rationale"] = 7
    with LabelStore(f"sqlite:///{tmp_path / 'b.db'}") as store:
        found = import_labels(store, lines(tmp_path / "n.jsonl", *rows), "native", Settings(skip_bad=True))
        assert (found.rows, found.labels, found.skipped) == (len(rows) - 1, len(labels) - 1, 1)
        assert found.bad[0].startswith(f"line {labels[-1] + 1}: rationale")
    rows[next(i for i, row in enumerate(rows) if row["type"] == "round")]["recipe"] = None
    with LabelStore(f"sqlite:///{tmp_path / 'c.db'}") as store:
        found = import_labels(store, lines(tmp_path / "n.jsonl", *rows), "native", Settings(skip_bad=True))
        assert found.labels == 0
        assert any("is told on no line before" in why for why in found.bad)
