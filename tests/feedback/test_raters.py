import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from postgrad.feedback.raters import TIE_BAND, SimulatedRater, make_pool
from postgrad.types import Preference

RATER = SimulatedRater("r", temperature=0.5, position_bias=0.2, length_bias=0.3, carelessness=0.0)


def simulate(rater: SimulatedRater, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Utility difference and relative length of the first over the second shown, and who won: 1, 0 or -1."""
    dice = random.Random(5)
    rows = []
    for i in range(num):
        utilities = (dice.gauss(0, 1), dice.gauss(0, 1))
        lengths = (dice.randint(1, 60), dice.randint(1, 60))
        order = (0, 1) if dice.random() < 0.5 else (1, 0)
        answer = rater.compare(f"c{i}", utilities, lengths, order=order)
        won = 0 if len(answer.tiers) == 1 else (1 if answer.tiers[0] == (order[0],) else -1)
        first, second = order
        longer = (lengths[first] - lengths[second]) / (sum(lengths) + 1)
        rows.append((utilities[first] - utilities[second], longer, won))
    difference, longer, won = np.array(rows).T
    return difference, longer, won


def test_a_fit_recovers_the_planted_temperature_position_bias_and_length_bias() -> None:
    difference, longer, won = simulate(RATER, 6000)

    def loss(parameters: np.ndarray) -> float:
        log_temperature, position, length = parameters
        perceived = difference + position + length * longer
        first = 1 / (1 + np.exp(-(perceived - TIE_BAND) / math.exp(log_temperature)))
        second = 1 / (1 + np.exp((perceived + TIE_BAND) / math.exp(log_temperature)))
        return -float(np.log(np.select([won > 0, won < 0], [first, second], 1 - first - second)).sum())

    fit = minimize(loss, np.zeros(3), method="BFGS")
    planted = np.array([math.log(0.5), 0.2, 0.3])
    # BFGS's own inverse Hessian is what its path left behind, which differs from machine to machine.
    steps = np.eye(3) * 1e-3
    hessian = [[(loss(fit.x + a + b) - loss(fit.x + a - b) - loss(fit.x - a + b) + loss(fit.x - a - b)) / 4e-6
                for b in steps] for a in steps]  # fmt: skip
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert (errors < [0.04, 0.03, 0.06]).all()
    assert (np.abs(fit.x - planted) < 3.5 * errors).all()


@pytest.mark.parametrize("carelessness", [0.0, 0.3, 0.9])
def test_half_of_the_careless_answers_miss_an_obvious_winner(carelessness: float) -> None:
    rater = SimulatedRater("r", 0.5, 0.0, 0.0, carelessness)
    num = 4000
    answers = [rater.compare(str(i), (0.0, 20.0), (5, 5), order=(0, 1)) for i in range(num)]
    missed = sum(a.tiers == ((0,), (1,)) for a in answers)
    expected = carelessness / 2
    assert abs(missed - num * expected) <= 3.5 * math.sqrt(num * expected * (1 - expected))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_simulated_shares_agree_with_the_exact_probabilities(order: tuple[int, int]) -> None:
    rater = SimulatedRater("r", 0.4, 0.15, 0.2, 0.1)
    utilities, lengths, num = (0.1, 0.0), (12, 30), 5000
    expected = rater.probabilities(utilities, lengths, order=order)
    answers = [rater.compare(str(i), utilities, lengths, order=order).tiers for i in range(num)]
    first, second = order
    counts = [answers.count(((first,), (second,))), answers.count(((0, 1),)), answers.count(((second,), (first,)))]
    assert sum(expected) == pytest.approx(1)
    for count, p in zip(counts, expected, strict=True):
        assert abs(count - num * p) <= 3.5 * math.sqrt(num * p * (1 - p))


def test_the_exact_probabilities_are_those_of_the_ordered_logit() -> None:
    rater = SimulatedRater("r", 0.5, 0.1, 0.0, 0.0)
    first, tie, second = rater.probabilities((0.4, 0.0), (1, 1), order=(0, 1))
    assert first == pytest.approx(1 / (1 + math.exp(-0.8)))
    assert second == pytest.approx(1 / (1 + math.exp(1.2)))
    assert tie == pytest.approx(1 - first - second)


def test_an_answer_depends_on_the_rater_the_comparison_and_the_order_alone() -> None:
    def ask(rater: SimulatedRater, order: tuple[int, int]) -> list[Preference]:
        return [rater.compare(str(i), (0.2, 0.0), (9, 7), order=order) for i in range(50)]

    again = SimulatedRater("r", temperature=0.5, position_bias=0.2, length_bias=0.3, carelessness=0.0)
    assert ask(RATER, (0, 1)) == ask(again, (0, 1))
    random.seed(1)
    assert ask(RATER, (0, 1)) == ask(again, (0, 1))
    assert ask(RATER, (0, 1)) != ask(RATER, (1, 0))


def test_a_nearly_noiseless_rater_grades_the_strength_by_the_difference() -> None:
    rater = SimulatedRater("r", 1e-6, 0.0, 0.0, 0.0)
    graded = [rater.compare("c", (u, 0.0), (5, 5), order=(1, 0)) for u in (0.05, 0.5, 1.0, 2.0, -2.0)]
    assert [(a.tiers, a.strength) for a in graded] == [
        (((0, 1),), None),
        (((0,), (1,)), 1),
        (((0,), (1,)), 2),
        (((0,), (1,)), 3),
        (((1,), (0,)), 3),
    ]


def test_a_pool_is_fixed_by_its_seed_and_has_the_asked_share_of_careless_raters() -> None:
    pool = make_pool(40, seed=3, temperature=0.5, careless_frac=0.1, prefix="train")
    assert pool == make_pool(40, seed=3, temperature=0.5, careless_frac=0.1, prefix="train")
    assert sum(r.carelessness > 0.3 for r in pool) == 4
    assert sum(r.carelessness > 0.04 for r in pool) == 4
    logs = [math.log(r.temperature) for r in pool]
    assert abs(np.mean(logs) - math.log(0.5)) < 3 * 0.25 / math.sqrt(40)
    other = make_pool(40, seed=3, temperature=0.5, careless_frac=0.1, prefix="arena")
    assert not {r.id for r in pool} & {r.id for r in other}
    assert {r.temperature for r in pool}.isdisjoint(r.temperature for r in other)
