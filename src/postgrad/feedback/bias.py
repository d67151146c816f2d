"""What bends one rater's answers, measured from the answers alone: place, length, inconsistency, haste."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from postgrad.feedback.agreement import same_answer
from postgrad.feedback.intervals import Z95, Estimate, Floats, share_of
from postgrad.feedback.records import Judged

RIDGE: Final = 0.01
"""Of the logistic fit, so that somebody who always chose the longer answer has a finite slope."""
_STEPS: Final = 20
"""Of Newton's method, which doubles the right digits with each."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of two answers, preferred."""

    first: bool
    """Whether it was the one displayed first."""
    longer: float
    """(l_first - l_second) / (l_first + l_second + 1), as simulated raters perceive it."""


class Timing(NamedTuple):
    milliseconds: int
    words: int
    """Shown: the prompt's and the answers'."""


def choices(judged: Iterable[Judged]) -> list[Choice]:
    """Of comparisons of two answers; ties and abstentions are none. Lengths are in characters."""
    found = []
    for j in judged:
        if len(j.comparison.answers) == 2 and len(j.preference.tiers) == 2:
            first, second = (len(j.comparison.answers[i]) for i in j.order)
            longer = (first - second) / (first + second + 1)
            found.append(Choice(j.preference.tiers[0][0] == j.order[0], longer))
    return found


def position_rate(made: Sequence[Choice]) -> Estimate | None:
    """Share of choices that fell on the answer displayed first; an unbiased rater's is a half."""
    return share_of(sum(c.first for c in made), len(made))


def length_slope(made: Sequence[Choice]) -> Estimate | None:
    """Log odds by which an answer that is all of the length gains over one of half of it; 0 where length is nothing.

    Slope of a logistic regression of `first` on `longer`, beside an intercept that takes up the preference for a
    place. It contains whatever goes along with length, good reasons too. None where all lengths were equal.
    """
    if not any(c.longer for c in made):
        return None
    features = np.array([(1.0, c.longer) for c in made])
    coefficients, covariance = logistic(features, np.array([float(c.first) for c in made]))
    slope, error = float(coefficients[1]), float(covariance[1, 1]) ** 0.5
    return Estimate(slope, slope - Z95 * error, slope + Z95 * error, len(made))


def logistic(features: Floats, outcomes: Floats) -> tuple[Floats, Floats]:
    """Coefficients of a ridge logistic regression and their covariance, by Newton's method.

    Args:
        features: [num, num_features].
        outcomes: [num], in [0, 1].
    """
    coefficients: Floats = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-features @ coefficients))
        gradient = features.T @ (outcomes - chance) - RIDGE * coefficients
        information = (features.T * (chance * (1 - chance))) @ features + RIDGE * np.eye(len(coefficients))
        covariance = np.linalg.inv(information).astype(np.float64)
        coefficients += covariance @ gradient
    return coefficients, covariance


def self_consistency(first: Iterable[Judged], repeats: Iterable[Judged]) -> Estimate | None:
    """Share of questions, asked of the same person again with the sides swapped, that got the same answer.

    Args:
        first: answers when first asked.
        repeats: answers when asked again.
    """
    before = {(j.preference.comparison_id, j.preference.rater_id): j.preference for j in first}
    same = [
        same_answer(earlier, j.preference)
        for j in repeats
        if (earlier := before.get((j.preference.comparison_id, j.preference.rater_id))) and earlier.tiers
        if j.preference.tiers
    ]
    return share_of(sum(same), len(same))


def median_milliseconds(judged: Iterable[Judged]) -> float | None:
    times = [j.preference.milliseconds for j in judged if j.preference.milliseconds is not None]
    return statistics.median(times) if times else None


def timings(judged: Iterable[Judged]) -> list[Timing]:
    return [Timing(j.preference.milliseconds, words_shown(j)) for j in judged if j.preference.milliseconds is not None]


def too_fast(timed: Sequence[Timing], seconds: float) -> float | None:
    """Share of answers that took less than `seconds` per hundred words shown, prompt included."""
    hasty = [t.milliseconds / 1000 < seconds * t.words / 100 for t in timed]
    return sum(hasty) / len(hasty) if hasty else None


def words_shown(judged: Judged) -> int:
    texts = [*(m.content for m in judged.comparison.prompt.messages), *judged.comparison.answers]
    return sum(len(text.split()) for text in texts)
