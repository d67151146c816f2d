"""People's comparisons as the gold score of examinations: asked as the policy learns, counted when they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from test_exam import recipe_with_exam, sheets, went_back
from tiny_round import call, fork, killed_at

from postgrad.config.load import load_recipe
from postgrad.db.engine import sqlite_url
from postgrad.errors import ConfigError
from postgrad.evals.overoptimisation import CURVE
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.rounds.manifest import Manifest, find_round
from postgrad.rounds.numbers import format_number
from postgrad.run import sha256_file
from postgrad.types import Preference

Capture = pytest.CaptureFixture[str]
EXAM = '\n[exam]\nevery = 2\nnum_prompts = 8\ngold = "labels"\n'


def store_of(workspace: Path) -> LabelStore:
    return LabelStore(sqlite_url(workspace / "postgrad.db"))


def judge(workspace: Path, manifest: Manifest, step: int, *, policy_wins: bool) -> int:
    """Ada answers every question about the policy after so many steps; how many those are."""
    questions = [row["question"] for row in sheets(manifest)[f"step-{step:04d}"] if row["question"]]
    tiers = ((1,), (0,)) if policy_wins else ((0,), (1,))
    with store_of(workspace) as store:
        store.add_raters("human", {"ada": {}})
        store.answer(Submission(Preference(q, "ada", tiers), (1, 0)) for q in questions)  # type: ignore[arg-type]
    return len(questions)


def report(capsys: Capture, workspace: Path) -> str:
    code, out, err = call(capsys, "report", "--workspace", workspace)
    assert (code, err) == (0, "")
    return Path(out.strip()).read_text()


def test_questions_wait_in_the_queue_the_run_goes_on_and_the_report_reads_what_is_there(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    workspace = tmp_path / "w"
    recipe = recipe_with_exam(tmp_path, tiny_model_directory, EXAM)
    code, _, err = call(capsys, "run", recipe, "--workspace", workspace)
    assert (code, err) == (0, "")
    manifest = find_round(workspace, "latest")
    rl = manifest.find("rl")
    assert rl is not None
    asked = [row["question"] for name in ("step-0002", "step-0004") for row in sheets(manifest)[name]]
    asked = [question for question in asked if question]
    assert len(asked) > 10
    assert not any(row["question"] for row in sheets(manifest)["step-0000"])
    assert (rl.summary["steps"], rl.summary["stopped"], rl.summary["exam_last_gold"]) == (4, None, None)
    assert (rl.summary["exam_first_gold"], rl.summary["exam_unlabelled"]) == (0.5, len(asked))
    assert not list((manifest.stage_directory("rl") / "exam").glob("weights-*"))
    with store_of(workspace) as store:
        assert {c.id for c in store.comparisons(purpose="exam", round_id=manifest.record.id)} == set(asked)
        (waiting,) = LabelQueue(store).progress()
        assert (waiting.kind, waiting.tasks, waiting.done) == ("compare", len(asked), 0)
        trained = len(list(store.preferences(purpose="train")))
    assert "2 of 3 examinations wait for labels" in report(capsys, workspace)
    curve = (manifest.stage_directory("rl") / CURVE).read_bytes()

    preferred = judge(workspace, manifest, 4, policy_wins=True)
    share = format_number((preferred + 0.5 * (8 - preferred)) / 8)
    found = report(capsys, workspace)
    assert "1 of 3 examinations wait for labels" in found
    assert "How often people prefer it to the SFT policy, against distance" in found
    assert f"{share} at best, after step 4, and {share} (" in found
    assert (manifest.stage_directory("rl") / CURVE).read_bytes() == curve, "it is an output with a digest"
    with store_of(workspace) as store:
        assert len(list(store.preferences(purpose="train"))) == trained, "nothing learns from them"


@pytest.mark.parametrize("policy_wins", [False, True])
def test_labels_that_are_there_at_the_next_examination_stop_the_run_and_bring_the_best_policy_back(
    tmp_path: Path, tiny_model_directory: Path, policy_wins: bool
) -> None:
    workspace = tmp_path / "w"
    recipe = recipe_with_exam(tmp_path, tiny_model_directory, EXAM)
    arguments = ("run", recipe, "--workspace", workspace, "--set", "rl.steps=6")
    killed_at("exam/step-0002.jsonl", tmp_path / "first", *arguments)
    manifest = find_round(workspace, "latest")
    judge(workspace, manifest, 2, policy_wins=policy_wins)
    if policy_wins:
        killed_at("exam/step-0004.jsonl", tmp_path / "first", *arguments)
        judge(workspace, manifest, 4, policy_wins=False)
    assert fork(tmp_path / "again", *arguments).wait() == 0
    fell, best = (4, 2) if policy_wins else (2, 0)
    rl = went_back(workspace, fell=fell, best=best)
    assert rl.summary["steps"] == fell
    assert rl.policy_version == sheets(manifest)[f"step-{best:04d}"][0]["policy_version"]
    kept, first = (sha256_file(manifest.stage_directory(n) / "policy/model.safetensors") for n in ("rl", "sft"))
    assert (kept == first) == (best == 0)


def test_people_are_not_asked_about_the_best_of_many(tmp_path: Path, tiny_model_directory: Path) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory, EXAM + "best_of = 4\n")
    with pytest.raises(ConfigError, match="people would have to compare every one of these answers"):
        load_recipe(recipe)


@pytest.mark.parametrize("gold", ["raters", "labels"])
def test_where_a_person_gives_the_labels_the_simulated_raters_are_no_gold(
    tmp_path: Path, tiny_model_directory: Path, gold: str
) -> None:
    from postgrad.rounds.context import Context, check_rows, read_splits
    from postgrad.text import Renderer, load_tokenizer

    recipe: Any = load_recipe(recipe_with_exam(tmp_path, tiny_model_directory, EXAM), (f"exam.gold={gold}",))
    source, unused = tmp_path / "rows.jsonl", cast("Any", None)
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    ctx = Context(recipe, unused, tiny_model_directory, source, unused, renderer, unused, ask=lambda *_: None)
    splits = read_splits(source, recipe.data.system)
    if gold == "labels":
        check_rows(ctx, splits, 512)
        return
    with pytest.raises(ConfigError, match=r"set 'exam\.gold' to \"ensemble\" or \"labels\", or remove the section"):
        check_rows(ctx, splits, 512)
