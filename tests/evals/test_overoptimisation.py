import itertools
import math

import numpy as np
import pytest

from postgrad.evals.overoptimisation import best_of_n, best_of_n_curve, best_of_n_kl, fallen, peak, point


def test_the_best_of_n_is_the_mean_over_every_choice_of_n():
    dice = np.random.default_rng(0)
    proxy, gold = dice.normal(size=(3, 6)), dice.normal(size=(3, 6))
    for n in range(1, 7):
        chosen = [
            max(subset, key=lambda i, row=row: proxy[row, i])
            for row in range(3)
            for subset in itertools.combinations(range(6), n)
        ]
        chosen = np.array(chosen).reshape(3, -1)
        by_hand = [np.take_along_axis(scores, chosen, axis=1).mean(axis=1) for scores in (proxy, gold)]
        for found, expected in zip(best_of_n(proxy, gold, n), by_hand, strict=True):
            assert found == pytest.approx(expected, abs=1e-12)


def test_the_kl_of_the_best_of_n_is_that_of_the_tilted_uniform():
    # Without ties the best of n of a uniform score has the density n u^(n-1).
    for n in (1, 2, 16, 64):
        u = (np.arange(400_000) + 0.5) / 400_000
        density = np.maximum(n * u ** (n - 1), 1e-300)
        assert best_of_n_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-3)


def test_a_proxy_that_is_wrong_where_it_is_high_gives_rise_peak_and_fall():
    proxy = np.random.default_rng(1).normal(size=(200, 64))
    gold = proxy - 0.6 * np.maximum(proxy - 1.0, 0) ** 2 * 2
    points = best_of_n_curve(proxy, gold)
    assert [p["n"] for p in points] == [1, 2, 4, 8, 16, 32, 64]
    assert all(a["proxy"] < b["proxy"] and a["sqrt_kl"] < b["sqrt_kl"] for a, b in itertools.pairwise(points))
    assert 0 < peak(points) < len(points) - 1
    assert points[-1]["gold_high"] < points[peak(points)]["gold_low"]


def test_a_fall_is_one_only_where_its_interval_says_so():
    dice = np.random.default_rng(2)
    best = dice.normal(size=100)
    assert fallen(best, best + dice.normal(0, 1, size=100)) is None
    found = fallen(best, best - 0.5 + dice.normal(0, 0.5, size=100))
    assert found is not None
    assert found["low"] < found["change"] < found["high"] < 0
    assert fallen(best, best + 0.5) is None


def test_a_point_has_its_distance_and_its_intervals():
    found = point(4.0, [1.0, 2.0, 3.0] * 3, [0.0, 0.0, 3.0] * 3)
    assert (found["sqrt_kl"], found["proxy"], found["gold"]) == (2.0, 2.0, 1.0)
    assert found["gold_low"] == 0.0 < found["gold"] < found["gold_high"] <= 3.0
    assert math.isclose(point(-1e-9, [1.0] * 8, [1.0] * 8)["sqrt_kl"], 0.0)


def test_scores_that_nobody_has_given_yet_count_for_nothing():
    later = [math.nan] * 3
    found = point(1.0, [2.0] * 11, [0.25] * 4 + [0.75] * 4 + later)
    assert found["gold"] == 0.5
    assert found["gold_low"] < 0.5 < found["gold_high"]
    known = point(1.0, [2.0] * 11, [1.0] * 7 + [math.nan] + later)
    assert (known["gold"], known["gold_low"], known["gold_high"]) == (None, None, None)
    assert (known["proxy"], found["proxy"]) == (2.0, 2.0)
    fall = fallen([1.0] * 8 + later + [1.0], [0.0] * 8 + [5.0] * 3 + [math.nan])
    assert fall == {"change": -1.0, "low": -1.0, "high": -1.0}
    assert fallen([1.0] * 8, [0.0] * 7 + [math.nan]) is None
    assert peak([{"gold": 0.5}, {"gold": None}, {"gold": 0.6}]) == 2


def test_of_equal_peaks_the_earliest_counts():
    assert peak([{"gold": 0.0}, {"gold": 2.0}, {"gold": 2.0}, {"gold": 1.0}]) == 1
