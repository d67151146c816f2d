"""A whole round small enough for a test: sixty generated prompts, a byte-level model, a few steps of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from postgrad.cli import main

SPLITS = {"sft": 12, "rm": 16, "rl": 12, "heldout": 14, "heldout_unseen": 6}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "error"}

RECIPE = """
name = "tiny"
seed = 7
batch_tokens = 2048

[model]
name = {model}
lora_rank = {lora_rank}

[data]
source = "rows.jsonl"
system = "Be brief."

[sft]
num_examples = 12
examples_per_step = 3
learning_rate = 1e-2

[labels]
num_prompts = 16
answers_per_prompt = 3
num_raters = 4

[reward]
prompts_per_step = 4
learning_rate = 1e-3
min_accuracy = 0.0

[rl]
algorithm = "{algorithm}"
steps = 4
prompts_per_step = 4
group_size = 3
epochs = 1
minibatches = 2
learning_rate = 1e-3
max_tokens = 12
kl_stop = 1e6

[arena]
num_prompts = 10
num_raters = 3
resamples = 100

[gate]
max_length_ratio = 100
max_truncated_frac = 1
max_kl = 1e6
"""


def make_rows() -> list[dict[str, Any]]:
    rows = []
    for split, num in SPLITS.items():
        for i in range(num):
            constraint = {"kind": "no_commas"} if split == "heldout_unseen" else {"kind": "max_words", "value": 9}
            rows.append(
                {
                    "id": f"{split}-{i}",
                    "split": split,
                    "prompt": f"What is {len(rows)} plus {i}?",
                    "reference": f"{len(rows) + i}.",
                    "constraints": [constraint] if split != "sft" and i % 2 else [],
                }
            )
    return rows


def write_recipe(
    folder: Path,
    model: Path,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    algorithm: str = "ppo",
    lora_rank: int = 0,
) -> Path:
    """`folder`/tiny.toml, with its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in (make_rows() if rows is None else rows)]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(model=json.dumps(str(model)), algorithm=algorithm, lora_rank=lora_rank))
    return recipe


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line, in this process."""
    before = sys.argv
    sys.argv = ["postgrad", *map(str, arguments)]
    capsys.readouterr()
    try:
        main()
        code: Any = 0
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return int(code), out, err


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "postgrad", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
