import math

import numpy as np
import pytest

from postgrad.evals.calibration import (
    brier,
    clustered_calibration,
    ece,
    fit_temperature,
    pair_calibration,
    ratio_interval,
    reliability,
)
from postgrad.feedback.intervals import wilson_interval

PREDICTED, OUTCOMES = [0.9, 0.9, 0.9, 0.9, 0.6], [1, 1, 1, 0, 1]


def test_calibration_error_is_the_gap_averaged_by_bin_size() -> None:
    assert ece(PREDICTED, OUTCOMES) == pytest.approx(0.8 * 0.15 + 0.2 * 0.4)
    assert ece([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0)


def test_equal_mass_bins_hold_equal_numbers_and_width_bins_leave_out_the_empty() -> None:
    predicted = [0.51, 0.52, 0.53, 0.98]
    assert [b["n"] for b in reliability(predicted, [0, 1, 1, 1], num_bins=2, binning="mass")] == [2, 2]
    assert reliability(predicted, [0, 1, 1, 1], num_bins=10) == [
        {"predicted": pytest.approx(0.52), "observed": pytest.approx(2 / 3), "n": 3},
        {"predicted": pytest.approx(0.98), "observed": 1.0, "n": 1},
    ]


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    assert reliability([1.0, 0.95], [1, 1]) == [{"predicted": pytest.approx(0.975), "observed": 1.0, "n": 2}]


def test_brier_is_the_mean_squared_error() -> None:
    assert brier(PREDICTED, OUTCOMES) == pytest.approx((3 * 0.01 + 0.81 + 0.16) / 5)


def test_the_fitted_temperature_solves_a_case_done_by_hand() -> None:
    # One logit of 2 and three of four right: the best T has sigmoid(2 / T) = 3/4.
    assert fit_temperature([2, 2, 2, 2], [1, 1, 1, 0]) == pytest.approx(2 / math.log(3), abs=1e-5)


def test_the_fitted_temperature_undoes_a_planted_overconfidence() -> None:
    dice = np.random.default_rng(0)
    logits = dice.normal(0, 1.5, 20_000)
    outcomes = dice.random(20_000) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(2.5 * logits, outcomes) == pytest.approx(2.5, rel=0.05)


def test_wilson_intervals_match_published_values() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_reward_models_pairs_are_summed_up() -> None:
    margins = [math.log(3)] * 6 + [-math.log(3)] * 2 + [0.0] * 2
    got = pair_calibration(margins, num_bins=1)
    assert got["accuracy"] == pytest.approx(0.7)
    assert (got["accuracy_low"], got["accuracy_high"]) == pytest.approx(wilson_interval(7, 10))
    assert got["num_pairs"] == 10
    assert got["brier"] == pytest.approx((6 * 0.0625 + 2 * 0.5625) / 10)
    assert got["calibration"] == [{"predicted": pytest.approx(0.7), "observed": pytest.approx(0.7), "n": 10}]
    assert got["ece"] == pytest.approx(0)
    assert got["temperature"] == pytest.approx(1, abs=1e-5)


def test_clustered_calibration_by_hand() -> None:
    # Two documents of four and six places; bin 0 holds (6 of them, 2.4 predicted, 3 hits), bin 1 (4, 3.2, 2).
    sums = np.array([[[2, 0.6, 1], [2, 1.6, 1]], [[4, 1.8, 2], [2, 1.6, 1]]], dtype=float)
    found = clustered_calibration(sums, np.array([4.0, 6.0]), resamples=200)
    assert found["ece"] == pytest.approx((0.6 + 1.2) / 10)
    assert found["calibration"] == [
        {"predicted": pytest.approx(0.4), "observed": pytest.approx(0.5), "n": 6},
        {"predicted": pytest.approx(0.8), "observed": pytest.approx(0.5), "n": 4},
    ]
    # Resamples are of the first alone, the second alone or both: 1.0 / 4, 0.8 / 6 and 1.8 / 10.
    assert found["ece_low"] == pytest.approx(0.8 / 6)
    assert found["ece_high"] == pytest.approx(1.0 / 4)


def test_with_one_prediction_a_place_it_is_the_expected_calibration_error() -> None:
    dice = np.random.default_rng(1)
    p, y = dice.random(500), dice.random(500) < 0.4
    bins = np.minimum((p * 10).astype(int), 9)
    sums = np.array([[[(bins[part] == b).sum(), p[part][bins[part] == b].sum(), y[part][bins[part] == b].sum()]
                      for b in range(10)] for part in np.array_split(np.arange(500), 7)], dtype=float)  # fmt: skip
    found = clustered_calibration(
        sums, np.array([len(part) for part in np.array_split(np.arange(500), 7)], dtype=float)
    )
    assert found["ece"] == pytest.approx(ece(p, y))
    assert found["ece_low"] < found["ece"] < found["ece_high"]


def test_a_bootstrap_of_equal_clusters_has_no_width_and_of_unequal_ones_the_width_of_their_mean() -> None:
    assert ratio_interval(np.full((9, 1), 6.0), np.full(9, 2.0)) == pytest.approx((3.0, 3.0))
    dice = np.random.default_rng(2)
    values = dice.normal(5, 1, (400, 1))
    low, high = ratio_interval(values, np.ones(400), resamples=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
