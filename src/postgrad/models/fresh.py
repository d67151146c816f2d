"""A model with random weights from a few lines of a recipe: any transformers configuration that `PolicyModel` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from postgrad.errors import ConfigError, DataError
from postgrad.models.footprint import activation_bytes, blank_policy
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel

_OURS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def fresh_policy(
    config: Mapping[str, Any], *, vocab_size: int, eos_id: int, placement: Placement | None = None
) -> PolicyModel:
    """Weights as the architecture initialises them, from the current random state.

    Args:
        config: "model_type" and keys of that transformers configuration; what it does not say has its default.
        vocab_size: the tokenizer's.
        eos_id: the tokenizer's.
        placement: `place()` without one.

    Raises:
        ConfigError: an unknown key, a value that the architecture refuses, or no decoder that can be trained here.
    """
    transformers_logging.disable_progress_bar()
    placement = placement or place()
    made = fresh_config(config, vocab_size=vocab_size, eos_id=eos_id)
    try:
        return PolicyModel(AutoModelForCausalLM.from_config(made, dtype=placement.dtype)).to(placement.device)
    except DataError as e:
        raise ConfigError(f"'model.config': {e}") from None


def fresh_config(config: Mapping[str, Any], *, vocab_size: int, eos_id: int) -> Any:
    """The transformers configuration of `fresh_policy`, once a blank model of it has run.

    Raises:
        ConfigError: as `fresh_policy`.
    """
    ours = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": eos_id, "pad_token_id": None}
    _check_keys(config)
    name = config["model_type"]
    try:
        made = AutoConfig.for_model(**config, **ours)
        model = blank_policy(made)
        assert model.layers, "it has no layers"
        assert model.context > 1, "its context is shorter than two tokens"
        activation_bytes(model)
    # Every architecture has its own way of refusing a shape, down to KeyError and bare Exception.
    except Exception as e:  # noqa: BLE001
        raise ConfigError(f"'model.config': {name!r} cannot be built from these values ({_reason(e)})") from None
    return made


def _check_keys(config: Mapping[str, Any]) -> None:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ConfigError("missing key 'model.config.model_type'; name an architecture, such as llama or qwen3")
    try:
        default = AutoConfig.for_model(name)
    except ValueError:
        raise ConfigError(
            f"'model.config.model_type' = {name!r} is no architecture of transformers; name one, such as llama or qwen3"
        ) from None
    known = default.to_dict().keys() | default.attribute_map.keys()
    for key in config:
        if key in _OURS:
            raise ConfigError(f"'model.config.{key}' comes from the tokenizer; remove it")
        if key not in known:
            raise ConfigError(f"unknown key 'model.config.{key}'; {name!r} has {', '.join(sorted(known - {*_OURS}))}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
