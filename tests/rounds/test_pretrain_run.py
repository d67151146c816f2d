"""Method "pretrain" through the command line: text in, a base model out that the rest of the house can use."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_round import call, fork, killed_at, write_recipe

from postgrad.engine.local import LocalEngine
from postgrad.models.load import context_length, load_policy
from postgrad.rounds.manifest import METHODS, Manifest, find_round, list_rounds
from postgrad.run import RunDirectory, sha256_file
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import GenerationRequest, SamplingParams

Capture = pytest.CaptureFixture[str]

RECIPE = """
name = "tiny-base"
method = "pretrain"
seed = 3
batch_tokens = 512

[model.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 64
tie_word_embeddings = true

[data]
source = "texts.jsonl"

[tokenizer]
vocab_size = 300

[pretrain]
steps = 30
rows_per_step = 4
learning_rate = 3e-2
evaluate_every = 8
"""


def write_pretrain_recipe(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"d{i}", "text": f"The {n} is a number. After {n} comes {n + 1}.\n" * 4} for i, n in enumerate(range(40))
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "tiny-base.toml"
    recipe.write_text(RECIPE)
    return recipe


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    recipe = write_pretrain_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["postgrad", "run", str(recipe), "--workspace", str(folder / "workspace")])
        from postgrad.cli import main

        with pytest.raises(SystemExit) as e:
            main()
    assert e.value.code in (0, None)
    return folder / "workspace"


def only_run(workspace: Path) -> Manifest:
    (manifest,) = list_rounds(workspace)
    return manifest


def test_every_stage_is_done_and_its_files_are_those_of_the_manifest(workspace: Path) -> None:
    manifest = only_run(workspace)
    record = manifest.record
    assert (record.id, record.method, record.status) == ("0001-tiny-base", "pretrain", "done")
    assert [(s.name, s.status) for s in record.stages] == [(name, "done") for name in METHODS["pretrain"]]
    for stage in record.stages:
        assert stage.outputs, stage.name
        for relative, digest in stage.outputs.items():
            assert sha256_file(manifest.directory / relative) == digest, relative
    assert not (manifest.stage_directory("pretrain") / "checkpoints").exists()


def test_the_manifest_names_the_device_and_not_that_it_was_chosen(workspace: Path) -> None:
    assert find_round(workspace, "latest").record.versions["device"] == "cpu, float32"


def test_what_the_stages_say_of_themselves_adds_up(workspace: Path) -> None:
    manifest = only_run(workspace)
    summaries = {stage.name: stage.summary for stage in manifest.record.stages}
    text, tokens, evaluation = summaries["text"], summaries["tokenizer"], summaries["evaluate"]
    assert (text["train_documents"], text["validation_documents"]) == (38, 2)
    assert tokens["train_tokens"] * tokens["train_bytes_per_token"] == pytest.approx(text["train_bytes"])
    assert summaries["pretrain"]["loss_last"] < summaries["pretrain"]["loss_first"] - 1
    rows = RunDirectory(manifest.stage_directory("pretrain")).read_metrics()
    assert [row["step"] for row in rows if "validation/bits_per_byte" in row] == [8, 16, 24, 30]
    # Two ways to read the same number: the trainer's packed rows, and plain transformers on the saved model.
    assert evaluation["bits_per_byte"] == pytest.approx(rows[-1]["validation/bits_per_byte"], abs=1e-5)
    bits = evaluation["nats_per_token"] / math.log(2) * tokens["validation_tokens"]
    assert evaluation["bits_per_byte"] == pytest.approx(bits / text["validation_bytes"])
    assert evaluation["bits_per_byte_low"] <= evaluation["bits_per_byte"] <= evaluation["bits_per_byte_high"]
    assert evaluation["bits_per_byte"] < evaluation["unigram_bits_per_byte"]
    assert sum(row["n"] for row in evaluation["calibration"]) == tokens["validation_tokens"]
    assert sum(row["n"] for row in evaluation["all_calibration"]) == tokens["validation_tokens"] * tokens["vocabulary"]


def test_the_unigram_baseline_by_hand(workspace: Path) -> None:
    manifest = only_run(workspace)
    parts = [
        load_file(manifest.stage_directory("tokenizer") / f"{part}.safetensors")["ids"].tolist()[1:]
        for part in ("train", "validation")
    ]
    size = max(max(part) for part in parts) + 1
    nats = -sum(math.log((parts[0].count(token) + 1) / (len(parts[0]) + size)) for token in parts[1])
    num_bytes = manifest.find("text").summary["validation_bytes"]  # type: ignore[union-attr]
    said = manifest.find("evaluate").summary["unigram_bits_per_byte"]  # type: ignore[union-attr]
    assert said == pytest.approx(nats / math.log(2) / num_bytes)


def test_the_model_is_a_directory_like_any_other(workspace: Path) -> None:
    policy = only_run(workspace).stage_directory("pretrain") / "policy"
    model = load_policy(policy, lora_rank=2)
    renderer = Renderer(load_tokenizer(policy))
    assert (context_length(policy), len(renderer.tokenizer)) == (64, len(model.vocabulary_VD))
    assert renderer.stop_ids == (model.lm.config.eos_token_id,)
    engine = LocalEngine(load_policy(policy), stop_ids=renderer.stop_ids, decode=renderer.decode)
    (said,) = engine.sample([GenerationRequest((0,), SamplingParams(max_tokens=8, temperature=1.0), 0)])
    assert 1 <= len(said.token_ids) <= 8


def test_a_round_can_start_from_it(workspace: Path, tmp_path: Path, capsys: Capture) -> None:
    policy = only_run(workspace).stage_directory("pretrain") / "policy"
    model = shutil.copytree(policy, tmp_path / "base")
    recipe = write_recipe(tmp_path, model)
    keys = ("rl.steps=1", "arena.resamples=10", "data.system=", "rl.max_tokens=4")
    settings = [part for key in keys for part in ("--set", key)]
    code, out, _ = call(capsys, "run", recipe, "--workspace", tmp_path / "w", *settings)
    assert code == 0
    assert "round 0001-tiny" in out


def test_the_list_of_rounds_and_the_report_show_it(workspace: Path, capsys: Capture) -> None:
    code, out, _ = call(capsys, "rounds", "--workspace", workspace)
    assert code == 0
    assert "0001-tiny-base" in out
    code, out, err = call(capsys, "report", "--workspace", workspace)
    assert (code, err) == (0, "")
    html = Path(out.strip()).read_text(encoding="utf-8")
    for shown in ("Bits per byte", "Validation loss", "The likeliest outcome", "All outcomes", "all stages of method"):
        assert shown in html, shown
    summary = find_round(workspace, "latest").find("evaluate").summary  # type: ignore[union-attr]
    interval = "{bits_per_byte:.4f} [{bits_per_byte_low:.4f},\u00a0{bits_per_byte_high:.4f}]".format_map(summary)
    assert f'<td>Bits per byte</td><td class="n">{interval}</td>' in html
    assert html.count("Bits per byte") == 1
    assert html.count("<svg") == 6
    assert html.count('<article class="card sample">') == 2
    assert "<script" not in html


def test_a_finished_command_says_what_came_out(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_pretrain_recipe(tmp_path)
    code, out, err = call(capsys, "run", recipe, "--workspace", tmp_path / "w", "--set", "pretrain.steps=2")
    assert (code, err) == (0, "")
    assert "4/4 evaluate" in out
    assert "bits per byte" in out
    assert out.rstrip().endswith(f"postgrad chat {tmp_path}/w/rounds/0001-tiny-base/stages/pretrain/policy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "model.config.hiden_size=3"), "unknown key 'model.config.hiden_size'; 'llama' has "),
        (("--set", "model.config.num_attention_heads=3"), "'model.config': 'llama' cannot be built"),
        (("--set", "sft.epochs=3"), "unknown key 'sft'"),
        (("--set", "tokenizer.vocab_size=256"), "'tokenizer.vocab_size' = 256: input should be greater than 256"),
        (("--set", "data.source=gone.txt"), "gone.txt' does not exist"),
        (("--set", "data.source=quickstart"), "'text' must be text"),
        (("--me",), "--me answers the comparisons of a round, and method 'pretrain' asks none; drop it"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_run(
    tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], said: str
) -> None:
    recipe = write_pretrain_recipe(tmp_path)
    code, _, err = call(capsys, "run", recipe, "--workspace", tmp_path / "w", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list_rounds(tmp_path / "w") == []


@pytest.mark.slow
def test_kill_9_changes_nothing_about_the_end(tmp_path: Path) -> None:
    recipe = write_pretrain_recipe(tmp_path)
    longer = ("--set", "pretrain.steps=45")
    assert fork(tmp_path / "io", "run", recipe, "--workspace", tmp_path / "whole", *longer).wait() == 0
    command = ("run", recipe, "--workspace", tmp_path / "killed", *longer)
    killed_at("pretrain/checkpoints/step-", tmp_path / "io", *command)
    assert only_run(tmp_path / "killed").record.stages[-1].status == "running"
    last = fork(tmp_path / "io", *command)
    assert (last.wait(), last.err) == (0, "")
    assert "2/4 tokenizer" not in last.out
    ends = [find_round(tmp_path / name, "1") for name in ("whole", "killed")]
    names = ("pretrain/policy/model.safetensors", "evaluate/evaluation.json", "evaluate/samples.jsonl")
    for name in names:
        whole, killed = (sha256_file(m.directory / "stages" / name) for m in ends)
        assert whole == killed, name
