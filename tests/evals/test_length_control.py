import numpy as np
import pytest

from postgrad.evals.length_control import length_controlled, length_slope


def planted(*, skill, bias, num=4000, lean=0.0, seed=0):
    """Scores of raters who like length by `bias`, while a is `lean` deviations longer."""
    dice = np.random.default_rng(seed)
    longer = dice.normal(lean, 1, size=num) * 20
    chance = 1 / (1 + np.exp(-(skill + bias * np.tanh(longer / longer.std()))))
    return (dice.random(num) < chance).astype(float), longer


def draws_for(num, resamples=400):
    return np.random.default_rng(1).multinomial(num, np.full(num, 1 / num), size=resamples)


@pytest.mark.parametrize(("skill", "bias", "lean"), [(0.0, 2.0, 1.0), (0.5, 1.0, -1.0), (-0.4, 0.0, 1.0)])
def test_the_planted_win_rate_at_equal_length_is_recovered(skill, bias, lean):
    scores, longer = planted(skill=skill, bias=bias, lean=lean)
    rate, low, high = length_controlled(scores, longer, draws_for(len(scores)))
    truth = 1 / (1 + np.exp(-skill))
    assert low < truth < high
    assert rate == pytest.approx(truth, abs=0.03)
    assert high - low < 0.08


def test_who_wins_by_length_alone_does_not_win():
    scores, longer = planted(skill=0.0, bias=2.0, lean=1.0)
    assert scores.mean() > 0.7
    rate, _, _ = length_controlled(scores, longer, draws_for(len(scores)))
    assert rate < 0.55


def test_equal_lengths_leave_the_win_rate_alone():
    scores = np.array([1.0, 1.0, 0.0, 0.5] * 50)
    rate, low, high = length_controlled(scores, np.zeros(200), draws_for(200))
    assert rate == pytest.approx(scores.mean(), abs=2e-3)
    assert low < scores.mean() < high


def test_a_side_that_always_wins_has_a_finite_rate_and_pairs_that_never_met_none():
    scores, longer = np.ones(30), np.linspace(-10, 10, 30)
    rate, low, high = length_controlled(scores, longer, draws_for(30))
    assert 0.9 < rate < 1
    assert low == pytest.approx(rate, abs=5e-3)
    assert high == pytest.approx(rate, abs=5e-3)
    assert length_controlled(np.full(3, np.nan), np.zeros(3), draws_for(3)) is None


def test_swapping_the_sides_turns_it_around():
    scores, longer = planted(skill=0.3, bias=1.0, lean=0.5, num=500)
    draws = draws_for(500)
    rate, low, high = length_controlled(scores, longer, draws)
    assert length_controlled(1 - scores, -longer, draws) == pytest.approx((1 - rate, 1 - high, 1 - low))


def test_the_slope_is_read_within_prompts_by_hand():
    """(0.5 * 1 * 2 + 1 + 1 + 4) / (0.25 * 2 + 1 + 1 + 4): what prompts differ in counts for nothing."""
    rewards, tokens = [[1.0, 3.0], [100.0, 100.0, 103.0], [9.0, 5.0]], [[1, 2], [2, 2, 5], [40, 40]]
    found = length_slope(rewards, tokens)
    assert found["slope"]["value"] == pytest.approx(7 / 6.5)
    assert found["slope"]["num"] == 2
    assert found["explained"] == pytest.approx(49 / (6.5 * 8))
    assert found["centre"] == pytest.approx(92 / 7)
    assert length_slope(rewards[1:], tokens[1:]) is None


def test_the_interval_of_the_slope_holds_the_truth_as_often_as_it_says():
    dice = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        tokens = dice.integers(1, 40, size=(60, 4))
        rewards = 0.1 * tokens + dice.normal(0, 1, size=(60, 4)) + dice.normal(0, 3, size=(60, 1))
        slope = length_slope(rewards.tolist(), tokens.tolist())["slope"]
        held += slope["low"] < 0.1 < slope["high"]
    assert 88 <= held <= 99
