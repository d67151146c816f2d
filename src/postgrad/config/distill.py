"""Method "distill": a teacher's distribution into a student."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from postgrad.config.questions import QuestionsConfig
from postgrad.config.rl import RlConfig
from postgrad.config.round import ArenaConfig
from postgrad.config.sections import BaseRecipe, ModelConfig, Positive, RateConfig, Section, Share


class TeacherConfig(Section):
    name: str = ""
    """As `model.name`; empty is the student itself, as it was before it learned."""
    system: str = ""
    """System message that the teacher alone reads, in place of the student's."""
    documents: str = ""
    """Key of the rows under which there is a text that the teacher alone reads, after its system message."""


class DistillConfig(RateConfig):
    kind: Literal["on-policy", "sequence"] = "on-policy"
    """The student answers and the teacher charges every token; or the teacher answers and the student imitates."""
    estimate: Literal["sampled", "full"] = "sampled"
    """On-policy: of the reverse KL, from the sampled tokens, or exact over the whole vocabulary."""
    gamma: Share = 0.0
    """On-policy, sampled: how far a token answers for the divergence of those after it."""
    steps: Positive
    prompts_per_step: Positive = 16
    group_size: Positive = 4
    """Answers to each prompt."""
    max_tokens: Positive = 40
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def loop(self) -> RlConfig:
        """One update a step, on answers of the very policy that is updated."""
        shared = self.model_dump(exclude={"kind", "estimate", "gamma"})
        return RlConfig(algorithm="reinforce", epochs=1, minibatches=1, kl_stop=float("inf"), **shared)


class DistillRecipe(BaseRecipe):
    """Distillation."""

    method: Literal["distill"]
    model: ModelConfig
    data: QuestionsConfig
    teacher: TeacherConfig
    distill: DistillConfig
    arena: ArenaConfig

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        teacher, cfg = self.teacher, self.distill
        if not (teacher.name or teacher.system or teacher.documents):
            raise ValueError("the student itself teaches nothing new: name a teacher, its system message or documents")
        exact = cfg.kind == "on-policy" and cfg.estimate == "full"
        if cfg.gamma > 0 and (exact or cfg.kind == "sequence"):
            raise ValueError("'distill.gamma' belongs to the on-policy estimate by sampled tokens; remove it")
        if cfg.estimate == "full" and cfg.kind == "sequence":
            raise ValueError("'distill.estimate' belongs to the kind 'on-policy'; remove it")
        return self
