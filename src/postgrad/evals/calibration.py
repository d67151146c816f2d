"""Do probabilities mean what they say? Expected calibration error, Brier score, fitted temperature.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), for the error and the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postgrad.feedback.intervals import wilson_interval

Binning = Literal["width", "mass"]
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_LOG_TEMPERATURE: Final = (-5.0, 5.0)


def reliability(
    predicted: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10, binning: Binning = "width"
) -> list[dict[str, Any]]:
    """Mean prediction against observed share, for every non-empty bin.

    Args:
        predicted: probabilities in [0, 1].
        outcomes: what happened, 0 or 1 (0.5 for a tie).
        num_bins: of equal width over [0, 1], or of equal mass.
        binning: "width" or "mass".
    """
    p, y = _pair(predicted, outcomes)
    if binning == "width":
        index = np.minimum((p * num_bins).astype(int), num_bins - 1)
        members = [np.flatnonzero(index == i) for i in range(num_bins)]
    else:
        members = np.array_split(np.argsort(p, kind="stable"), num_bins)
    return [
        {"predicted": float(p[rows].mean()), "observed": float(y[rows].mean()), "n": len(rows)}
        for rows in members
        if len(rows)
    ]


def ece(predicted: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10, binning: Binning = "width") -> float:
    """Expected calibration error: |predicted - observed| averaged over the bins by their size (Guo et al., eq. 3)."""
    bins = reliability(predicted, outcomes, num_bins=num_bins, binning=binning)
    gaps = sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins)
    return float(gaps / sum(b["n"] for b in bins))


def brier(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared distance between the probability and what happened (Brier, 1950)."""
    p, y = _pair(predicted, outcomes)
    return float(np.mean((p - y) ** 2))


def fit_temperature(logits: ArrayLike, outcomes: ArrayLike) -> float:
    """The T that minimises the log loss of sigmoid(logits / T), by golden section; above 1 means overconfident.

    Searched in [e^-5, e^5]; perfectly separated outcomes end at an edge.
    """
    z, y = _pair(logits, outcomes)

    def loss(log_t: float) -> float:
        scaled = z * math.exp(-log_t)
        return float(np.mean(np.logaddexp(0.0, scaled) - y * scaled))

    low, high = _LOG_TEMPERATURE
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-7:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def pair_calibration(margins: Sequence[float], *, num_bins: int = 5) -> dict[str, Any]:
    """How a reward model does on held-out pairs without ties.

    The prediction for a pair is sigmoid(|margin|) for the side with the larger reward; a margin of 0 is half right.

    Args:
        margins: reward of the preferred answer minus reward of the other, one per pair.
        num_bins: of equal mass, for the reliability table and the calibration error.
    """
    m = np.asarray(margins, dtype=float)
    right = np.where(m > 0, 1.0, np.where(m < 0, 0.0, 0.5))
    confidence = 1 / (1 + np.exp(-np.abs(m)))
    low, high = wilson_interval(float(right.sum()), len(m))
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "num_pairs": len(m),
        "brier": brier(confidence, right),
        "ece": ece(confidence, right, num_bins=num_bins, binning="mass"),
        "temperature": fit_temperature(m, np.ones_like(m)),
        "calibration": reliability(confidence, right, num_bins=num_bins, binning="mass"),
    }


def clustered_calibration(
    sums: NDArray[np.float64], num: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Calibration from sums over bins of predictions that come in clusters, with a bootstrap interval over these.

    The error is the sum over bins of |sum of predictions - number of hits|, a place: `ece` where there is one
    prediction a place, and the misplaced probability a place where all classes are predicted. Noise alone makes it
    positive, and a resample noisier, so the interval errs upwards.

    Args:
        sums: [clusters, bins, 3], of (number, predictions, hits); clusters are the documents that tokens come from.
        num: [clusters], places.
        resamples: of the clusters, with replacement.
        seed: of the resamples.
    """
    total = sums.sum(axis=0)
    gaps = sums[:, :, 1] - sums[:, :, 2]
    low, high = ratio_interval(gaps, num, resamples=resamples, seed=seed)
    return {
        "ece": float(np.abs(gaps.sum(axis=0)).sum() / num.sum()),
        "ece_low": low,
        "ece_high": high,
        "calibration": [
            {"predicted": float(p / n), "observed": float(hits / n), "n": int(n)} for n, p, hits in total if n > 0
        ],
    }


def ratio_interval(
    above: NDArray[np.float64], below: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of sum |above| / sum below over resampled clusters (Efron, 1979).

    Args:
        above: [clusters, columns]; summed over the clusters of a resample before its absolute value is taken.
        below: [clusters].
        resamples: of the clusters, with replacement.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(below), np.full(len(below), 1 / len(below)), size=resamples).astype(np.float64)
    ratios = np.abs(weights @ above).sum(axis=1) / (weights @ below)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _pair(predicted: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    assert p.shape == y.shape, f"{p.shape} predictions for {y.shape} outcomes"
    assert p.size, "nothing to calibrate"
    return p, y
