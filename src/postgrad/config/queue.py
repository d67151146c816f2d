"""How a labelling queue treats its people."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from postgrad.config.sections import Positive, Section, Share


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
