"""Nothing that a round trains on is a held-out prompt or a prompt of a public evaluation set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_quickstart_data import builder
from tiny_round import NO_BAR, call

from postgrad.data.text import read_documents
from postgrad.db.engine import sqlite_url
from postgrad.feedback.store import LabelStore
from postgrad.recipes import books_data_path, quickstart_rows
from postgrad.rounds.manifest import find_round
from postgrad.run import RunDirectory

SETTINGS = {
    "sft.num_examples": 64, "labels.num_prompts": 48, "labels.answers_per_prompt": 2, "reward.train_layers": 0,
    "reward.bar": NO_BAR, "rl.steps": 3, "rl.prompts_per_step": 16, "rl.group_size": 2, "rl.max_tokens": 8,
    "arena.num_prompts": 12, "arena.num_raters": 2, "arena.resamples": 10,
}  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_a_round_trained_on_is_held_out_nowhere(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    model = f"model.name={json.dumps(str(tiny_model_directory))}"
    assert call(capsys, "quickstart", "--workspace", tmp_path, "--set", model, *settings)[0] == 0
    manifest = find_round(tmp_path, "latest")

    trained = {
        "sft": {(row["id"], row["prompt"]) for row in read_lines(manifest.stage_directory("sft") / "examples.jsonl")}
    }
    with LabelStore(sqlite_url(tmp_path / "postgrad.db")) as store:
        judged = list(store.preferences(purpose="train"))
    trained["labels"] = {(j.prompt_id, j.comparison.prompt.messages[-1].content) for j in judged}
    run = RunDirectory(manifest.stage_directory("rl"))
    steps = [int(row["step"]) for row in run.read_metrics()]
    trained["rl"] = {(row["example_id"], row["prompt"]) for step in steps for row in run.read_trajectories(step)}
    assert {name: len(rows) for name, rows in trained.items()} == {"sft": 64, "labels": 48, "rl": 48}

    packed = quickstart_rows()
    split_of = {row["id"]: row["split"] for row in packed}
    prompt_of = {row["id"]: row["prompt"] for row in packed}
    own = {"sft": "sft", "labels": "rm", "rl": "rl"}
    for name, rows in trained.items():
        assert {split_of[row_id] for row_id, _ in rows} == {own[name]}
        assert all(prompt_of[row_id] == prompt for row_id, prompt in rows)

    questions = {builder.normalise(prompt) for rows in trained.values() for _, prompt in rows}
    held_out = [row for row in packed if row["split"].startswith("heldout")]
    assert len(held_out) == 367
    for row in held_out:
        assert builder.normalise(row["prompt"]) not in questions
    judged_on = {row["prompt_id"] for row in read_lines(manifest.stage_directory("arena") / "answers.jsonl")}
    assert {split_of[row_id] for row_id in judged_on} == {"heldout"}

    fingerprints = (Path(__file__).parent / "data/eval_public_prompts.bin").read_bytes()
    public = {fingerprints[i : i + 8] for i in range(0, len(fingerprints), 8)}
    assert builder.fingerprint("Why do veins appear blue?") in public
    own_rows = {pair for rows in trained.values() for pair in rows}
    bases = {builder.base_instruction(row) for row in packed if (row["id"], row["prompt"]) in own_rows}
    assert len(bases) == 160
    seen = {prompt for _, prompt in own_rows} | bases
    assert [text for text in sorted(seen) if builder.fingerprint(text) in public] == []


def test_what_a_base_model_is_pretrained_on_is_in_no_evaluation_and_not_in_its_own_validation() -> None:
    documents = read_documents(books_data_path())
    held_out = [d for d in documents if d.part == "validation"]
    assert (len(documents), len(held_out)) == (995, 46)
    assert books_data_path().stat().st_size < 4_000_000
    runs = {run for d in held_out for run in builder.word_runs(d.text)}
    assert len(runs) > 50_000
    assert [d.id for d in documents if d.part == "train" and not runs.isdisjoint(builder.word_runs(d.text))] == []

    fingerprints = (Path(__file__).parent / "data/eval_public_prompts.bin").read_bytes()
    public = {fingerprints[i : i + 8] for i in range(0, len(fingerprints), 8)}
    paragraphs = {part for d in documents for part in d.text.split("\n") if len(part.split()) > 3}
    assert len(paragraphs) > 30_000
    assert [text for text in sorted(paragraphs) if builder.fingerprint(text) in public] == []
