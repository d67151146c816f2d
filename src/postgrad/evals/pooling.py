"""Several seeds' arenas as one: means and win rates over prompts and seeds, with one cluster per prompt.

The seeds answer the same held-out prompts, and what is easy for one is easy for all: a resample draws prompts, each
with all that every seed said to it. What other seeds would have brought, only `mean_over_seeds` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Final

import numpy as np
from numpy.typing import NDArray

from postgrad.evals.arena import clustered_mean
from postgrad.evals.length_control import length_controlled

RESAMPLES: Final = 10_000
T_975: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Upper 2.5% points of Student's t with 1 to 9 degrees of freedom; with more, the last is a little wide."""
FEWEST_SEEDS: Final = 3
"""Whose scatter says something of other seeds."""
ByPrompt = Mapping[str, float]
Interval = tuple[float, float, float]
"""Value, and the ends of its 95% interval."""


def pooled_mean(seeds: Sequence[ByPrompt], *, resamples: int = RESAMPLES) -> Interval | None:
    """Mean over all seeds' prompts; None where there is none."""
    values, draws = _stacked([seeds], resamples)
    return clustered_mean(values[0], draws)


def mean_over_seeds(seeds: Sequence[ByPrompt]) -> Interval | None:
    """Mean of the seeds' means with their 95% t interval; None with fewer than `FEWEST_SEEDS`."""
    if len(seeds) < FEWEST_SEEDS:
        return None
    means = [fmean(seed.values()) for seed in seeds]
    reach = T_975[min(len(seeds) - 1, len(T_975)) - 1] * stdev(means) / math.sqrt(len(means))
    return fmean(means), fmean(means) - reach, fmean(means) + reach


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
