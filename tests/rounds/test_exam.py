import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_round import call, files_below, fork, killed_at, make_rows, write_recipe

from postgrad.evals.overoptimisation import CURVE
from postgrad.graders.certificate import weights_sha256
from postgrad.rounds.manifest import Manifest, StageRecord, find_round
from postgrad.run import RunDirectory, sha256_file

Capture = pytest.CaptureFixture[str]
EXAM = "\n[exam]\nevery = 2\nnum_prompts = 8\nbest_of = 4\n"


def recipe_with_exam(folder: Path, model: Path, exam: str = EXAM, *, rows: list[dict[str, Any]] | None = None) -> Path:
    recipe = write_recipe(folder, model, rows=rows)
    recipe.write_text(recipe.read_text() + exam)
    return recipe


def sheets(manifest: Manifest) -> dict[str, list[dict[str, object]]]:
    folder = manifest.stage_directory("rl") / "exam"
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_a_round_examines_its_policy_and_shows_both_scores(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory)
    code, _, err = call(capsys, "run", recipe, "--workspace", tmp_path / "w", "--set", "exam.stop=false")
    assert (code, err) == (0, "")
    manifest = find_round(tmp_path / "w", "latest")
    found = sheets(manifest)
    assert sorted(found) == ["best-of", "step-0000", "step-0002", "step-0004"]
    asked = {name: [row["prompt_id"] for row in rows] for name, rows in found.items()}
    assert set(map(tuple, asked.values())) == {tuple(f"rl-{i}" for i in range(4, 12))}
    trained = (manifest.stage_directory("rl") / "samples").rglob("*")
    assert not any(
        f"rl-{i}/" in path.read_text(errors="ignore") for path in trained if path.is_file() for i in range(4, 12)
    )
    curve = json.loads((manifest.stage_directory("rl") / CURVE).read_text())
    assert [p["step"] for p in curve["rl"]] == [0, 2, 4]
    assert curve["rl"][0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(curve["rl"][-1]["kl"]) > 1e-3  # of eight answers, so it may be negative
    assert [p["n"] for p in curve["best_of"]] == [1, 2, 4]
    assert curve["best_of"][0]["proxy"] < curve["best_of"][-1]["proxy"]
    rl = manifest.find("rl")
    assert rl is not None
    assert rl.summary["stopped"] is None
    assert rl.summary["exam_best_gold"] == max(p["gold"] for p in curve["rl"])
    assert not [name for name in files_below(manifest.stage_directory("rl")) if "weights-" in name]
    code, out, _ = call(capsys, "report", "--workspace", tmp_path / "w")
    html = Path(out.strip()).read_text()
    assert "What the raters want, against distance" in html
    assert "best of n" in html


def run_as_if_step_was_best(recipe: Path, folder: Path, *, step: int) -> Manifest:
    """Cut off after step 2, every answer after `step` then worth 9, and run to its end."""
    arguments = ("run", recipe, "--workspace", folder / "w", "--set", "rl.steps=6")
    killed_at("exam/step-0002.jsonl", folder / "first", *arguments)
    manifest = find_round(folder / "w", "latest")
    sheet = manifest.stage_directory("rl") / f"exam/step-{step:04d}.jsonl"
    rows = [json.loads(line) | {"gold": [9.0]} for line in sheet.read_text().splitlines()]
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fork(folder / "again", *arguments).wait() == 0
    return manifest


def went_back(workspace: Path, *, fell: int, best: int) -> StageRecord:
    """The stage of a run that ended after one step and has the weights of another."""
    rl = find_round(workspace, "latest").find("rl")
    assert rl is not None
    assert rl.summary["stopped"].startswith(f"step {fell}: the gold score has fallen by ")
    assert rl.summary["stopped"].endswith(f"since step {best}, to which the policy goes back")
    return rl


@pytest.mark.parametrize("gold", ["raters", "ensemble"])
def test_a_gold_score_that_surely_falls_ends_the_run_and_brings_the_best_policy_back(
    tmp_path: Path, tiny_model_directory: Path, gold: str
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory, EXAM + f'gold = "{gold}"\n')
    manifest = run_as_if_step_was_best(recipe, tmp_path, step=0)
    rl = went_back(tmp_path / "w", fell=2, best=0)
    assert (rl.summary["steps"], rl.summary["exam_best_step"], rl.policy_version) == (2, 0, 0)
    kept, first = (weights_sha256(manifest.stage_directory(name) / "policy") for name in ("rl", "sft"))
    assert kept != first, "the value head is there"
    kept_lm, first_lm = (
        sha256_file(manifest.stage_directory(name) / "policy/model.safetensors") for name in ("rl", "sft")
    )
    assert kept_lm == first_lm


def test_examinations_from_before_the_run_was_cut_off_count_from_their_own_step_on(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory)
    manifest = run_as_if_step_was_best(recipe, tmp_path, step=2)
    rl = went_back(tmp_path / "w", fell=4, best=2)
    assert (rl.summary["steps"], rl.summary["exam_best_step"]) == (4, 2)
    assert rl.policy_version == sheets(manifest)["step-0002"][0]["policy_version"]
    kept, first = (sha256_file(manifest.stage_directory(n) / "policy/model.safetensors") for n in ("rl", "sft"))
    assert kept != first


def test_an_ensemble_of_labels_that_the_reward_model_never_saw_examines_the_policy(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory, EXAM + 'gold = "ensemble"\nstop = false\n')
    run = ("run", recipe, "--workspace", tmp_path / "w")
    code, out, err = call(capsys, *run)
    assert (code, err) == (0, "")
    assert "6/9 gold" in out
    manifest = find_round(tmp_path / "w", "latest")
    assert [s.name for s in manifest.record.stages][4:7] == ["reward", "gold", "rl"]
    gold, reward, rl = (manifest.find(name) for name in ("gold", "reward", "rl"))
    assert gold is not None
    assert reward is not None
    assert rl is not None
    heads = load_file(manifest.stage_directory("gold") / "model/heads.safetensors")
    assert heads["reward.weight"].shape[0] == 3
    assert gold.summary["model_sha256"] != reward.summary["model_sha256"]
    assert rl.inputs["gold"] == manifest.digest("gold")
    assert rl.summary["exam_gold"] == "ensemble"
    curve = json.loads((manifest.stage_directory("rl") / CURVE).read_text())
    assert curve["gold"] == "ensemble"
    assert [p["n"] for p in curve["best_of"]] == [1, 2, 4]
    found = sheets(manifest)["step-0004"]
    assert [row["gold"] for row in found] != [row["proxy"] for row in found]
    report = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip()).read_text()
    assert "What a held-out ensemble says, against distance" in report
    assert "The ensemble agrees with " in report
    code, _, err = call(capsys, *run, "--set", "reward.bar.min_accuracy=1.0", "--set", "reward.bar.min_gain=1.0")
    assert code == 2
    assert "does not pass 'reward.bar'" in err


def test_kill_9_during_an_examined_run_changes_nothing_about_its_end(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    ends = []
    rows = make_rows()
    rows += [{**row, "id": f"more-{row['id']}"} for row in rows if row["split"] == "rm"]
    for name in ("whole", "killed"):
        recipe = recipe_with_exam(tmp_path / name, tiny_model_directory, rows=rows)
        arguments = (
            "run", recipe, "--workspace", tmp_path / name / "w", "--set", "rl.steps=6",
            "--set", "reward.residualise_length=true", "--set", "sft.epochs=4", "--set", "labels.num_prompts=32",
        )  # fmt: skip
        if name == "killed":
            killed_at("exam/step-0004.jsonl", tmp_path / "first", *arguments)
        assert fork(tmp_path / f"{name} again", *arguments).wait() == 0
        manifest = find_round(tmp_path / name / "w", "latest")
        ends.append((sheets(manifest), weights_sha256(manifest.stage_directory("rl") / "policy")))
        scores = [s for row in RunDirectory(manifest.stage_directory("rl")).read_trajectories(6) for s in row["scores"]]
        assert all(" as read, less " in score["explanation"] for score in scores)
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [("exam.num_prompts=12", "leaves none of the 12 rows"), ("exam.num_prompts=3", "'exam.num_prompts' = 3")],
)
def test_too_many_or_too_few_held_out_prompts_are_refused(
    tmp_path: Path, tiny_model_directory: Path, capsys: Capture, change: str, said: str
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory)
    code, _, err = call(capsys, "run", recipe, "--workspace", tmp_path / "w", "--set", change)
    assert code == 2
    assert said in err
