"""A whole round small enough for a test: sixty generated prompts, a byte-level model, a few steps of everything."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from postgrad.cli import main

SPLITS = {"sft": 12, "rm": 16, "rl": 12, "heldout": 14, "heldout_unseen": 6}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "error"}

NO_BAR = "{ min_accuracy = 0.0, max_calibration_error = 1.0, max_probe_gain = 1e9 }"
"""Any reward model passes it."""

FIRST_STAGES = """\
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
bar = {bar}
"""
RECIPE = (
    """
name = "tiny"
seed = 7
batch_tokens = 2048

[model]
name = {model}
lora_rank = {lora_rank}

"""
    + FIRST_STAGES
    + """
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
)


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
    recipe.write_text(RECIPE.format(model=json.dumps(str(model)), algorithm=algorithm, lora_rank=lora_rank, bar=NO_BAR))
    return recipe


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line, in this process."""
    before = sys.argv
    sys.argv = ["postgrad", *map(str, arguments)]
    capsys.readouterr()
    gc.freeze()  # every stage looks for garbage, and need not look through all that the tests have loaded
    try:
        main()
        code: Any = 0
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return int(code), out, err


@dataclass(frozen=True)
class Forked:
    """The command line in a process that did not have to import anything."""

    process: BaseProcess
    folder: Path

    @property
    def out(self) -> str:
        path = self.folder / "out"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(encoding="utf-8")

    def wait(self) -> int | None:
        """The exit code, or minus the signal."""
        self.process.join()
        return self.process.exitcode


def fork(folder: Path, *arguments: object, max_file_bytes: int | None = None, dies_at: str = "") -> Forked:
    """Start the command line; what it says goes to `folder`/out and `folder`/err.

    It gets kill -9 right after it opened or renamed to a path that contains `dies_at`.
    """
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["postgrad.rounds.round", "postgrad.rounds.summary", "postgrad.recipes"])
    process = context.Process(target=_command, args=(folder, list(map(str, arguments)), max_file_bytes, dies_at))
    process.start()
    return Forked(process, folder)


def killed_at(path: str, folder: Path, *arguments: object) -> None:
    """Run the command line up to there."""
    process = fork(folder, *arguments, dies_at=path)
    assert process.wait() == -signal.SIGKILL, process.err


def _command(folder: Path, arguments: list[str], max_file_bytes: int | None, dies_at: str) -> None:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    if dies_at:
        _die_at(dies_at)
    sys.argv = ["postgrad", *arguments]
    gc.freeze()
    main()


def _die_at(path: str) -> None:
    """An audit hook is told before a thing is done, so what it hears next comes after."""
    reached = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal reached
        if reached:
            signal.raise_signal(signal.SIGKILL)  # os.kill would be audited, too
        reached = event in ("open", "os.rename") and path in str(args[event == "os.rename"])

    sys.addaudithook(hook)


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
