"""What ships with the package: recipes, their data, and the prompts of the evaluations."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def quickstart_rows() -> list[dict[str, Any]]:
    """The packaged prompts, in file order.

    Each row: id, prompt, reference (a person's answer), constraints (at most one; its sentence ends the prompt),
    split (sft, rm, rl, heldout or heldout_unseen) and source. `data/LICENSES.md` says where they come from.
    """
    packed = quickstart_data_path().read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]


def quickstart_data_path() -> Path:
    return Path(str(files(__name__).joinpath("data", "quickstart.jsonl.gz")))


def books_data_path() -> Path:
    """Documents for pretraining: id, source, split (train or validation) and text."""
    return Path(str(files(__name__).joinpath("data", "books.jsonl.gz")))


def limits_data_path() -> Path:
    """Demonstrations of what a model cannot do or know: id, capability, prompt and completion."""
    return Path(str(files(__name__).joinpath("data", "limits.jsonl")))


def limits_eval_path() -> Path:
    """Pairs of prompts beyond and within a model's limits, of other capabilities than `limits_data_path`'s."""
    return Path(str(files(__name__).joinpath("data", "limits-eval.jsonl")))


def languages_eval_path() -> Path:
    """The same questions in five languages."""
    return Path(str(files(__name__).joinpath("data", "languages-eval.jsonl")))


def recipe_names() -> list[str]:
    """Every packaged recipe, the quickstart first."""
    names = [path.name.removesuffix(".toml") for path in files(__name__).iterdir() if path.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != "quickstart", name))


def recipe_path(name: str) -> Path:
    """A packaged recipe by its name, else the path that was given."""
    packaged = Path(str(files(__name__).joinpath(f"{name}.toml")))
    return packaged if packaged.is_file() else Path(name)
