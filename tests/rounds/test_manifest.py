import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from postgrad.errors import StoreError, TrainingDiverged
from postgrad.rounds.manifest import Manifest, find_or_create_round, find_round, list_rounds, recipe_sha256

VERSIONS = {"postgrad": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.16.0"}
MODEL = {"name": "smollm2-135m", "sha256": "ab" * 32}
RECIPE = {"method": "round", "name": "quickstart", "seed": 3, "sft": {"epochs": 1}}
PROMPTS = {"prompts": "cd" * 32}


def begin(workspace: Path, **changes: object) -> Manifest:
    return find_or_create_round(workspace, {**RECIPE, **changes}, versions=VERSIONS, model=MODEL)


def finish_sft(manifest: Manifest) -> None:
    with manifest.stage("sft", inputs=PROMPTS) as stage:
        assert stage.todo
        (stage.directory / "checkpoints").mkdir()
        (stage.directory / "checkpoints" / "optimizer").write_bytes(b"scratch")
        (stage.directory / "model").mkdir()
        (stage.directory / "model" / "weights").write_bytes(b"abc")
        stage.add_tokens(trained=70, scored=1)
        stage.add_tokens(trained=30)
        stage.policy_version = 1
        stage.summary = {"loss_first": 2.0, "loss_last": 1.5, "examples": 4}


def test_a_finished_stage_records_what_it_made_from_what(tmp_path: Path) -> None:
    finish_sft(begin(tmp_path))
    written = json.loads((tmp_path / "rounds" / "0001-quickstart" / "manifest.json").read_text())
    (stage,) = written.pop("stages")
    assert written["id"] == "0001-quickstart"
    assert (written["recipe"], written["seed"], written["status"]) == ("quickstart", 3, "running")
    assert (written["versions"], written["model"]) == (VERSIONS, MODEL)
    assert stage["outputs"] == {"stages/sft/model/weights": hashlib.sha256(b"abc").hexdigest()}
    assert stage["inputs"] == PROMPTS
    assert stage["tokens"] == {"generated": 0, "trained": 100, "scored": 1}
    assert (stage["status"], stage["policy_version"], stage["error"]) == ("done", 1, None)
    assert stage["summary"] == {"loss_first": 2.0, "loss_last": 1.5, "examples": 4}
    assert stage["started_at"].endswith("+00:00")
    assert 0 < stage["seconds"] < 5
    assert 2**20 < stage["peak_memory_bytes"] < 2**40


def test_a_finished_stage_is_skipped_by_the_next_run(tmp_path: Path) -> None:
    finish_sft(begin(tmp_path))
    manifest = begin(tmp_path)
    before = (manifest.directory / "manifest.json").read_bytes()
    with manifest.stage("sft", inputs=PROMPTS) as stage:
        assert not stage.todo
        assert stage.summary["loss_last"] == 1.5
        assert stage.policy_version == 1
    assert (manifest.directory / "manifest.json").read_bytes() == before


def test_a_changed_output_is_named_with_the_fix(tmp_path: Path) -> None:
    finish_sft(begin(tmp_path))
    manifest = begin(tmp_path)
    weights = manifest.directory / "stages" / "sft" / "model" / "weights"
    weights.write_bytes(b"abd")
    with pytest.raises(
        StoreError, match=r"sft/model/weights, written by stage 'sft', has changed; restore it, or delete"
    ):
        manifest.stage("sft", inputs=PROMPTS)
    weights.unlink()
    with pytest.raises(StoreError, match=r"sft/model/weights, written by stage 'sft', is gone; "):
        manifest.stage("sft", inputs=PROMPTS)


def test_other_inputs_are_refused_and_both_are_named(tmp_path: Path) -> None:
    finish_sft(begin(tmp_path))
    with pytest.raises(StoreError, match="'sft' was begun with 'prompts' = cdcdcdcdcdcd, which is now efefefefefef; "):
        begin(tmp_path).stage("sft", inputs={"prompts": "ef" * 32})
    with pytest.raises(StoreError, match="was begun with 'prompts' = cdcdcdcdcdcd, which is now absent; "):
        begin(tmp_path).stage("sft", inputs={})


def test_a_stage_that_fails_says_why_and_is_tried_again(tmp_path: Path) -> None:
    manifest = begin(tmp_path)
    with pytest.raises(TrainingDiverged), manifest.stage("sft", inputs=PROMPTS):
        raise TrainingDiverged("loss is not finite at step 3")
    again = begin(tmp_path)
    assert again.record.id == manifest.record.id
    assert again.record.status == "failed"
    failed = again.find("sft")
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", "loss is not finite at step 3")
    finish_sft(again)
    assert again.record.status == "running"
    assert [(s.name, s.status, s.error) for s in Manifest.load(again.directory).record.stages] == [
        ("sft", "done", None)
    ]


def interrupt(manifest: Manifest) -> None:
    with manifest.stage("rl", inputs={}) as stage:
        stage.add_tokens(generated=10)
        time.sleep(0.05)
        raise KeyboardInterrupt


def test_seconds_and_tokens_add_up_over_interruptions_which_leave_the_stage_running(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        manifest = begin(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            interrupt(manifest)
        record = Manifest.load(manifest.directory).find("rl")
        assert record is not None
        assert (record.status, record.tokens.generated) == ("running", 10 * attempt)
        assert 0.05 * attempt <= record.seconds < 1


KILLED = """
import sys, time
from pathlib import Path
from postgrad.rounds.manifest import Manifest
with Manifest.load(Path(sys.argv[1])).stage("rl", inputs={}) as stage:
    stage.add_tokens(generated=7)
    stage.save()
    print("saved", flush=True)
    time.sleep(60)
"""


def test_kill_9_keeps_what_was_saved_and_the_round_goes_on(tmp_path: Path) -> None:
    directory = begin(tmp_path).directory
    with subprocess.Popen([sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        child.send_signal(signal.SIGKILL)
    manifest = begin(tmp_path)
    assert manifest.directory == directory
    with manifest.stage("rl", inputs={}) as stage:
        assert stage.todo
        assert stage.record.tokens.generated == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak memory")
def test_peak_memory_belongs_to_the_stage_not_to_those_before_it(tmp_path: Path) -> None:
    manifest = begin(tmp_path)
    with manifest.stage("sft", inputs={}):
        large = bytearray(200 << 20)
        del large
    with manifest.stage("rl", inputs={}):
        pass
    sft, rl = manifest.record.stages
    assert sft.peak_memory_bytes - rl.peak_memory_bytes > 150 << 20


def test_the_digest_of_a_stage_follows_its_outputs(tmp_path: Path) -> None:
    manifest = begin(tmp_path)
    with pytest.raises(AssertionError, match="'sft' must be done"):
        manifest.digest("sft")
    finish_sft(manifest)
    listing = f"{hashlib.sha256(b'abc').hexdigest()}  stages/sft/model/weights\n"
    assert manifest.digest("sft") == hashlib.sha256(listing.encode()).hexdigest()


def test_an_unfinished_round_of_the_same_recipe_model_and_versions_continues(tmp_path: Path) -> None:
    first = begin(tmp_path)
    assert begin(tmp_path).record.id == "0001-quickstart"
    assert json.loads((first.directory / "recipe.json").read_text()) == RECIPE
    assert begin(tmp_path, seed=4).record.id == "0002-quickstart"
    newer = find_or_create_round(tmp_path, RECIPE, versions={**VERSIONS, "torch": "2.14"}, model=MODEL)
    assert newer.record.id == "0003-quickstart"
    other = find_or_create_round(tmp_path, RECIPE, versions=VERSIONS, model={**MODEL, "sha256": "00" * 32})
    assert other.record.id == "0004-quickstart"
    finish_sft(first)
    first.finish()
    assert begin(tmp_path).record.id == "0005-quickstart"
    assert [m.record.status for m in list_rounds(tmp_path)] == ["done", "running", "running", "running", "running"]


def test_a_round_is_not_finished_while_a_stage_is_not(tmp_path: Path) -> None:
    manifest = begin(tmp_path)
    with pytest.raises(KeyboardInterrupt), manifest.stage("sft", inputs={}):
        raise KeyboardInterrupt
    with pytest.raises(AssertionError, match=r"\['sft'\] are not done"):
        manifest.finish()


def test_the_number_of_a_directory_without_manifest_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "rounds" / "0007-broken").mkdir(parents=True)
    assert begin(tmp_path).record.id == "0008-quickstart"


def test_a_round_is_found_by_id_number_directory_or_as_the_latest(tmp_path: Path) -> None:
    first, second = begin(tmp_path), begin(tmp_path, name="other")
    for reference in ("0001-quickstart", "1", "0001", str(first.directory)):
        assert find_round(tmp_path, reference).record.id == "0001-quickstart"
    assert find_round(tmp_path, "latest").record.id == second.record.id == "0002-other"
    with pytest.raises(StoreError, match=r"no round '3' in workspace .*; rounds: 0001-quickstart, 0002-other"):
        find_round(tmp_path, "3")
    with pytest.raises(StoreError, match="rounds: none yet; `postgrad quickstart` makes one"):
        find_round(tmp_path / "empty", "latest")


@pytest.mark.parametrize(
    ("content", "problem"),
    [('{"id": ', "the file: Invalid JSON"), ('{"id": 1}', "id: Input should be a valid string"), (None, "not a round")],
)
def test_a_broken_manifest_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=problem):
        Manifest.load(tmp_path)


def test_the_order_of_a_recipes_keys_does_not_change_its_hash() -> None:
    assert recipe_sha256({"a": 1, "b": {"c": 2, "d": 3}}) == recipe_sha256({"b": {"d": 3, "c": 2}, "a": 1})
    assert recipe_sha256({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()
