"""Method "round": the whole loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from postgrad.config.pairs import Treatment, TreatmentConfig
from postgrad.config.rl import RlConfig
from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RewardConfig, Section, SftConfig, Share


class DataConfig(Section):
    source: str
    """"quickstart", or a JSONL/Parquet file of prompts."""
    system: str = ""
    """System message put before every prompt; empty leaves it to the model's template."""


class LabelTreatmentConfig(TreatmentConfig):
    """Of the round's own labels; `too_long` is what the model cannot read."""

    empty_answer: Treatment = "keep"
    """The policy said nothing: if the reward model never saw that, RL would."""


class RatersConfig(Section):
    """Simulated people."""

    rater_temperature: Annotated[float, Field(gt=0)] = 0.5
    careless_frac: Share = 0.1
    reference_weight: Annotated[float, Field(ge=0)] = 1.0
    """Utility of what is in a prompt's reference; that an answer ends properly is worth 1."""


class LabelsConfig(RatersConfig):
    num_prompts: Positive
    answers_per_prompt: Annotated[int, Field(ge=2, le=9)] = 2
    ratings_per_comparison: Positive = 1
    num_raters: Annotated[int, Field(gt=0, validate_default=True)] = 8
    odd: LabelTreatmentConfig = LabelTreatmentConfig()

    @field_validator("num_raters")
    @classmethod
    def _enough(cls, value: int, info: ValidationInfo) -> int:
        wanted = info.data.get("ratings_per_comparison", 1)
        if value < wanted:
            raise ValueError(f"'labels.ratings_per_comparison' asks {wanted} different ones; raise it, or ask fewer")
        return value


class ExamConfig(Section):
    """Held-out answers during RL, read by the reward model and by what it stands for."""

    gold: Literal["raters", "ensemble", "labels"] = "raters"
    """What it stands for: the simulated raters' utility, reward models of labels that it never saw, or what people say
    of the answers when they have compared them with the SFT policy's."""
    every: Positive
    """Steps between two examinations."""
    num_prompts: Annotated[int, Field(ge=8)]
    """The last ones of the split "rl", which are then not trained on."""
    best_of: Annotated[int, Field(ge=0)] = 0
    """Answers of the SFT policy to each of them, the best of which RL is held against; 0 leaves that out."""
    stop: bool = True
    """End RL where the gold score has surely fallen, and go back to its best step."""

    @field_validator("best_of")
    @classmethod
    def _no_labels_for_all(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("gold") == "labels":
            raise ValueError(
                "people would have to compare every one of these answers; remove it, or change 'exam.gold'"
            )
        return value


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
