"""Intervals of agreement against what a pool of known raters agrees on in the long run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from simulated import SEEDS, answered, assert_covered, covers, questions

from postgrad.feedback.agreement import (
    Grade,
    agreement_between,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
    signs,
)
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.raters import SimulatedRater, make_pool

POOL = make_pool(6, seed=1, temperature=0.5, careless_frac=1 / 3, prefix="pool")
OVERLAP = 3


def joint(one: SimulatedRater, other: SimulatedRater, num: int = 8000) -> np.ndarray:
    """Exact [3, 3] chances of the two's answers, averaged over many questions and both orders of each."""
    table = np.zeros((3, 3))
    for q in questions(num, seed=10_000):
        a, b = (np.mean([q.chances(r, (0, 1)), q.chances(r, (1, 0))], axis=0) for r in (one, other))
        table += np.outer(a, b) / num
    return table


@pytest.fixture(scope="module")
def pooled() -> np.ndarray:
    """Of two different raters of the pool."""
    pairs = [(a, b) for a in POOL for b in POOL if a is not b]
    return np.mean([joint(a, b, 1000) for a, b in pairs], axis=0)


def corrected(table: np.ndarray, cost: np.ndarray) -> float:
    expected = np.outer(table.sum(axis=1), table.sum(axis=0))
    return float(1 - (table * cost).sum() / (expected * cost).sum())


def ordinal(share: np.ndarray) -> np.ndarray:
    middle = share.cumsum() - share / 2
    return (middle[:, None] - middle[None, :]) ** 2


NOMINAL = 1 - np.eye(3)
MEASURES: dict[str, tuple[Callable[[list[Grade]], Estimate | None], Callable[[np.ndarray], float]]] = {
    "raw agreement": (raw_agreement, lambda t: float(np.trace(t))),
    "Fleiss' kappa": (fleiss_kappa, lambda t: corrected(t, NOMINAL)),
    "Krippendorff's alpha, nominal": (lambda g: krippendorff_alpha(g, "nominal"), lambda t: corrected(t, NOMINAL)),
    "Krippendorff's alpha, ordinal": (
        lambda g: krippendorff_alpha(g, "ordinal"),
        lambda t: corrected(t, ordinal(t.sum(axis=0))),
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_agreement_of_a_pool_is_covered(name: str, pooled: np.ndarray) -> None:
    measure, truth = MEASURES[name]
    found = [measure(signs(answered(questions(150, seed=s), POOL, overlap=OVERLAP, seed=s))) for s in range(SEEDS)]
    assert_covered(name, sum(covers(estimate, truth(pooled)) for estimate in found))


def test_agreement_of_two_is_covered() -> None:
    one, other = POOL[0], POOL[1]
    table = joint(one, other)
    apart = np.abs(np.arange(3)[:, None] - np.arange(3)[None, :])
    hits = dict.fromkeys(("agreement of two", "Cohen's kappa", "Cohen's kappa, quadratic"), 0)
    for seed in range(SEEDS):
        asked = questions(150, seed=seed)
        first, second = (signs(answered(asked, [r], overlap=1, seed=seed + k)) for k, r in ((0, one), (99, other)))
        hits["agreement of two"] += covers(agreement_between(first, second), float(np.trace(table)))
        hits["Cohen's kappa"] += covers(cohen_kappa(first, second), corrected(table, NOMINAL))
        hits["Cohen's kappa, quadratic"] += covers(cohen_kappa(first, second, "quadratic"), corrected(table, apart**2))
    for name, num in hits.items():
        assert_covered(name, num)
