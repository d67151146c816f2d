"""Each person's biases against those that were planted."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from simulated import SEEDS, assert_covered, covers, orders, questions

from postgrad.feedback.bias import (
    Choice,
    choices,
    length_slope,
    logistic,
    median_milliseconds,
    position_rate,
    self_consistency,
    timings,
    too_fast,
    words_shown,
)
from postgrad.feedback.raters import TIE_BAND, SimulatedRater
from postgrad.types import Comparison, Conversation, Message, Preference

NUM = 300
LEANING = SimulatedRater("r", temperature=0.5, position_bias=0.3, length_bias=0.5, carelessness=0.0)


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("carelessness", [0.0, 0.5])
def test_a_planted_position_bias_is_covered(bias: float, carelessness: float) -> None:
    rater = replace(LEANING, position_bias=bias, carelessness=carelessness)
    covered = 0
    for seed in range(SEEDS):
        asked, shown = questions(NUM, seed=seed), orders(NUM, seed=seed)
        chances = [q.chances(rater, o)[:: 1 if o == (0, 1) else -1] for q, o in zip(asked, shown, strict=True)]
        first, _, second = np.sum(chances, axis=0)
        answers = [q.answer(rater, o) for q, o in zip(asked, shown, strict=True)]
        covered += covers(position_rate(choices(answers)), first / (first + second))
    assert_covered(f"position rate, bias {bias}, carelessness {carelessness}", covered)


def decided(rater: SimulatedRater, longer: np.ndarray) -> np.ndarray:
    """Chance of the first among choices between equally good answers, straight from the ordered logit."""
    perceived = rater.position_bias + rater.length_bias * longer
    first, second = (1 / (1 + np.exp(-(s * perceived - TIE_BAND) / rater.temperature)) for s in (1, -1))
    return first / (first + second)


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("position", [0.0, 0.5])
def test_a_planted_length_bias_is_covered_beside_a_position_bias(bias: float, position: float) -> None:
    rater = replace(LEANING, length_bias=bias, position_bias=position)
    grid = np.array([(a - b) / (a + b + 1) for a in range(20, 401, 8) for b in range(20, 401, 8)])
    chance = decided(rater, grid)

    def loss(line: np.ndarray) -> float:
        logits = line[0] + line[1] * grid
        return float((np.logaddexp(0, logits) - chance * logits).sum())

    truth = minimize(loss, np.zeros(2)).x[1]
    assert truth == pytest.approx(bias / rater.temperature, rel=0.25, abs=0.05)
    covered = 0
    for seed in range(SEEDS):
        asked, shown = questions(NUM, seed=seed, spread=0.0), orders(NUM, seed=seed)
        answers = [q.answer(rater, o) for q, o in zip(asked, shown, strict=True)]
        covered += covers(length_slope(choices(answers)), truth)
    assert_covered(f"length slope, bias {bias}, position bias {position}", covered)


def test_a_slope_is_found_where_utilities_differ_too() -> None:
    """Utility is noise to this fit: it flattens the slope, and hides neither its sign nor that it is there."""
    asked, shown = questions(3000, seed=1), orders(3000, seed=1)
    found = {}
    for bias in (-0.5, 0.0, 0.5):
        rater = replace(LEANING, length_bias=bias)
        found[bias] = length_slope(choices(q.answer(rater, o) for q, o in zip(asked, shown, strict=True)))
    assert all(found.values())
    assert found[-0.5].high < 0 < found[0.5].low  # type: ignore[union-attr]
    assert covers(found[0.0], 0.0)


def test_the_logistic_fit_is_that_of_a_general_optimiser() -> None:
    dice = np.random.default_rng(3)
    features = np.column_stack([np.ones(80), dice.normal(size=80)])
    outcomes = (dice.random(80) < 1 / (1 + np.exp(-0.3 - 2 * features[:, 1]))).astype(float)

    def loss(line: np.ndarray) -> float:
        logits = features @ line
        return float((np.logaddexp(0, logits) - outcomes * logits).sum() + 0.005 * line @ line)

    coefficients, covariance = logistic(features, outcomes)
    assert coefficients == pytest.approx(minimize(loss, np.zeros(2), tol=1e-12).x, abs=1e-5)
    chance = 1 / (1 + np.exp(-features @ coefficients))
    information = sum(c * (1 - c) * np.outer(x, x) for c, x in zip(chance, features, strict=True)) + 0.01 * np.eye(2)
    assert covariance == pytest.approx(np.linalg.inv(information))


@pytest.mark.parametrize("num", [1, 40])
def test_somebody_who_always_chose_the_longer_has_a_finite_slope(num: int) -> None:
    made = [Choice(i % 2 == 0, 0.9 if i % 2 == 0 else -0.9) for i in range(num)]
    found = length_slope(made)
    assert found is not None
    assert 0 < found.value < 20
    assert math.isfinite(found.high)


def test_where_all_lengths_are_equal_nothing_is_known_of_length() -> None:
    assert length_slope([Choice(True, 0.0)] * 50) is None


@pytest.mark.parametrize("carelessness", [0.0, 0.4, 0.9])
def test_planted_carelessness_shows_in_swapped_repeats(carelessness: float) -> None:
    rater = replace(LEANING, carelessness=carelessness)
    covered = 0
    for seed in range(SEEDS):
        asked, shown = questions(NUM, seed=seed), orders(NUM, seed=seed)
        before = [q.answer(rater, o) for q, o in zip(asked, shown, strict=True)]
        again = [q.answer(rater, o[::-1]) for q, o in zip(asked, shown, strict=True)]
        truth = np.mean([np.dot(q.chances(rater, (0, 1)), q.chances(rater, (1, 0))) for q in asked])
        covered += covers(self_consistency(before, again), float(truth))
    assert_covered(f"self-consistency, carelessness {carelessness}", covered)


def test_ties_and_abstentions_are_no_choices_and_an_abstention_is_no_inconsistency() -> None:
    (asked,) = questions(1, seed=0)
    given = asked.answer(replace(LEANING, position_bias=9.0), (1, 0))
    assert [c.first for c in choices([given])] == [True]
    first, second = (asked.lengths[i] for i in (1, 0))
    assert choices([given])[0].longer == pytest.approx((first - second) / (first + second + 1))
    tie, none = (replace(given, preference=Preference(asked.comparison.id, "r", tiers)) for tiers in (((0, 1),), ()))
    assert choices([tie, none]) == []
    assert position_rate([]) is None
    assert length_slope([]) is None
    assert self_consistency([given], [none]) is None
    assert self_consistency([none], [given]) is None
    assert self_consistency([], [given]) is None
    found = self_consistency([given], [replace(given, order=(0, 1))])
    assert found is not None
    assert (found.value, found.num) == (1.0, 1)


def timed(milliseconds: int | None, words: int = 100) -> object:
    (asked,) = questions(1, seed=0)
    given = asked.answer(LEANING, (0, 1))
    shown = Comparison("c", Conversation((Message("user", "why " * (words - 2)),)), ("so", "no"), ("s0", "s1"))
    return replace(given, preference=replace(given.preference, milliseconds=milliseconds), comparison=shown)


def test_time_is_held_against_the_words_shown() -> None:
    answers = [timed(2_900), timed(3_000), timed(5_900, 200), timed(None), timed(60_000, 40)]
    assert words_shown(answers[2]) == 200  # type: ignore[arg-type]
    assert too_fast(timings(answers), 3.0) == 2 / 4  # type: ignore[arg-type]
    assert median_milliseconds(answers) == 4_450  # type: ignore[arg-type]
    assert median_milliseconds([timed(None)]) is None  # type: ignore[list-item]
    assert too_fast([], 3.0) is None


def test_a_haste_below_the_planted_times_is_the_share_of_them() -> None:
    dice = random.Random(0)
    times = [round(dice.lognormvariate(1.5, 0.6) * 1000) for _ in range(500)]
    found = too_fast(timings(timed(t) for t in times), 3.0)  # type: ignore[misc]
    assert found == sum(t < 3000 for t in times) / 500
