"""Method "preference" on odd labels: each kind is counted in the manifest, and treated as the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_round import call

from postgrad.db.engine import sqlite_url
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.rounds.manifest import find_round
from postgrad.types import Conversation, Example, Message, Preference, SamplingParams

RECIPE = """
method = "preference"
name = "odd"
batch_tokens = 512

[model]
name = {model}

[data]
max_tokens = 120

[[data.sources]]
{source}

[preference]
algorithm = "{algorithm}"
prompts_per_step = 16
learning_rate = 1e-3
"""
Capsys = pytest.CaptureFixture[str]
Row = dict[str, Any]


def row(prompt: str, chosen: str = "yes", rejected: str = "no", **known: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **known}


def turns(prompt: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


GOOD = [row(f"Good {i}?", rater="bob" if i == 0 else "cyd" if i == 1 else None) for i in range(12)]
ODD: dict[str, tuple[list[Row], int]] = {
    "equal_sides": ([row("Equal?", "same", "same")], 1),
    "empty_answer": ([row("Empty?", "something", " "), row("Empty, too?", "", "something")], 2),
    "prompts_differ": ([{"chosen": turns("One?", "yes"), "rejected": turns("Other?", "no")}], 1),
    "contradictory": ([row("Both?", "a", "b"), row("Both?", "b", "a")], 2),
    "one_rater": ([row(f"Ann {i}?", rater="ann") for i in range(18)], 16),
    "too_long": ([row("Long?", "x" * 200)], 1),
}
"""Rows, and how many of them are odd: ann gave 90% of 20 labels whose raters are known; 2 are half of what is left."""
EVERY = [row for rows, _ in ODD.values() for row in rows]


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on these rows: (exit code, standard error, summary of stage "pairs")."""
    monkeypatch.setattr("postgrad.rounds.preference.SAMPLE_TOKENS", 2)

    def run(rows: list[Row], *settings: str, algorithm: str = "simpo", form: str = "pairs") -> tuple[int, str, Any]:
        lines = [{key: value for key, value in row.items() if value is not None} for row in rows]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = f'format = "{form}"' + ("" if form == "labels" else '\npath = "rows.jsonl"')
        model = json.dumps(str(tiny_model_directory))
        (tmp_path / "odd.toml").write_text(RECIPE.format(model=model, source=source, algorithm=algorithm))
        overrides = [word for setting in settings for word in ("--set", setting)]
        workspace = tmp_path / "w"
        code, _, err = call(capsys, "run", tmp_path / "odd.toml", "--workspace", workspace, *overrides)
        return code, err, find_round(workspace, "latest").record.stages[0].summary if code == 0 else None

    return run


def counts(summary: Any) -> dict[str, tuple[int, str, int]]:
    return {o["problem"]: (o["count"], o["treatment"], o["dropped"]) for o in summary["odd"] if o["count"]}


def test_everything_odd_is_counted_in_the_manifest_and_in_the_report(run: Any, tmp_path: Path, capsys: Capsys) -> None:
    code, err, summary = run([*GOOD, *EVERY, {"prompt": "Half a row."}], "data.odd.unreadable=drop")
    assert (code, err) == (0, ""), err
    assert counts(summary) == {
        "unreadable": (1, "drop", 1),
        "prompts_differ": (1, "drop", 1),
        "empty_answer": (2, "drop", 2),
        "equal_sides": (1, "drop", 1),
        "contradictory": (2, "keep", 0),
        "one_rater": (16, "keep", 0),
        "too_long": (1, "drop", 1),
    }
    assert summary["sources"] == [{"source": "rows.jsonl", "pairs": 37, "left_out": 0, "weight": 1.0}]
    assert (summary["read"], summary["used"]) == (37, 37 - 5)
    _, out, _ = call(capsys, "report", "latest", "--workspace", tmp_path / "w")
    page = Path(out.strip()).read_text(encoding="utf-8")
    assert "Chosen and rejected answer different prompts" in page
    assert "rows.jsonl line 13" in page, "where it stands"


@pytest.mark.parametrize("problem", ODD)
def test_the_recipe_says_whether_they_are_dropped_kept_or_refused(run: Any, problem: str) -> None:
    rows, num = ODD[problem]
    for treatment in ("drop", "keep") if problem != "too_long" else ("drop",):
        code, err, summary = run([*GOOD, *rows], f"data.odd.{problem}={treatment}")
        assert (code, err) == (0, ""), err
        dropped = num if treatment == "drop" else 0
        assert counts(summary) == {problem: (num, treatment, dropped)}
        assert summary["used"] == len(GOOD) + len(rows) - dropped
    code, err, _ = run([*GOOD, *rows], f"data.odd.{problem}=stop")
    assert code == 2
    assert f"error: {num} of " in err
    assert f"'data.odd.{problem}' to \"drop\"" in err
    assert err.count("\n") == 1


def test_verdicts_on_single_answers_are_checked_likewise(run: Any) -> None:
    def verdict(prompt: str, answer: str, label: bool, rater: str = "") -> Row:
        return {"prompt": prompt, "completion": answer, "label": label, "rater": rater or None}

    good = [verdict(f"Q{i}?", f"a{i}", i % 2 > 0, "bob" if i < 2 else "") for i in range(12)]
    rows = [
        *good,
        verdict("Both?", "a", True), verdict("Both?", "a", False), verdict("Both?", "b", True),
        verdict("Empty?", " ", False),
        *(verdict(f"Ann {i}?", "a", True, "ann") for i in range(18)),
        verdict("Long?", "x" * 200, True),
    ]  # fmt: skip
    code, err, summary = run(rows, algorithm="kto", form="unpaired")
    assert (code, err) == (0, ""), err
    assert counts(summary) == {
        "empty_answer": (1, "drop", 1),
        "contradictory": (2, "keep", 0),
        "one_rater": (16, "keep", 0),
        "too_long": (1, "drop", 1),
    }
    assert (summary["read"], summary["used"]) == (35, 33)
    code, err, summary = run(rows, "data.odd.contradictory=drop", algorithm="kto", form="unpaired")
    assert (code, summary["used"]) == (0, 31), err
    code, err, _ = run([*good, {"prompt": "Q?", "completion": "a", "label": 1}], algorithm="kto", form="unpaired")
    assert code == 2
    assert "line 13: 'label' must be true or false" in err


def test_labels_whose_checkpoint_is_gone_are_counted(run: Any, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with LabelStore(sqlite_url(tmp_path / "w" / "postgrad.db")) as store:
        store.add_round("0001-test", recipe="quickstart")
        store.add_prompts(Example(f"p{i}", Conversation((Message("user", f"Q{i}?"),))) for i in range(12))
        store.add_raters("human", {"ann": {}, "bob": {}, "cyd": {}})
        asked = [
            store.add_samples(
                Sample(
                    f"p{i}", "0001-test", "sft", "imported:hh" if i < 4 else "ab" * 32, 1, SamplingParams(max_tokens=9),
                    1, text, (), "stop",
                )
                for text in ("yes", "no")
            )
            for i in range(12)
        ]  # fmt: skip
        questions = store.ask(asked, purpose="train", round_id="0001-test")
        store.answer(
            Submission(Preference(one, ("ann", "bob", "cyd")[i % 3], ((0,), (1,))), (0, 1))
            for i, one in enumerate(questions)
        )
    for treatment, used in (("keep", 12), ("drop", 4)):
        code, err, summary = run([], f"data.odd.checkpoint_gone={treatment}", form="labels")
        assert (code, err) == (0, ""), err
        assert counts(summary) == {"checkpoint_gone": (8, treatment, 12 - used)}
        assert summary["used"] == used
    code, err, _ = run([], "data.odd.checkpoint_gone=stop", form="labels")
    assert code == 2
    assert "8 of 12 pairs: the policy that answered is in no round of this workspace (comparison " in err
