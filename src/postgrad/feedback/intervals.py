"""Numbers with their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95: Final = 1.959963984540054
RESAMPLES: Final = 500


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float
    num: int
    """What it was estimated from: answers, or questions where those were resampled."""


def wilson_interval(successes: float, n: float, *, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson, 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(successes: float, num: int) -> Estimate | None:
    """A share with its Wilson interval; None of nothing."""
    return Estimate(successes / num, *wilson_interval(successes, num), num) if num else None


def resampled(sums: Floats, statistic: Callable[[Floats], Floats], *, seed: int) -> Estimate | None:
    """A statistic of totals over questions, with a percentile bootstrap over them (Efron and Tibshirani 1993, ch. 13).

    Resamples in which the statistic does not exist are left out; None where it does not exist at all.

    Args:
        sums: [num_questions, num_terms]; what each question adds to the totals.
        statistic: [num_samples, num_terms] -> [num_samples]; NaN where it does not exist, and infinities are ordered
            as numbers are.
        seed: of the bootstrap.
    """
    num = len(sums)
    if num == 0:
        return None
    dice = np.random.default_rng(seed)
    draws = (np.bincount(dice.integers(num, size=num), minlength=num) for _ in range(RESAMPLES))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(np.stack([sums.sum(axis=0), *(draw @ sums for draw in draws)]))
        if not np.isfinite(values[0]):
            return None
        low, high = np.nanquantile(values[1:], (0.025, 0.975))
    if np.isnan(high):  # halfway between two infinities
        high = np.inf
    return Estimate(float(values[0]), float(low), float(high), num)
