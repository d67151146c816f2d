"""Method "round": the whole loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from postgrad.config.rl import RlConfig
from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RewardConfig, Section, SftConfig, Share


class DataConfig(Section):
    source: str
    """"quickstart", or a JSONL/Parquet file of prompts."""
    system: str = ""
    """System message put before every prompt; empty leaves it to the model's template."""


class LabelsConfig(Section):
    num_prompts: Positive
    answers_per_prompt: Annotated[int, Field(ge=2, le=9)] = 2
    ratings_per_comparison: Positive = 1
    num_raters: Positive = 8
    rater_temperature: Annotated[float, Field(gt=0)] = 0.5
    careless_frac: Share = 0.1


class ArenaConfig(Section):
    num_prompts: Positive
    num_raters: Positive = 8
    resamples: Positive = 1000


class GateConfig(Section):
    max_length_ratio: Annotated[float, Field(gt=0)] = 1.5
    max_repetition: Share = 0.2
    max_truncated_frac: Share = 0.5
    max_kl: Annotated[float, Field(gt=0)] = 20.0


class Recipe(BaseRecipe):
    """A whole round."""

    method: Literal["round"] = "round"
    model: ModelConfig
    data: DataConfig
    sft: SftConfig
    labels: LabelsConfig
    reward: RewardConfig
    rl: RlConfig
    arena: ArenaConfig
    gate: GateConfig
