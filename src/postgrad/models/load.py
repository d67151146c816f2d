"""Hugging Face directories in and out: safetensors, tokenizer, chat template, heads. No pickle, no remote code."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from postgrad.errors import DataError
from postgrad.models.architecture import context_of
from postgrad.models.memory import keep_freed_memory
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel
from postgrad.ops.packing import pad
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer

CANARY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Rounding moves a score, whose deviation is 1, by 1e-5 (0.01); another head, or none, by far more."""
# Every linear layer of the blocks: Schulman et al. 2025, "LoRA Without Regret".
_LORA = {"target_modules": "all-linear", "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}


def load_policy(
    directory: Path,
    *,
    heads: tuple[str, ...] = (),
    lora_rank: int = 0,
    gradient_checkpointing: bool = False,
    num_rewards: int = 1,
    placement: Placement | None = None,
) -> PolicyModel:
    """A model directory, with the heads stored beside it, or fresh ones from the current random state.

    Args:
        directory: as `save_policy` or `save_pretrained` wrote it.
        heads: scalar heads wanted, out of "value" and "reward".
        lora_rank: > 0 freezes the weights and adds a fresh adapter of this rank.
        gradient_checkpointing: recompute every layer in the backward pass.
        num_rewards: of a fresh "reward" head; a stored one has its own number.
        placement: of the language model, `place()` without one; heads and adapters are float32 anywhere.

    Raises:
        DataError: not a model directory, or one that cannot be read.
    """
    if not (directory / "config.json").exists():
        raise DataError(f"{str(directory)!r} is not a model directory: it has no config.json")
    placement = placement or place()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    keep_freed_memory()
    try:
        lm: Any
        lm, loaded = AutoModelForCausalLM.from_pretrained(
            directory, dtype=placement.dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise _unreadable(directory, e) from None
    if missing := sorted(loaded["missing_keys"]):
        raise DataError(
            f"model {str(directory)!r} has no weights for {missing[0]!r} and {len(missing) - 1} more tensors; "
            "copy it again from where it was saved"
        )
    if gradient_checkpointing:
        lm.activation_checkpointing_enable()
    stored = _stored_heads(directory, heads)
    if "reward.weight" in stored:
        num_rewards = len(stored["reward.weight"])
    adapter = add_adapter(lm, lora_rank) if lora_rank else None
    model = PolicyModel(lm, heads=heads, adapter=adapter, num_rewards=num_rewards)
    model.heads.load_state_dict(stored, strict=False)
    return model.to(placement.device)


def _stored_heads(directory: Path, heads: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Of the wanted ones, those in the file beside the model; none where there is no file."""
    path = directory / "heads.safetensors"
    if not heads or not path.exists():
        return {}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as e:
        raise DataError(f"{str(path)!r} cannot be read ({e}); copy it again from where it was saved") from None
    return {k: v for k, v in tensors.items() if k.split(".")[0] in heads}


def read_config(directory: Path) -> Any:
    """The transformers configuration of a model directory; no weights are loaded.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as e:
        raise _unreadable(directory, e) from None


def context_length(directory: Path) -> int:
    """Most tokens that the model reads.

    Raises:
        DataError: its configuration cannot be read.
    """
    return context_of(read_config(directory))


def save_policy(model: PolicyModel, directory: Path, *, tokenizer_from: Path) -> None:
    """Write a directory that transformers, vLLM and `load_policy` read; an adapter is merged into the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    if model.adapter is None:
        model.lm.save_pretrained(directory)  # type: ignore[operator]
    else:
        model.adapter.save_pretrained(directory / "adapter")
        copy.deepcopy(model.adapter).merge_and_unload().save_pretrained(directory)
    if len(model.heads):
        save_file({k: v.contiguous() for k, v in model.heads.state_dict().items()}, directory / "heads.safetensors")
    tokenizer = load_tokenizer(tokenizer_from)
    # A base model without a template was trained with the built-in one: whoever loads it next needs the same.
    tokenizer.chat_template = Renderer(tokenizer).template
    tokenizer.save_pretrained(directory)


def save_reward_model(
    model: PolicyModel, directory: Path, *, tokenizer_from: Path, canaries: Sequence[Sequence[int]]
) -> None:
    """As `save_policy`, with the scores of some token sequences, for `load_reward_model` to check itself against."""
    save_policy(model, directory, tokenizer_from=tokenizer_from)
    rows = [
        {"ids": list(ids), "reward": reward} for ids, reward in zip(canaries, _rewards(model, canaries), strict=True)
    ]
    (directory / "canaries.json").write_text(json.dumps(rows), encoding="utf-8")


def load_reward_model(directory: Path, *, placement: Placement | None = None) -> PolicyModel:
    """A reward model that still says what it said when it was saved; placed as `load_policy` places a model.

    Raises:
        DataError: it has no reward head or no canaries, or scores them differently: a head that was not loaded
            is a random one, and looks like a working model.
    """
    if not (directory / "heads.safetensors").exists() or not (directory / "canaries.json").exists():
        raise DataError(f"{str(directory)!r} is not a reward model: heads.safetensors or canaries.json is missing")
    model = load_policy(directory, heads=("reward",), placement=placement)
    try:
        rows = json.loads((directory / "canaries.json").read_text(encoding="utf-8"))
        stored = getattr(torch, json.loads((directory / "config.json").read_text(encoding="utf-8"))["dtype"])
    except ValueError as e:
        raise DataError(
            f"'{directory / 'canaries.json'}' cannot be read ({e}); copy it again from where it was saved"
        ) from None
    tolerance = max(CANARY_TOLERANCE[dtype] for dtype in (stored, model.vocabulary_VD.dtype))
    for row, reward in zip(rows, _rewards(model, [row["ids"] for row in rows]), strict=True):
        if abs(reward - row["reward"]) > tolerance:
            raise DataError(
                f"reward model {str(directory)!r} scores a stored answer {reward:.4f} but scored it "
                f"{row['reward']:.4f} when it was saved; its weights are damaged, train it again"
            )
    return model


def add_adapter(lm: Any, rank: int) -> Any:
    """The peft model that has put a fresh adapter into `lm` and frozen everything else."""
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(lm, LoraConfig(r=rank, lora_alpha=2 * rank, **_LORA))


def _unreadable(directory: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(
        f"model {str(directory)!r} cannot be read ({reason}); copy it again, or pull it again if it was pulled"
    )


@torch.no_grad()
def _rewards(model: PolicyModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    model.eval()
    rewards: list[float] = model.sequence_rewards(*pad(sequences)).tolist()
    return rewards
