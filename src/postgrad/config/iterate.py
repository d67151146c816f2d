"""Method "iterate": sample, let somebody better show how, learn it, and again."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from postgrad.config.questions import GraderConfig, QuestionsConfig
from postgrad.config.round import ArenaConfig
from postgrad.config.sections import BarConfig, BaseRecipe, ModelConfig, PassesConfig, Positive, Section, Share


class IterateConfig(Section):
    rounds: Positive
    prompts_per_round: Positive
    answers_per_prompt: Positive = 1
    max_tokens: Positive = 40
    temperature: Annotated[float, Field(gt=0)] = 1.0


class EditsConfig(Section):
    """Learn from corrected answers."""

    by: Literal["simulated", "people"] = "simulated"
    """Who corrects: editors that follow the declared utility, or people at the pages of `postgrad label serve`."""
    num_editors: Positive = 4
    careless_frac: Share = 0.1
    """Share of the simulated editors' answers that they leave as they are."""


class BestConfig(Section):
    """Learn from the best of an answer's siblings, by `graders` or by a reward model."""

    reward_model: str = ""
    """Directory of one, such as a round's stages/reward/model."""
    bar: BarConfig = BarConfig()
    """What its certificate must show."""
    min_reward: float | None = None
    """A group whose best answer gets less teaches nothing: 1 for a verifier."""


class IterateRecipe(BaseRecipe):
    """Iterated fine-tuning; the section `edits` or `best` names the teacher."""

    method: Literal["iterate"]
    model: ModelConfig
    data: QuestionsConfig
    iterate: IterateConfig
    edits: EditsConfig | None = None
    best: BestConfig | None = None
    graders: tuple[GraderConfig, ...] = ()
    """Of the answers to learn from and of held-out ones, which are right where the first gives at least 1."""
    sft: PassesConfig
    arena: ArenaConfig

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if (self.edits is None) == (self.best is None):
            raise ValueError("give either a section 'edits' or a section 'best', which says who teaches")
        if self.best is not None:
            if bool(self.best.reward_model) == bool(self.graders):
                raise ValueError("the best answer is chosen either by 'graders' or by 'best.reward_model'")
            if self.iterate.answers_per_prompt < 2:
                raise ValueError("the best of one answer is no choice; raise 'iterate.answers_per_prompt'")
        if not all(grader.function for grader in self.graders):
            raise ValueError("graders of this method are functions; a reward model goes into 'best.reward_model'")
        if not self.data.tasks and any(grader.function == "reasoning-gym" for grader in self.graders):
            raise ValueError("grader 'reasoning-gym' needs 'data.tasks', whose questions it made")
        return self
