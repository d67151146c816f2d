"""Method "reward": a reward model by itself, with its certificate."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from postgrad.config.pairs import PairsConfig
from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RewardConfig, Section

Chance = Annotated[float, Field(ge=0.5, le=1)]


class PairRewardConfig(RewardConfig):
    """From pairs of any source."""

    soft_labels: tuple[Chance, Chance, Chance] | None = None
    """How sure "slightly", "clearly" and "much better" are; None is wholly sure of all."""
    rater_weights: Literal["none", "competence"] = "none"
    """"competence" multiplies each label's weight with its rater's, estimated from agreement with the others."""

    @model_validator(mode="after")
    def _one_use_of_strength(self) -> Self:
        if self.soft_labels and self.margin_per_grade:
            raise ValueError("strengths become either soft labels or margins; drop 'soft_labels' or 'margin_per_grade'")
        return self


class CertificateConfig(Section):
    num_probes: Positive = 48
    """Held-out answers that are changed in one thing each."""
    num_samples: Annotated[int, Field(ge=0)] = 24
    """Answers of the initial policy on which an ensemble's disagreement is read."""
    max_tokens: Positive = 64
    """Of such an answer."""
    log_probability: bool = True
    """Whether to compare with the answers' log-probability under the initial model, which costs a pass over them."""


class RewardRecipe(BaseRecipe):
    """A reward model from pairs."""

    method: Literal["reward"]
    model: ModelConfig
    data: PairsConfig
    reward: PairRewardConfig = PairRewardConfig()
    certificate: CertificateConfig = CertificateConfig()

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        self.data.check_all_are_pairs()
        return self

    @model_validator(mode="after")
    def _no_adapter(self) -> Self:
        if self.model.lora_rank:
            raise ValueError("a reward model is trained by 'reward.train_layers', without an adapter; drop 'lora_rank'")
        return self
