"""Several seeds' arenas as one: means and win rates over prompts and seeds, with one cluster per prompt.

The seeds answer the same held-out prompts, and what is easy for one is easy for all: a resample draws prompts, each
with all that every seed said to it. What other seeds would have brought is not in these intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from postgrad.evals.arena import clustered_mean
from postgrad.evals.length_control import length_controlled

RESAMPLES: Final = 10_000
ByPrompt = Mapping[str, float]
Interval = tuple[float, float, float]
"""Value, and the ends of its 95% interval."""


def pooled_mean(seeds: Sequence[ByPrompt], *, resamples: int = RESAMPLES) -> Interval | None:
    """Mean over all seeds' prompts; None where there is none."""
    values, draws = _stacked([seeds], resamples)
    return clustered_mean(values[0], draws)


def pooled_at_equal_length(
    scores: Sequence[ByPrompt], longer: Sequence[ByPrompt], *, resamples: int = RESAMPLES
) -> Interval | None:
    """Win rate where both answers are equally long (`evals.length_control`).

    Args:
        scores: of a against b, one table a seed.
        longer: tokens of a's answers minus those of b's.
        resamples: of the bootstrap.
    """
    values, draws = _stacked([scores, longer], resamples)
    return length_controlled(values[0], values[1], draws)


def _stacked(quantities: Sequence[Sequence[ByPrompt]], resamples: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[quantities, seeds * prompts], NaN where a seed has no value, and [resamples, seeds * prompts] draws."""
    prompts = sorted({prompt for seeds in quantities for seed in seeds for prompt in seed})
    num = len(prompts)
    values = [[seed.get(prompt, np.nan) for seed in seeds for prompt in prompts] for seeds in quantities]
    draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=resamples)
    return np.array(values, dtype=np.float64), np.tile(draws, (1, len(quantities[0])))
