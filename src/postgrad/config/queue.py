"""How a labelling queue treats its people."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from postgrad.config.sections import Positive, Section, Share


class PolicyConfig(Section):
    """Who answers in a conversation: a `[[policies]]` table of `postgrad label serve --config FILE`."""

    model: str | None = None
    """Name or directory; at an endpoint, as it calls the model. The workspace's released policy if left out."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible API, in place of a model in this process."""
    key_variable: str | None = None
    """Environment variable that holds the endpoint's key; none is sent where this is left out."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """After which an answer has failed."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.endpoint is not None and not self.model:
            raise ValueError("an endpoint needs the name of its model")
        if self.endpoint is None and self.key_variable is not None:
            raise ValueError("a key is for an endpoint")
        return self


class QueueConfig(Section):
    """How a labelling queue treats its people: the keys of `postgrad label serve --config FILE`."""

    lease_s: Annotated[float, Field(gt=0)] = 900.0
    """Without a sign of life for so long, a task goes back to the others."""
    exam_tasks: Annotated[int, Field(ge=0)] = 0
    """Gold tasks that a newcomer answers first."""
    exam_pass: Share = 0.7
    """Share of them to be right."""
    gold_frac: Share = 0.05
    """Chance that the next task is a gold one."""
    repeat_frac: Share = 0.03
    """Chance that the next task is one that the same person compared before, with its sides swapped."""
    pause_below: Share = 0.6
    """Share of gold tasks right, below which an account pauses until a lead has looked."""
    pause_after: Positive = 10
    """Gold tasks before that is asked."""
    person_cap: Positive | None = None
    """Most answers of one person, gold and repeats apart."""
    max_overlap: Annotated[int, Field(ge=0)] = 0
    """People to whom a disputed comparison goes at most, one by one; then it waits for an adjudicator. 0 asks no more
    than the task does."""
    agree_above: Share = 0.66
    """Share of the answers that must name the same winner for a comparison not to be disputed."""
    too_fast_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds per hundred words shown, below which an answer is flagged as too fast; 0 flags none."""
    policies: Annotated[tuple[PolicyConfig, ...], Field(max_length=9)] = ()
    """Each gives one answer a turn; a lone one gives two."""
