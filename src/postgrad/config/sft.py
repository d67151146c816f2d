"""Method "sft": demonstrations alone, from several files at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RateConfig, Section


class DemonstrationsConfig(Section):
    source: str
    """"quickstart", "limits", or a JSONL or Parquet file of conversations, or of prompts with their completions."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the rows that are drawn, relative to the other sets."""
    splits: tuple[str, ...] = ()
    """Only rows whose `split` is one of these; all, if empty."""
    turns: Literal["all", "last", "named"] = "all"
    """Which assistant turns are learned: of a row with `completion` those of the completion, "named" ones by their
    numbers, from 1, in the row's own `train`."""


class MixtureConfig(Section):
    sets: Annotated[tuple[DemonstrationsConfig, ...], Field(min_length=1)]
    system: str = ""
    """System message put before every conversation that has none; empty leaves it to the model's template."""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of every set, by a hash of the first user message; never learned, and its loss is the validation loss."""


class ImitationConfig(RateConfig):
    steps: Positive
    examples_per_step: Positive = 16
    evaluate_every: Positive
    """Steps between two readings of the validation loss."""


class SftRecipe(BaseRecipe):
    """Supervised fine-tuning by itself."""

    method: Literal["sft"]
    model: ModelConfig
    data: MixtureConfig
    sft: ImitationConfig
