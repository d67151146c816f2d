"""Method "preference": a policy straight from preferences, without a reward model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from postgrad.config.pairs import PairsConfig
from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, Schedule, Section, Share

PreferenceAlgorithm = Literal["dpo", "ipo", "kto", "orpo", "simpo"]


class PreferenceConfig(Section):
    """A key that is None takes the algorithm's own default (docs/preference-methods.md)."""

    algorithm: PreferenceAlgorithm
    epochs: Positive = 1
    prompts_per_step: Positive = 8
    """Each with all that was said of its answers."""
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Schedule = "linear"
    warmup_frac: Share = 0.1
    """Share of the steps over which the rate climbs to its peak."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """What a nat of log-ratio is worth; of orpo, the weight of the odds ratio beside the likelihood."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels taken to be flipped: dpo becomes conservative DPO."""
    gamma: Annotated[float, Field(ge=0)] | None = None
    """Margin that simpo's preferred answer has to win by."""

    @field_validator("label_smoothing", "gamma")
    @classmethod
    def _fits_the_algorithm(cls, value: float | None, info: ValidationInfo) -> float | None:
        owner = {"label_smoothing": "dpo", "gamma": "simpo"}[str(info.field_name)]
        algorithm = info.data.get("algorithm")
        if value and algorithm not in (None, owner):
            raise ValueError(f"belongs to {owner}, and 'preference.algorithm' is {algorithm!r}; remove it")
        return value


class PreferenceRecipe(BaseRecipe):
    """A policy from preferences alone."""

    method: Literal["preference"]
    model: ModelConfig
    """Also the reference; the name "sft" is the newest SFT policy of the workspace's rounds."""
    data: PairsConfig
    preference: PreferenceConfig

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if self.preference.algorithm != "kto":
            self.data.check_all_are_pairs()
        return self
