"""Method "round": the whole loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

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
    num_raters: Annotated[int, Field(gt=0, validate_default=True)] = 8
    rater_temperature: Annotated[float, Field(gt=0)] = 0.5
    careless_frac: Share = 0.1

    @field_validator("num_raters")
    @classmethod
    def _enough(cls, value: int, info: ValidationInfo) -> int:
        wanted = info.data.get("ratings_per_comparison", 1)
        if value < wanted:
            raise ValueError(f"'labels.ratings_per_comparison' asks {wanted} different ones; raise it, or ask fewer")
        return value


class ExamConfig(Section):
    """Held-out answers during RL, read by the reward model and by what it stands for."""

    every: Positive
    """Steps between two examinations."""
    num_prompts: Annotated[int, Field(ge=8)]
    """The last ones of the split "rl", which are then not trained on."""
    best_of: Annotated[int, Field(ge=0)] = 0
    """Answers of the SFT policy to each of them, the best of which RL is held against; 0 leaves that out."""
    stop: bool = True
    """End RL where the gold score has surely fallen, and go back to its best step."""


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
    exam: ExamConfig | None = None
    arena: ArenaConfig
    gate: GateConfig
