"""Method "steps": a reward for every step of a solution, beside one for its outcome."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RewardConfig, Section


class StepsConfig(Section):
    source: str = ""
    """A file of TRL's stepwise rows (prompt, completions, labels), relative to the recipe; empty takes the workspace's
    own reviews."""
    neutral: Literal["ignore", "good", "bad"] = "ignore"
    """What a step that was reviewed as neutral counts as; ignored, nothing is learned from it."""
    separator: str = "\n"
    """Between the steps of an answer; the grader looks for it in what a policy writes."""
    system: str = ""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the prompts, by a hash."""
    max_tokens: Positive = 512
    """Of a prompt with its solution; longer ones are left out and counted."""

    @model_validator(mode="after")
    def _separates(self) -> Self:
        if self.separator.strip() or not self.separator:
            raise ValueError("'data.separator' must be white space, such as a line break")
        return self


class StepRewardRecipe(BaseRecipe):
    """Two reward models of the same solutions: one learns from every step, the other from the outcome."""

    method: Literal["steps"]
    model: ModelConfig
    data: StepsConfig = StepsConfig()
    reward: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _no_pairs(self) -> Self:
        if self.model.lora_rank or self.reward.margin_per_grade or self.reward.label_smoothing:
            raise ValueError("steps have no 'lora_rank', 'margin_per_grade' and 'label_smoothing'; remove them")
        if self.reward.residualise_length:
            raise ValueError("a chance that steps are good has no length to take from it; remove 'residualise_length'")
        if self.reward.num_heads > 1:
            raise ValueError("a reward for steps has one head; remove 'reward.num_heads'")
        return self
