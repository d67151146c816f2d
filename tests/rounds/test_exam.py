import json
from pathlib import Path

import pytest
from tiny_round import call, files_below, fork, write_recipe

from postgrad.evals.overoptimisation import CURVE
from postgrad.graders.certificate import weights_sha256
from postgrad.rounds.manifest import Manifest, find_round
from postgrad.run import sha256_file

Capture = pytest.CaptureFixture[str]
EXAM = "\n[exam]\nevery = 2\nnum_prompts = 8\nbest_of = 4\n"


def recipe_with_exam(folder: Path, model: Path, exam: str = EXAM) -> Path:
    recipe = write_recipe(folder, model)
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
    assert curve["rl"][-1]["kl"] > 1e-3
    assert [p["n"] for p in curve["best_of"]] == [1, 2, 4]
    assert curve["best_of"][0]["proxy"] < curve["best_of"][-1]["proxy"]
    rl = manifest.find("rl")
    assert rl is not None
    assert rl.summary["stopped"] is None
    assert rl.summary["exam_best_gold"] == max(p["gold"] for p in curve["rl"])
    assert not [name for name in files_below(manifest.stage_directory("rl")) if "best-0" in name]
    code, out, _ = call(capsys, "report", "--workspace", tmp_path / "w")
    html = Path(out.strip()).read_text()
    assert "What the raters want, against distance" in html
    assert "best of n" in html


def kill_at(sheet: str, folder: Path, arguments: tuple[object, ...]) -> None:
    process = fork(folder / "first", *arguments)
    while process.process.is_alive() and not list((folder / "w").glob(f"**/{sheet}")):
        process.process.join(0.02)
    assert process.process.is_alive(), process.err
    process.process.kill()
    process.wait()


def test_a_gold_score_that_surely_falls_ends_the_run_and_brings_the_best_policy_back(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    recipe = recipe_with_exam(tmp_path, tiny_model_directory)
    arguments = ("run", recipe, "--workspace", tmp_path / "w", "--set", "rl.steps=6")
    kill_at("step-0002.jsonl", tmp_path, arguments)
    manifest = find_round(tmp_path / "w", "latest")
    start = manifest.stage_directory("rl") / "exam/step-0000.jsonl"
    rows = [json.loads(line) | {"gold": [9.0]} for line in start.read_text().splitlines()]
    start.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fork(tmp_path / "again", *arguments).wait() == 0
    rl = find_round(tmp_path / "w", "latest").find("rl")
    assert rl is not None
    assert rl.summary["stopped"].startswith("step 2: the gold score has fallen by ")
    assert rl.summary["stopped"].endswith("since step 0, to which the policy goes back")
    assert (rl.summary["steps"], rl.summary["exam_best_step"], rl.policy_version) == (2, 0, 0)
    kept, first = (weights_sha256(manifest.stage_directory(name) / "policy") for name in ("rl", "sft"))
    assert kept != first, "the value head is there"
    kept_lm, first_lm = (
        sha256_file(manifest.stage_directory(name) / "policy/model.safetensors") for name in ("rl", "sft")
    )
    assert kept_lm == first_lm


def test_kill_9_during_an_examined_run_changes_nothing_about_its_end(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    ends = []
    for name in ("whole", "killed"):
        recipe = recipe_with_exam(tmp_path / name, tiny_model_directory)
        arguments = ("run", recipe, "--workspace", tmp_path / name / "w", "--set", "rl.steps=6")
        if name == "killed":
            kill_at("step-0004.jsonl", tmp_path / name, arguments)
        assert fork(tmp_path / f"{name} again", *arguments).wait() == 0
        manifest = find_round(tmp_path / name / "w", "latest")
        ends.append((sheets(manifest), weights_sha256(manifest.stage_directory("rl") / "policy")))
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
