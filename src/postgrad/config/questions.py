"""Method "rl": questions whose answers can be checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from postgrad.config.rl import RlConfig
from postgrad.config.sections import BarConfig, BaseRecipe, ModelConfig, Positive, Section


class TaskConfig(Section):
    """Questions from one reasoning-gym data set."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    """The data set's own keys, without `seed` and `size`."""
    num_train: Positive
    num_heldout: Positive
    shots: Annotated[int, Field(ge=0)] = 0
    """Solved questions, in neither part, that are shown before every question."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the training questions, relative to the other tasks."""

    @field_validator("config")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(value.keys() & {"seed", "size"})
        if taken:
            raise ValueError(f"{taken[0]!r} is set by the recipe's seed and counts; remove it")
        return value


class QuestionsConfig(Section):
    """Either `tasks` or `source`."""

    tasks: tuple[TaskConfig, ...] = ()
    source: str = ""
    """A JSONL or Parquet file of prompts with their `target`."""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the rows of `source` without a `split`, by a hash of their text, so that equal questions are on one side."""
    system: str = ""
    """System message put before every prompt; empty leaves it to the model's template."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.tasks) == bool(self.source):
            raise ValueError("name either 'data.tasks' or 'data.source'")
        return self


class JudgeConfig(Section):
    """Either an OpenAI-compatible `endpoint` with the `model` that it calls so, or a `checkpoint` in this process."""

    endpoint: str = ""
    """URL; its key is read from POSTGRAD_JUDGE_KEY."""
    model: str = ""
    checkpoint: str = ""
    """Name or directory of a model."""
    rubric: str = ""
    """Text file, relative to the recipe, that says what makes an answer better; there is one without."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.endpoint) == bool(self.checkpoint) or bool(self.endpoint) != bool(self.model):
            raise ValueError("name a judge: 'endpoint' with 'model', or 'checkpoint'")
        return self


class GraderConfig(Section):
    """One of `function`, `reward_model` and `judge`."""

    function: str = ""
    """"reasoning-gym", "math", "form", or the module:name or file.py:name of a function.

    It takes (prompt, answer, target, metadata) and returns a number, or None to abstain.
    """
    reward_model: str = ""
    """Directory of a reward model, relative to the recipe; refused unless its certificate passes `bar`."""
    bar: BarConfig = BarConfig()
    judge: JudgeConfig | None = None
    """Compares every two answers of a group in both orders."""
    weight: float = 1.0
    """Of its scores in the reward; with 0 it is measured on the held-out questions alone."""

    @property
    def name(self) -> str:
        if self.judge is not None:
            return f"judge {self.judge.model or self.judge.checkpoint}"
        return self.function or self.reward_model

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.function) + bool(self.reward_model) + (self.judge is not None) != 1:
            raise ValueError("name one of 'function', 'reward_model' and 'judge'")
        return self


class EvalConfig(Section):
    every: Positive
    """Steps between two examinations on the held-out questions."""


class RlRecipe(BaseRecipe):
    """A policy against graders that can check an answer."""

    method: Literal["rl"]
    model: ModelConfig
    data: QuestionsConfig
    graders: Annotated[tuple[GraderConfig, ...], Field(min_length=1)]
    """An answer is right where the first of them gives at least 1."""
    rl: RlConfig
    eval: EvalConfig

    @field_validator("graders")
    @classmethod
    def _rewarded(cls, value: tuple[GraderConfig, ...]) -> tuple[GraderConfig, ...]:
        names = [grader.name for grader in value]
        if value[0].weight == 0 or not value[0].function:
            raise ValueError(
                "the first grader needs a function and a weight, since it says which answers are right; how good they "
                "are, a reward model or a judge may say after it"
            )
        if len(set(names)) < len(names):
            raise ValueError("every grader can be named once")
        return value

    @model_validator(mode="after")
    def _tasks_have_verifiers(self) -> Self:
        if not self.data.tasks and any(grader.function == "reasoning-gym" for grader in self.graders):
            raise ValueError("grader 'reasoning-gym' needs 'data.tasks', whose questions it made")
        return self
