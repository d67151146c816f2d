"""Method "compare": several methods from one start, on the same prompts and labels, before the same raters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from postgrad.config.distill import DistillConfig, TeacherConfig
from postgrad.config.iterate import EditsConfig
from postgrad.config.preference import PreferenceConfig
from postgrad.config.rl import RlConfig
from postgrad.config.round import ArenaConfig, DataConfig, GateConfig, LabelsConfig, Recipe
from postgrad.config.sections import (
    BaseRecipe,
    ModelConfig,
    PassesConfig,
    Positive,
    RewardConfig,
    Section,
    SftConfig,
)

KINDS = ("edits", "best", "preference", "rl", "distill")
RESERVED = ("initial", "prompts", "sft", "samples", "labels", "edits", "reward", "arena")
"""Stages of every comparison, and the player that they begin with."""


class BudgetConfig(Section):
    """What every method gets alike: the labelled prompts, each with as many answers as were labelled."""

    passes: Positive = 1
    """Over the labelled prompts."""
    prompts_per_step: Positive = 8
    max_tokens: Positive = 40
    """Of an answer: of the labelled ones, of those sampled while learning, and in the arena."""
    temperature: Annotated[float, Field(gt=0)] = 1.0


class MethodConfig(Section):
    """One method: a name, and the section that says which it is. What follows from the budget is filled in."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    edits: PassesConfig | None = None
    """Imitate the edited answers."""
    best: PassesConfig | None = None
    """Imitate the answer to each prompt that the reward model likes best."""
    preference: PreferenceConfig | None = None
    rl: RlConfig | None = None
    """Against the reward model."""
    distill: DistillConfig | None = None
    """On-policy."""
    teacher: TeacherConfig | None = None
    """Of `distill`: the SFT policy, or the method named, with a system message or documents of its own."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"method {self.name!r} needs one of the sections {', '.join(KINDS)}")
        if (self.distill is None) != (self.teacher is None):
            raise ValueError(f"method {self.name!r}: 'distill' and 'teacher' need each other")
        if self.teacher is not None and not (self.teacher.name or self.teacher.system or self.teacher.documents):
            raise ValueError(
                f"method {self.name!r}: the student itself teaches nothing new; name an earlier method, a system "
                "message or documents"
            )
        return self


class CompareRecipe(BaseRecipe):
    """A comparison of methods."""

    method: Literal["compare"]
    model: ModelConfig
    data: DataConfig
    sft: SftConfig
    """The start of every method."""
    labels: LabelsConfig
    edits: EditsConfig = EditsConfig()
    """Of the same answers that are compared."""
    reward: RewardConfig = RewardConfig()
    budget: BudgetConfig = BudgetConfig()
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    arena: ArenaConfig

    @model_validator(mode="before")
    @classmethod
    def _spend(cls, raw: Any) -> Any:
        """Put the budget into the methods' sections, so that the recipe that is kept says all of it."""
        methods = raw.get("methods") if isinstance(raw, Mapping) else None
        if not isinstance(methods, list | tuple):
            return raw
        try:
            budget = BudgetConfig.model_validate(raw.get("budget", {}))
            shares = _shares(budget, LabelsConfig.model_validate(raw.get("labels")))
        except ValidationError:  # said again where those sections are read
            shares = _shares(BudgetConfig(), LabelsConfig(num_prompts=1))
        return {**raw, "methods": [_with_budget(method, shares) for method in methods]}

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        names = [method.name for method in self.methods]
        for i, method in enumerate(self.methods):
            if method.name in RESERVED or method.name in names[:i]:
                raise ValueError(f"method name {method.name!r} is taken; give it another")
            if method.teacher is not None and method.teacher.name not in ("", *names[:i]):
                raise ValueError(
                    f"method {method.name!r}: teacher {method.teacher.name!r} is no method before it; one from "
                    "elsewhere would bring what the others never saw"
                )
        if self.labels.num_prompts % self.budget.prompts_per_step:
            raise ValueError(
                "'labels.num_prompts' must be a multiple of 'budget.prompts_per_step', so that every method sees every "
                "prompt equally often"
            )
        return self

    def as_round(self) -> Recipe:
        """The round whose first stages all methods share."""
        shared = {key: getattr(self, key) for key in BaseRecipe.model_fields}
        budget = _shares(self.budget, self.labels)["rl"]
        return Recipe(
            **shared,
            model=self.model,
            data=self.data,
            sft=self.sft,
            labels=self.labels,
            reward=self.reward,
            rl=RlConfig(**budget),
            arena=self.arena,
            gate=GateConfig(),
        )


def _shares(budget: BudgetConfig, labels: LabelsConfig) -> dict[str, dict[str, Any]]:
    """Kind of method -> the keys of its section that the budget sets."""
    passes, prompts, answers = budget.passes, budget.prompts_per_step, labels.answers_per_prompt
    sampled = {
        "steps": max(1, passes * labels.num_prompts // prompts),
        "prompts_per_step": prompts,
        "group_size": answers,
        "max_tokens": budget.max_tokens,
        "temperature": budget.temperature,
    }
    return {
        "edits": {"epochs": passes, "examples_per_step": prompts * answers},
        "best": {"epochs": passes, "examples_per_step": prompts},
        "preference": {"epochs": passes, "prompts_per_step": prompts},
        "rl": {**sampled, "sampling_attempts": 1},
        "distill": {**sampled, "kind": "on-policy"},
    }


def _with_budget(method: Any, shares: Mapping[str, Mapping[str, Any]]) -> Any:
    if not isinstance(method, Mapping):
        return method
    filled = dict(method)
    for kind, share in shares.items():
        section = method.get(kind)
        if isinstance(section, Mapping):
            own = [key for key in section if key in share and section[key] != share[key]]
            if own:
                raise ValueError(
                    f"method {method.get('name')!r}: '{kind}.{own[0]}' follows from 'budget' and 'labels'; remove it"
                )
            filled[kind] = {**section, **share}
    return filled
