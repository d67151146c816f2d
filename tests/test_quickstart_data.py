"""The packaged prompts: who is in which split, what is asked of them, and that no evaluation prompt is among them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from postgrad.recipes import quickstart_rows

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("sft", "rm", "rl")
SEEN = {"max_words", "one_sentence", "lowercase", "starts_with", "ends_with"}
UNSEEN = {"no_commas", "min_sentences", "quoted"}


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_quickstart_data", ROOT / "tools/build_quickstart_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = load_builder()
rows = quickstart_rows()


def kinds(row: dict[str, Any]) -> list[str]:
    return [constraint["kind"] for constraint in row["constraints"]]


def normalised_base(row: dict[str, Any]) -> str:
    normalised: str = builder.normalise(builder.base_instruction(row))
    return normalised


def test_every_split_has_the_rows_that_were_packed() -> None:
    assert Counter(row["split"] for row in rows) == {
        "sft": 366,
        "rm": 384,
        "rl": 384,
        "heldout": 222,
        "heldout_unseen": 145,
    }


def test_every_row_has_exactly_the_six_fields_and_its_own_id() -> None:
    fields = {"id", "prompt", "reference", "constraints", "split", "source"}
    assert [row["id"] for row in rows if set(row) != fields] == []
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["source"] for row in rows} == {"dolly_partial"}


def test_no_instruction_occurs_twice_so_the_splits_are_disjoint() -> None:
    repeated = [text for text, n in Counter(map(normalised_base, rows)).items() if n > 1]
    assert repeated == []


def test_the_split_is_the_one_that_the_hash_of_the_instruction_gives() -> None:
    bounds = {
        "sft": (0.0, 0.25),
        "rm": (0.25, 0.5),
        "rl": (0.5, 0.75),
        "heldout": (0.75, 0.9),
        "heldout_unseen": (0.9, 1),
    }
    for row in rows:
        digest = hashlib.sha256(f"split:{normalised_base(row)}".encode()).digest()
        low, high = bounds[row["split"]]
        assert low <= int.from_bytes(digest[:8], "big") / 2**64 < high, row["id"]


def test_no_held_out_instruction_is_part_of_a_training_prompt() -> None:
    training = [f" {builder.normalise(row['prompt'])} " for row in rows if row["split"] in TRAINING]
    held_out = [f" {normalised_base(row)} " for row in rows if row["split"] not in TRAINING]
    assert [text for text in held_out if any(text in prompt for prompt in training)] == []


def test_demonstrations_carry_no_constraint() -> None:
    assert [row["id"] for row in rows if row["split"] == "sft" and row["constraints"]] == []


@pytest.mark.parametrize("split", ["rm", "rl", "heldout"])
def test_about_half_the_rewarded_and_held_out_rows_carry_one_seen_constraint_of_every_kind(split: str) -> None:
    own = [row for row in rows if row["split"] == split]
    constrained = [row for row in own if row["constraints"]]
    assert 0.4 < len(constrained) / len(own) < 0.6
    assert {kind for row in constrained for kind in kinds(row)} == SEEN
    assert {len(row["constraints"]) for row in constrained} == {1}


def test_every_unseen_row_carries_one_unseen_constraint_and_no_other_row_does() -> None:
    unseen = [kinds(row) for row in rows if row["split"] == "heldout_unseen"]
    assert {len(own) for own in unseen} == {1}
    assert {kind for own in unseen for kind in own} == UNSEEN
    assert [row["id"] for row in rows if row["split"] != "heldout_unseen" and UNSEEN & set(kinds(row))] == []


def test_constraint_values_are_the_ones_that_the_prompt_states() -> None:
    constraints = [(row["prompt"], constraint) for row in rows for constraint in row["constraints"]]
    word_limits = [(prompt, c["value"]) for prompt, c in constraints if c["kind"] == "max_words"]
    assert {value for _, value in word_limits} == set(range(8, 16))
    assert [prompt for prompt, value in word_limits if f" {value} words" not in prompt] == []
    assert {c["value"] for _, c in constraints if c["kind"] == "starts_with"} == {"Answer:"}
    assert {c["value"] for _, c in constraints if c["kind"] == "ends_with"} == {"!"}
    assert {c["value"] for _, c in constraints if c["kind"] == "min_sentences"} == {2}
    assert {tuple(c) for _, c in constraints if c["kind"] in {"one_sentence", "lowercase", "no_commas", "quoted"}} == {
        ("kind",)
    }


def test_each_constraint_is_asked_for_in_every_one_of_its_phrasings() -> None:
    used = Counter()
    for row in rows:
        for constraint in row["constraints"]:
            sentence = row["prompt"].removeprefix(builder.base_instruction(row) + " ")
            used[constraint["kind"], re.sub(r"\d+", "{}", sentence)] += 1
    assert Counter(kind for kind, _ in used) == {kind: len(phrases) for kind, phrases in builder.PHRASES.items()}


def test_prompts_and_references_are_short_single_lines_of_ascii_with_an_end() -> None:
    for row in rows:
        assert row["prompt"].isascii(), row["id"]
        assert row["reference"].isascii(), row["id"]
        assert "\n" not in row["prompt"] + row["reference"], row["id"]
        assert len(builder.base_instruction(row).split()) <= 18, row["id"]
        assert 1 <= len(row["reference"].split()) <= 24, row["id"]
        assert re.search(r"[.?!][\"')]?$", row["prompt"]), row["id"]
        assert len(row["reference"].split()) <= 4 or re.search(r"[.?!][\"')]?$", row["reference"]), row["id"]


def test_no_row_is_a_prompt_of_a_public_evaluation_set() -> None:
    packed = (ROOT / "tests/data/eval_public_prompts.bin").read_bytes()
    fingerprints = {packed[i : i + 8] for i in range(0, len(packed), 8)}
    assert len(fingerprints) == 57043
    # Known members: without them an empty or foreign file would pass.
    for known in ("How can I kill a Python process?", "Why do veins appear blue?"):
        assert builder.fingerprint(known) in fingerprints
    texts = [(row["id"], text) for row in rows for text in (row["prompt"], builder.base_instruction(row))]
    assert [row_id for row_id, text in texts if builder.fingerprint(text) in fingerprints] == []


def test_contamination_is_found_by_equality_and_by_a_run_of_13_words() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen"
    asked = [
        {"id": "equal", "prompt": "Why do veins appear blue?", "constraints": []},
        {"id": "run", "prompt": f"Say {long}.", "constraints": []},
        {"id": "clean", "prompt": f"Say {long.removeprefix('one ')}.", "constraints": []},
    ]
    prompts = ["why do VEINS appear blue", f"He counted: {long}, and stopped."]
    assert builder.contaminated(asked, prompts) == {"equal", "run"}


def test_no_row_shares_13_words_in_a_row_with_a_public_evaluation_prompt() -> None:
    directory = os.environ.get("POSTGRAD_EVAL_DATA")
    if not directory:
        pytest.skip("POSTGRAD_EVAL_DATA does not name a directory of evaluation sets (eval_public)")
    prompts = list(builder.eval_prompts(Path(directory)))
    assert len(prompts) > 50_000
    assert builder.contaminated(rows, prompts) == set()
