"""Who is good, held against who was made good."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr
from simulated import SEEDS, Question, answered, assert_covered, covers, questions

from postgrad.feedback.agreement import Grade, signs
from postgrad.feedback.competence import SPREAD, competence, dawid_skene
from postgrad.feedback.intervals import wilson_interval
from postgrad.feedback.raters import SimulatedRater, make_pool


def planted(num: int, matrices: dict[str, np.ndarray], prior: np.ndarray, seed: int) -> tuple[list[Grade], list[int]]:
    """Grades -1, 0, 1 drawn from Dawid and Skene's own model, and the true classes."""
    dice = np.random.default_rng(seed)
    truth = dice.choice(3, size=num, p=prior)
    grades = [
        Grade(f"q{i}", name, int(dice.choice(3, p=matrix[t])) - 1)
        for i, t in enumerate(truth)
        for name, matrix in matrices.items()
    ]
    return grades, [int(t) - 1 for t in truth]


MATRICES = {
    "exact": np.array([[0.95, 0.03, 0.02], [0.1, 0.8, 0.1], [0.02, 0.03, 0.95]]),
    "good": np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]),
    "leans": np.array([[0.6, 0.1, 0.3], [0.1, 0.4, 0.5], [0.02, 0.03, 0.95]]),
    "careless": np.full((3, 3), 1 / 3),
    "contrary": np.array([[0.1, 0.1, 0.8], [0.2, 0.6, 0.2], [0.8, 0.1, 0.1]]),
}
PRIOR = np.array([0.45, 0.15, 0.4])


def test_planted_confusion_matrices_and_classes_come_back() -> None:
    grades, truth = planted(3000, MATRICES, PRIOR, seed=0)
    found = dawid_skene(grades)
    assert found.classes == (-1, 0, 1)
    assert found.prior == pytest.approx(PRIOR, abs=0.03)
    for name, matrix in MATRICES.items():
        assert found.confusion[name] == pytest.approx(matrix, abs=0.06)
    right = np.mean([found.posterior[f"q{i}", ""].argmax() - 1 == t for i, t in enumerate(truth)])
    votes: dict[str, list[int]] = {}
    for g in grades:
        votes.setdefault(g.question, []).append(g.value)
    majority = np.mean([max(sorted(set(v)), key=v.count) == t for v, t in zip(votes.values(), truth, strict=True)])
    assert right > majority + 0.05


def test_accuracies_of_the_model_itself_are_covered() -> None:
    truth = {name: float(PRIOR @ np.diag(matrix)) for name, matrix in MATRICES.items()}
    covered = dict.fromkeys(MATRICES, 0)
    for seed in range(SEEDS):
        found = dawid_skene(planted(250, MATRICES, PRIOR, seed)[0])
        for name in MATRICES:
            covered[name] += covers(found.accuracy[name], truth[name])
    for name, hits in covered.items():
        assert_covered(f"accuracy, the model's own, {name}", hits)


def test_planted_carelessness_is_covered() -> None:
    """Where every question is equally clear, a rater is right with one chance, which carelessness sets."""
    raters = [SimulatedRater(f"r{i}", 0.5, 0.0, 0.0, c) for i, c in enumerate((0.0, 0.0, 0.1, 0.2, 0.4, 0.8))]
    covered = dict.fromkeys((r.id for r in raters), 0)
    for seed in range(SEEDS):
        asked = questions(200, seed=seed)
        for i, q in enumerate(asked):
            q.utilities = (1.0, 0.0) if (i + seed) % 2 else (0.0, 1.0)
        found = dawid_skene(signs(answered(asked, raters, overlap=len(raters), seed=seed)))
        for r in raters:
            covered[r.id] += covers(found.accuracy[r.id], r.probabilities((1.0, 0.0), (1, 1), order=(0, 1))[0])
    for r in raters:
        assert_covered(f"accuracy, carelessness {r.carelessness}", covered[r.id])


def test_accuracy_ranks_raters_but_flatters_them_where_questions_are_unequally_hard() -> None:
    """All slip on the hard ones, which the model takes for agreement on the truth."""
    raters = [SimulatedRater(f"r{i}", 0.5, 0.0, 0.0, c) for i, c in enumerate((0.0, 0.2, 0.4, 0.8))]
    found, right = np.zeros(len(raters)), np.zeros(len(raters))
    for seed in range(20):
        asked = questions(300, seed=seed)
        grades = signs(answered(asked, raters, overlap=3, seed=seed))
        truth = {q.comparison.id: q.utilities[0] - q.utilities[1] for q in asked}
        accuracy = dawid_skene(grades).accuracy
        for i, r in enumerate(raters):
            own = [g.value == np.sign(truth[g.question]) for g in grades if g.rater == r.id]
            found[i] += accuracy[r.id].value / 20
            right[i] += np.mean(own) / 20
    sys.stdout.write(f"\naccuracy by the model {found.round(2)}, in truth {right.round(2)}")
    assert list(found) == sorted(found, reverse=True)
    assert list(right) == sorted(right, reverse=True)
    assert (found[:3] > right[:3]).all()


def test_an_accuracy_is_as_sure_as_if_the_truth_were_known_where_everybody_else_tells_it() -> None:
    exact = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]])
    matrices = {f"r{i}": exact for i in range(5)} | {"good": MATRICES["good"]}
    grades, truth = planted(300, matrices, PRIOR, seed=0)
    right = sum(g.value == t for g, t in zip([g for g in grades if g.rater == "good"], truth, strict=True))
    found = dawid_skene(grades).accuracy["good"]
    assert found.value == pytest.approx(right / 300, abs=0.01)
    assert (found.low, found.high) == pytest.approx(wilson_interval(right, 300), abs=0.01)


def test_skill_is_covered_by_intervals_that_are_not_too_wide_either() -> None:
    """Discrimination is one over the temperature, but for what a tie takes away."""
    hits, ranks = 0, []
    for seed in range(SEEDS):
        skills = np.abs(np.random.default_rng(seed).normal(1, SPREAD, size=6)) + 0.02
        raters = [SimulatedRater(f"r{i}", 0.5 / skill, 0.0, 0.0, 0.0) for i, skill in enumerate(skills)]
        found = competence(signs(answered(questions(400, seed=seed), raters, overlap=3, seed=seed))).weight
        values = [found[r.id].value for r in raters]
        assert np.mean(values) == pytest.approx(1)
        hits += sum(covers(found[r.id], t) for r, t in zip(raters, skills / skills.mean(), strict=True))
        ranks.append(spearmanr(values, skills).statistic)
    sys.stdout.write(f"\nweight: {hits} of {6 * SEEDS}; rank correlation with the planted skill {np.mean(ranks):.2f}")
    assert 0.9 <= hits / (6 * SEEDS) <= 0.99
    assert np.mean(ranks) > 0.7


def test_the_fit_is_the_maximum_of_the_marginal_posterior() -> None:
    """By quadrature of scipy's, not of ours: nobody's discrimination can be moved to advantage."""
    grades = [Grade(f"q{i}", name, value) for i, row in enumerate([(1, 1), (-1, 1), (1, 1), (-1, -1), (0, 1)] * 4)
              for name, value in zip(("ada", "bob"), row, strict=True)]  # fmt: skip
    found = competence([*grades, *(Grade(f"x{i}", "cyd", 1) for i in range(3))]).weight
    # cyd shared no question: their weight is the mean, which is what the others scatter around.
    assert found["cyd"].value == pytest.approx(1, abs=0.02)
    patterns = {(1, 1): 8, (-1, 1): 4, (-1, -1): 4, (0, 1): 4}

    def log_sigmoid(x: float) -> float:
        return -float(np.logaddexp(0, -x))

    def likelihood(scales: tuple[float, float], pattern: tuple[int, int]) -> float:
        def at(z: float) -> float:
            log = sum((1 + v) / 2 * log_sigmoid(s * z) + (1 - v) / 2 * log_sigmoid(-s * z)
                      for s, v in zip(scales, pattern, strict=True))  # fmt: skip
            return float(np.exp(log - z * z / 2))

        return quad(at, -9, 9)[0]

    def best(own: int, scale: float) -> float:
        other = found["bob" if own == 0 else "ada"].value * scale

        def loss(x: float) -> float:
            pair = (x, other) if own == 0 else (other, x)
            fit = sum(num * float(np.log(likelihood(pair, pattern))) for pattern, num in patterns.items())
            return (x - scale) ** 2 / (2 * (SPREAD * scale) ** 2) - fit

        return float(minimize_scalar(loss, bounds=(0.01, 9), method="bounded", options={"xatol": 1e-6}).x)

    scale = minimize_scalar(
        lambda s: abs(best(0, s) - found["ada"].value * s), bounds=(0.2, 4), method="bounded", options={"xatol": 1e-6}
    ).x
    assert best(1, scale) == pytest.approx(found["bob"].value * scale, rel=2e-3)


def test_who_labels_alone_has_the_average_weight() -> None:
    found = competence(Grade(f"q{i}", "ada" if i % 3 else "bob", 1 if i % 2 else -1) for i in range(60))
    assert [e.value for e in found.weight.values()] == pytest.approx([1.0, 1.0])
    assert [e.low < 0.1 and e.high > 1.9 for e in found.weight.values()] == [True, True]
    assert found.first_better["q1", ""] > 0.6 > 0.4 > found.first_better["q2", ""]


def test_no_labels_make_no_raters() -> None:
    assert competence([]).weight == {}
    assert dawid_skene([]).accuracy == {}


def fit_utility(
    asked: list[Question], grades: list[Grade], weights: dict[str, float], features: np.ndarray
) -> np.ndarray:
    """A linear reward model by weighted logistic regression, with the penalty of a standard normal prior."""
    row = {q.comparison.id: i for i, q in enumerate(asked)}
    x = np.array([features[row[g.question]] * np.sign(g.value) for g in grades if g.value])
    w = np.array([weights[g.rater] for g in grades if g.value])
    theta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(x @ theta))
        theta += np.linalg.solve((x.T * (w * p * (1 - p))) @ x + np.eye(len(theta)), x.T @ (w * p) - theta)
    return theta


def degrees_between(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))))


def test_weights_help_a_reward_model_and_a_vote_where_a_third_is_careless() -> None:
    """Careless raters weigh less, and what is learned from weighted labels is nearer to the gold utility."""
    gains, votes, before = [], [], []
    careless, careful = [], []
    for seed in range(20):
        dice = np.random.default_rng(seed)
        pool = make_pool(12, seed=seed, temperature=0.5, careless_frac=1 / 3, prefix="pool")
        features, gold = dice.normal(size=(400, 8)), dice.normal(size=8)
        gold /= np.linalg.norm(gold)
        asked = questions(400, seed=seed)
        for q, x in zip(asked, features, strict=True):
            q.utilities = (float(x @ gold), 0.0)
        grades = signs(answered(asked, pool, overlap=3, seed=seed))
        found = competence(grades)
        weights = {r.id: found.weight[r.id].value for r in pool}
        for r in pool:
            (careless if r.carelessness > 0.3 else careful).append(weights[r.id])
        even = fit_utility(asked, grades, dict.fromkeys(weights, 1.0), features)
        better = fit_utility(asked, grades, weights, features)
        before.append(degrees_between(even, gold))
        gains.append(before[-1] - degrees_between(better, gold))
        sums: dict[tuple[str, str], int] = {}
        for g in grades:
            sums[g.item] = sums.get(g.item, 0) + g.value
        plain, weighed = 0.0, 0.0
        for q in asked:
            known, item = np.sign(q.utilities[0]), (q.comparison.id, "0-1")
            plain += 0.5 * (sums[item] == 0) + (np.sign(sums[item]) == known)
            weighed += float(np.sign(found.first_better[item] - 0.5) == known)
        votes.append((weighed - plain) / len(asked))
    sys.stdout.write(
        f"\nweights: careless {np.mean(careless):.2f}, careful {np.mean(careful):.2f}; degrees nearer to the truth "
        f"{np.mean(gains):.2f} of {np.mean(before):.1f}; votes right {np.mean(votes):+.2%}"
    )
    assert np.mean(careless) < 0.75 * np.mean(careful)
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean(votes) > 2 * np.std(votes) / np.sqrt(len(votes))
