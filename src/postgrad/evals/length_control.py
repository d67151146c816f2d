"""Length held fixed: win rates of equally long answers, and what length alone predicts of a reward.

Dubois et al. 2024 (arXiv 2404.04475): a logistic regression of the preference on the players and on the difference in
length, read where that difference is zero. Their term for the difficulty of an instruction needs many players and is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postgrad.feedback.intervals import resampled

Floats = NDArray[np.float64]
_RIDGE: Final = 0.1
"""Prior precision of both coefficients: where one side always wins, the likelihood has no maximum."""
_NEWTON_STEPS: Final = 25


def length_controlled(scores: Floats, longer: Floats, draws: NDArray[np.int64]) -> tuple[float, float, float] | None:
    """Win rate of a over b at equal length, and its 95% interval over resamples of prompts; None without a prompt.

    Args:
        scores: [P] of a against b on each prompt, 0 to 1; NaN where they did not meet.
        longer: [P] tokens of a's answer minus those of b's.
        draws: [resamples, P], how often each resample holds each prompt.
    """
    valid = np.isfinite(scores)
    if not valid.any():
        return None
    y, difference = scores[valid], longer[valid]
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    weights = np.vstack([np.ones(len(y)), draws[:, valid]])
    rates = _sigmoid(_fit(x, y, weights))
    low, high = np.quantile(rates[1:], (0.025, 0.975))
    return float(rates[0]), float(low), float(high)


def length_slope(rewards: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """How much a reward rises with each further token, among answers to the same prompt.

    The within-group (fixed-effects) estimate: rewards less their prompt's mean on lengths less theirs, by least
    squares, with a bootstrap over prompts. That rewards follow length is Singhal et al. 2023 (arXiv 2310.03716). It is
    a line because no curve fitted answers that came to an end better (docs/experiments/reward-model.md).

    Args:
        rewards: of some answers to each prompt.
        tokens: of the same answers.

    Returns:
        "slope" with its interval, "centre", the mean length in tokens, "explained", the share of the rewards' variance
        within prompts, and "num_answers"; None where fewer than two prompts have answers that differ in length.
    """
    sums = []
    for given, lengths in zip(rewards, tokens, strict=True):
        y, x = np.array(given, dtype=np.float64), np.array(lengths, dtype=np.float64)
        if len(set(lengths)) > 1:
            y, x = y - y.mean(), x - x.mean()
            sums.append([x @ y, x @ x, y @ y])
    slope = resampled(np.array(sums), lambda t: t[:, 0] / t[:, 1], seed=0)
    if slope is None or slope.num < 2:
        return None
    xy, xx, yy = np.array(sums).sum(0)
    every = [n for lengths in tokens for n in lengths]
    return {
        "slope": asdict(slope),
        "centre": float(np.mean(every)),
        "explained": float(xy * xy / (xx * yy)) if yy > 0 else 0.0,
        "num_answers": len(every),
    }


def _fit(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Intercepts of logistic regressions on x, one for each row of weights, by Newton's method."""
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(intercept[:, None] + slope[:, None] * x)
        error, curve = weights * (y - p), weights * p * (1 - p)
        g0, g1 = error.sum(1) - _RIDGE * intercept, (error * x).sum(1) - _RIDGE * slope
        h00, h01, h11 = curve.sum(1) + _RIDGE, (curve * x).sum(1), (curve * x * x).sum(1) + _RIDGE
        determinant = h00 * h11 - h01**2
        intercept += (h11 * g0 - h01 * g1) / determinant
        slope += (h00 * g1 - h01 * g0) / determinant
    return intercept


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))
