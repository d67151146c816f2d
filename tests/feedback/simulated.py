"""Questions with a known truth, answered by simulated raters whose faults are known."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from postgrad.feedback.intervals import Estimate
from postgrad.feedback.raters import SimulatedRater
from postgrad.feedback.records import Judged
from postgrad.types import Comparison, Conversation

SEEDS = 40
MIN_COVERED = 34
"""Of 40 intervals of 95%: fewer than 34 cover the truth three times in a thousand."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Question:
    """Two answers; the difference of their utilities is normal, each answer's length uniform."""

    def __init__(self, name: str, dice: random.Random, *, spread: float) -> None:
        self.utilities = (dice.gauss(0, spread / math.sqrt(2)), dice.gauss(0, spread / math.sqrt(2)))
        self.lengths = (dice.randint(20, 400), dice.randint(20, 400))
        self.comparison = Comparison(name, Conversation(()), tuple("x" * n for n in self.lengths), ("s0", "s1"))

    def answer(self, rater: SimulatedRater, order: tuple[int, int]) -> Judged:
        given = rater.compare(self.comparison.id, self.utilities, self.lengths, order=order)
        return Judged(given, self.comparison, order, "p", "r", "train", "simulated", NOW)

    def chances(self, rater: SimulatedRater, order: tuple[int, int]) -> tuple[float, float, float]:
        """Of answer 0 being better, of a tie, of answer 1 being better."""
        first, tie, second = rater.probabilities(self.utilities, self.lengths, order=order)
        return (first, tie, second) if order == (0, 1) else (second, tie, first)


def questions(num: int, *, seed: int, spread: float = 1.0) -> list[Question]:
    dice = random.Random(f"questions {seed}")
    return [Question(f"{seed}-{i}", dice, spread=spread) for i in range(num)]


def orders(num: int, *, seed: int) -> list[tuple[int, int]]:
    dice = random.Random(f"orders {seed}")
    return [(0, 1) if dice.random() < 0.5 else (1, 0) for _ in range(num)]


def assert_covered(what: str, hits: int) -> None:
    """`pytest -s` shows how often intervals held the truth."""
    sys.stdout.write(f"\n{what}: {hits} of {SEEDS}")
    assert hits >= MIN_COVERED, what


def covers(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    return estimate.low <= truth <= estimate.high


def answered(asked: Sequence[Question], raters: Sequence[SimulatedRater], *, overlap: int, seed: int) -> list[Judged]:
    """Every question by `overlap` different raters, each with its sides as they fall."""
    dice = random.Random(f"assignments {seed}")
    return [
        q.answer(rater, (0, 1) if dice.random() < 0.5 else (1, 0))
        for q in asked
        for rater in dice.sample(list(raters), overlap)
    ]
