"""A whole round on a tiny model: every record, every hash, and the same end after `kill -9` at any moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_round import SPLITS, call, fork, killed_at, write_recipe

from postgrad.db.engine import sqlite_url
from postgrad.feedback.store import LabelStore
from postgrad.gates.release import ReleasePointer
from postgrad.graders.certificate import weights_sha256
from postgrad.rounds.manifest import STAGES, Manifest, find_round, list_rounds
from postgrad.run import RunDirectory, sha256_file, sha256_tree
from postgrad.types import SamplingParams

ALGORITHMS = [("ppo", 0), ("grpo", 4)]


@pytest.fixture(scope="module", params=ALGORITHMS, ids=["ppo", "grpo-lora"])
def workspace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path
) -> Path:
    """The workspace of a finished round, the recipe beside it."""
    algorithm, lora_rank = request.param
    folder = tmp_path_factory.mktemp(algorithm)
    recipe = write_recipe(folder, tiny_model_directory, algorithm=algorithm, lora_rank=lora_rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["postgrad", "run", str(recipe), "--workspace", str(folder / "workspace")])
        from postgrad.cli import main

        with pytest.raises(SystemExit) as e:
            main()
    assert e.value.code in (0, None)
    return folder / "workspace"


def only_round(workspace: Path) -> Manifest:
    (manifest,) = list_rounds(workspace)
    return manifest


def test_every_stage_is_done_and_every_hash_in_the_manifest_is_that_of_its_file(workspace: Path) -> None:
    manifest = only_round(workspace)
    record = manifest.record
    assert (record.id, record.status, record.seed) == ("0001-tiny", "done", 7)
    assert [(s.name, s.status) for s in record.stages] == [(name, "done") for name in STAGES]
    for stage in record.stages:
        assert stage.seconds > 0
        assert stage.outputs, stage.name
        for relative, digest in stage.outputs.items():
            assert sha256_file(manifest.directory / relative) == digest, relative
        for name, digest in stage.inputs.items():
            if name in STAGES:
                assert digest == manifest.digest(name), (stage.name, name)
    prompts, rl = manifest.find("prompts"), manifest.find("rl")
    assert prompts is not None
    assert prompts.summary == SPLITS
    assert rl is not None
    assert rl.summary["steps"] == 4
    assert rl.summary["stopped"] is None
    assert rl.tokens.trained > rl.tokens.generated > 0


def test_the_reward_model_of_a_round_says_what_people_are_asked_first(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "label", "add", "0001-tiny", "--workspace", workspace)[0] == 0
    code, out, err = call(capsys, "label", "route", "--workspace", workspace, "--reward-model", "latest")
    assert (code, err) == (0, "")
    assert "tasks have a new priority" in out
    stats = ("label", "stats", "--workspace", workspace, "--reward-model", "0001-tiny", "--json")
    code, out, err = call(capsys, *stats)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert ("simulated", "reward model") in {(a["first"], a["second"]) for a in found["agreement"]}
    assert {(one["a"], one["b"]) for one in found["influence"]} == {
        ("initial", "rl"),
        ("initial", "sft"),
        ("rl", "sft"),
    }
    reward = only_round(workspace).find("reward")
    assert reward is not None
    assert list(reward.summary["rater_weights"].values()) == [1.0] * 4, "one rater a comparison"
    labels = only_round(workspace).find("labels")
    assert labels is not None
    own = {"source": "labels", "pairs": labels.summary["num_preferences"], "left_out": 0, "weight": 1.0}
    assert reward.summary["sources"] == [own]
    assert {o["problem"] for o in reward.summary["odd"] if o["dropped"]} == set()
    code, out, _ = call(capsys, "report", "latest", "--workspace", workspace)
    assert "What was odd about them, and what became of it" in Path(out.strip()).read_text(encoding="utf-8")


def test_the_policy_has_learned_something_in_every_stage_that_trains(workspace: Path) -> None:
    manifest = only_round(workspace)
    sft = manifest.find("sft")
    assert sft is not None
    assert sft.summary["loss_last"] < sft.summary["loss_first"]
    digests = {weights_sha256(manifest.stage_directory(name) / "policy") for name in ("sft", "rl")}
    assert len(digests) == 2
    rows = RunDirectory(manifest.stage_directory("rl")).read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-4)
    assert abs(rows[-1]["policy/kl_ref"]) > 1e-3
    assert max(row["sampler/logprob_diff_max"] for row in rows) <= 1e-5


def test_the_release_pointer_stands_where_the_verdict_puts_it(workspace: Path) -> None:
    manifest = only_round(workspace)
    gate = json.loads((manifest.stage_directory("gate") / "gate.json").read_text())
    arena = manifest.stage_directory("arena")
    assert gate["evidence"] == {name: sha256_file(arena / name) for name in ("arena.json", "answers.jsonl")}
    released = ReleasePointer(workspace).read()
    if gate["verdict"] == "pass":
        assert released is not None
        policy = workspace / released.checkpoint
        assert policy == manifest.stage_directory("rl") / "policy"
        assert (released.round_id, released.sha256) == ("0001-tiny", sha256_tree(policy))
    else:
        assert released is None


def test_an_arena_answer_leads_to_its_round_policy_version_weights_and_sampling(workspace: Path) -> None:
    manifest = only_round(workspace)
    updates = {name: manifest.find(name).policy_version for name in ("sft", "rl")} | {"initial": 0}  # type: ignore[union-attr]
    assert updates["sft"] == 4
    assert updates["rl"] == 8
    weights = {name: weights_sha256(manifest.stage_directory(name) / "policy") for name in ("sft", "rl")}
    arena = json.loads((manifest.stage_directory("arena") / "answers.jsonl").read_text().splitlines()[0])
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        samples = {s.id: s for s in store.samples(round_id="0001-tiny")}
        judged = [*store.preferences(purpose="arena"), *store.preferences(purpose="train")]
    assert len(judged) > 10 * 3 * 3 * 2
    for j in judged:
        assert j.round_id == "0001-tiny"
        for source, stage, text in zip(j.comparison.sources, j.stages, j.comparison.answers, strict=True):
            sample = samples[source]
            assert (sample.stage, sample.round_id, sample.prompt_id) == (stage, "0001-tiny", j.prompt_id)
            assert (sample.text, sample.policy_version) == (text, updates[stage])
            assert sample.params == SamplingParams(max_tokens=12, temperature=1.0)
            assert stage == "initial" or sample.checkpoint == weights[stage]
            assert j.purpose == "arena" or stage == "sft"
    shown = {s.stage: s.text for s in samples.values() if s.prompt_id == arena["prompt_id"]}
    assert shown == {player: answer["text"] for player, answer in arena["answers"].items()}


def test_the_report_is_one_page_that_asks_no_other_machine_for_anything(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "report", "--workspace", workspace)
    assert (code, err) == (0, "")
    page = Path(out.strip())
    assert page.parent == only_round(workspace).directory
    html = page.read_text(encoding="utf-8")
    assert "0001-tiny" in html
    assert "<script src" not in html
    assert "<link" not in html


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path) -> tuple[object, ...]:
    """The command of a short round that is done, its workspace last."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, tiny_model_directory)
    command = ("run", recipe, "--set", "rl.steps=1", "--set", "arena.resamples=10", "--workspace", folder / "w")
    process = fork(folder / "io", *command)
    assert process.wait() == 0, process.err
    return command


@pytest.fixture
def command(finished: tuple[object, ...], tmp_path: Path) -> tuple[object, ...]:
    """The same on a copy of the workspace."""
    return (*finished[:-1], shutil.copytree(str(finished[-1]), tmp_path / "w"))


def test_the_same_command_after_a_finished_round_begins_the_next_one(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = find_round(tmp_path / "w", "1")
    before = sha256_tree(first.directory)
    code, out, _ = call(capsys, *command)
    assert code == 0
    assert "round 0002-tiny" in out
    assert [m.record.id for m in list_rounds(tmp_path / "w")] == ["0001-tiny", "0002-tiny"]
    assert sha256_tree(first.directory) == before


def test_a_stage_that_is_done_is_not_done_again(
    command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = find_round(tmp_path / "w", "1")
    manifest.record.stages.pop()
    manifest.record.status = "running"
    manifest.save()
    times = {p: p.stat().st_mtime_ns for p in manifest.directory.rglob("stages/*/*") if "gate" not in p.parts}
    code, out, _ = call(capsys, *command)
    assert code == 0
    assert [line for line in out.splitlines() if "/8 " in line] == ["8/8 gate"]
    assert times == {p: p.stat().st_mtime_ns for p in times}
    assert only_round(tmp_path / "w").record.status == "done"


def results(workspace: Path) -> dict[str, str]:
    """What two runs of one seed must have in common to the byte."""
    stages = only_round(workspace).directory / "stages"
    names = (
        "sft/policy/model.safetensors", "reward/model/model.safetensors", "reward/model/heads.safetensors",
        "rl/policy/model.safetensors", "rl/policy/heads.safetensors", "samples/samples.jsonl", "labels/labels.jsonl",
        "arena/arena.json", "arena/answers.jsonl",
    )  # fmt: skip
    return {name: sha256_file(stages / name) for name in names}


@pytest.mark.slow
def test_kill_9_in_any_stage_changes_nothing_about_the_end(tmp_path: Path, tiny_model_directory: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_directory)
    longer = ("--set", "sft.epochs=3", "--set", "rl.steps=7")
    assert fork(tmp_path / "io", "run", recipe, "--workspace", tmp_path / "whole", *longer).wait() == 0
    command = ("run", recipe, "--workspace", tmp_path / "killed", *longer)
    for path in (
        "sft/checkpoints/step-",
        "samples/samples.jsonl",
        "labels/labels.jsonl",
        "reward/metrics.jsonl",
        "rl/checkpoints/step-",
        "rl/trajectories/step-0006.jsonl",
        "arena/answers.jsonl",
    ):
        killed_at(f"stages/{path}", tmp_path / "io", *command)
    last = fork(tmp_path / "io", *command)
    assert (last.wait(), last.err) == (0, "")
    assert "1/8 prompts" not in last.out
    assert "8/8 gate" in last.out
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    manifest = only_round(tmp_path / "killed")
    assert manifest.record.status == "done"
    for stage in manifest.record.stages:
        for relative, digest in stage.outputs.items():
            assert sha256_file(manifest.directory / relative) == digest, relative
