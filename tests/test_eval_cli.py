"""`postgrad eval` through the real command line, on a byte-level model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_round import call

from postgrad.recipes import languages_eval_path, limits_eval_path
from postgrad.rounds.manifest import find_round

Capture = pytest.CaptureFixture[str]
RECIPE = """
method = "sft"
name = "limits"
seed = 0
batch_tokens = 2048

[model]
name = "{model}"

[data]
heldout_share = 0.2

[[data.sets]]
source = "limits"

[sft]
steps = 25
examples_per_step = 16
learning_rate = 1e-2
evaluate_every = 25
"""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def some_lines(source: Path, target: Path, num: int) -> Path:
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(lines[:: len(lines) // num][:num]), encoding="utf-8")
    return target


def test_limits_of_a_policy_against_the_model_it_came_from(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    recipe = tmp_path / "limits.toml"
    recipe.write_text(RECIPE.format(model=tiny_model_directory), encoding="utf-8")
    workspace = tmp_path / "w"
    assert call(capsys, "run", recipe, "--workspace", workspace)[0] == 0
    name = find_round(workspace, "latest").record.id
    pairs = some_lines(limits_eval_path(), tmp_path / "pairs.jsonl", 6)
    asked = ("eval", "limits", name, "--workspace", workspace, "--prompts", pairs, "--max-tokens", 24)
    code, out, err = call(capsys, *asked, "--against", tiny_model_directory)
    assert (code, err) == (0, "")
    saved = json.loads((workspace / "evals" / f"limits-{name}.json").read_text(encoding="utf-8"))
    assert list(saved["answers"]) == [str(tiny_model_directory), name]
    for rows in saved["answers"].values():
        assert len(rows) == 12
        assert {row["side"] for row in rows} == {"beyond", "within"}
    own = saved["answers"][name]
    # A model this small has learned to begin as the examples begin, whatever it is asked: it refuses everything.
    assert sum(row["answer"].startswith("I") for row in own) > 8
    admitted = [row["stance"] == "admits" for row in own if row["side"] == "beyond"]
    assert saved["summary"][name]["admitted"]["value"] == sum(admitted) / 6
    assert saved["change"]["admitted"]["value"] == pytest.approx(sum(admitted) / 6)
    assert "over-refusal" in out
    assert f"limits-{name}.json" in out

    shutil.rmtree(workspace / "rounds" / name / "stages" / "sft" / "policy")
    code, _, err = call(capsys, *asked)
    assert (code, "has made no policy yet" in err) == (2, True)


def test_languages_writes_every_answer_and_a_row_for_each_language(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    tasks = some_lines(languages_eval_path(), tmp_path / "tasks.jsonl", 4)
    target = tmp_path / "out" / "found.json"
    code, out, err = call(
        capsys, "eval", "languages", tiny_model_directory, "--prompts", tasks, "--max-tokens", 8, "--json", target
    )
    assert (code, err) == (0, "")
    saved = json.loads(target.read_text(encoding="utf-8"))
    assert len(saved["answers"]) == 20
    assert list(saved["summary"]) == ["en", "es", "fr", "de", "zh"]
    right = [row["right_language"] for row in saved["answers"] if row["language"] == "fr"]
    assert saved["summary"]["fr"]["right_language"]["value"] == sum(right) / 4
    assert [language for language in saved["summary"] if f"│ {language} " not in out] == []


def test_wrong_inputs_are_one_sentence(tmp_path: Path, tiny_model_directory: Path, capsys: Capture) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{}\n", encoding="utf-8")
    for arguments, complaint in (
        (("limits", "--workspace", tmp_path), "has released no policy yet"),
        (("limits", "no such model"), "no model 'no such model'"),
        (("limits", tiny_model_directory, "--against", tiny_model_directory), "is the same model"),
        (("limits", tiny_model_directory, "--prompts", tmp_path / "none.jsonl"), "No such file"),
        (("limits", tiny_model_directory, "--prompts", empty), "line 1: each row needs"),
        (("limits", tiny_model_directory, "--max-tokens", 500), "with an answer of 500 tokens"),
        (("languages", tiny_model_directory, "--prompts", empty), "line 1: a task needs"),
    ):
        code, out, err = call(capsys, "eval", *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert complaint in err
        assert len(err.splitlines()) == 1
