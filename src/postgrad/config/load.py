"""A recipe: TOML plus dotted overrides, checked by pydantic. An unknown key is an error that names it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from postgrad.config.compare import CompareRecipe
from postgrad.config.distill import DistillRecipe
from postgrad.config.iterate import IterateRecipe
from postgrad.config.preference import PreferenceRecipe
from postgrad.config.pretrain import PretrainRecipe
from postgrad.config.questions import RlRecipe
from postgrad.config.queue import QueueConfig
from postgrad.config.reward import RewardRecipe
from postgrad.config.round import Recipe
from postgrad.config.sft import SftRecipe
from postgrad.config.steps import StepRewardRecipe
from postgrad.errors import ConfigError

AnyRecipe = (
    Recipe
    | PretrainRecipe
    | RlRecipe
    | RewardRecipe
    | StepRewardRecipe
    | PreferenceRecipe
    | SftRecipe
    | IterateRecipe
    | DistillRecipe
    | CompareRecipe
)

RECIPES: Mapping[str, type[AnyRecipe]] = {
    "round": Recipe,
    "pretrain": PretrainRecipe,
    "rl": RlRecipe,
    "reward": RewardRecipe,
    "steps": StepRewardRecipe,
    "preference": PreferenceRecipe,
    "sft": SftRecipe,
    "iterate": IterateRecipe,
    "distill": DistillRecipe,
    "compare": CompareRecipe,
}
"""By the recipe's `method`."""


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> AnyRecipe:
    """Read a TOML recipe and apply `section.key=value` overrides (values in TOML syntax, or bare strings).

    Its `method` says which keys it may have.

    Raises:
        ConfigError: file missing, TOML malformed, a key unknown or a value out of range; every problem is named.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {str(path)!r} does not exist; `postgrad quickstart` runs the packaged one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"recipe {str(path)!r} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {e.strerror}; name a TOML file of yours") from None
    for override in overrides:
        _apply(raw, override)
    method = raw.get("method", "round")
    if method not in RECIPES:
        raise ConfigError(f"recipe {str(path)!r}: 'method' = {method!r} is not one of {', '.join(RECIPES)}")
    try:
        return RECIPES[method].model_validate(raw)
    except ValidationError as e:
        raise ConfigError(f"recipe {str(path)!r}: " + "; ".join(_explain(p) for p in e.errors())) from None


def load_queue_config(path: Path | None) -> QueueConfig:
    """Read the TOML of `postgrad label serve`; None is all defaults.

    Raises:
        ConfigError: as `load_recipe`.
    """
    try:
        return QueueConfig.model_validate({} if path is None else tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"{str(path)!r} cannot be read: {e.strerror}; name a TOML file of yours") from None
    except ValidationError as e:
        raise ConfigError(f"{str(path)!r}: " + "; ".join(_explain(p) for p in e.errors())) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.split(".")
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    table[name] = value


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"missing key {key!r}"
    said = problem["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    if isinstance(problem["input"], Mapping):
        return f"{key!r}: {said}" if key else said
    return f"{key!r} = {problem['input']!r}: {said}"
