import math

import numpy as np
import pytest

from postgrad.evals.calibration import brier, ece, fit_temperature, pair_calibration, reliability, wilson_interval

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
