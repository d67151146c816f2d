"""Leaving raters out of the arena, against a planted partisan."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime

import pytest

from postgrad.evals.influence import influence
from postgrad.feedback.records import Judged
from postgrad.types import Comparison, Conversation, Preference

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def judged(prompt: str, rater: str, stages: tuple[str, str], winner: int | None, kind: str = "human") -> Judged:
    tiers = ((0, 1),) if winner is None else ((winner,), (1 - winner,))
    comparison = Comparison(f"{prompt}-{stages}", Conversation(()), ("a", "b"), ("s0", "s1"))
    given = Preference(comparison.id, rater, tiers)
    return Judged(given, comparison, (0, 1), prompt, "r1", "arena", kind, NOW, stages)  # type: ignore[arg-type]


def test_win_rates_and_elo_by_hand() -> None:
    given = [
        judged("p0", "ada", ("rl", "sft"), 0),
        judged("p1", "ada", ("sft", "rl"), 1),
        judged("p1", "bob", ("rl", "sft"), 1),
        judged("p2", "bob", ("rl", "sft"), None),
        judged("p3", "bob", ("sft", "sft"), 0),
    ]
    (found,) = influence(given)
    assert (found.a, found.b, found.win_rate) == ("rl", "sft", pytest.approx((1 + 0.5 + 0.5) / 3))
    # One draw is added to every pair: 2 + 0.5 against 1 + 0.5.
    assert found.elo == pytest.approx(400 * math.log10(2.5 / 1.5))
    without_ada, without_bob = found.without["ada"], found.without["bob"]
    assert without_ada == pytest.approx((0.25 - 2 / 3, 400 * math.log10(1.0 / 2.0) - found.elo))
    assert without_bob == pytest.approx((1 - 2 / 3, 400 * math.log10(2.5 / 0.5) - found.elo))


def test_a_partisan_changes_most_and_the_truth_is_nearer_without_them() -> None:
    dice = random.Random(0)
    given = []
    for i in range(300):
        for rater in dice.sample(["ada", "bob", "cyd", "dee", "partisan"], 2):
            wins = rater == "partisan" or dice.random() < 0.5
            stages, winner = ((("rl", "sft"), 1 - wins), (("sft", "rl"), int(wins)))[dice.randrange(2)]
            given.append(judged(f"p{i}", rater, stages, winner))
    (found,) = influence(given)
    most = max(found.without, key=lambda name: abs(found.without[name][0]))
    assert most == "partisan"
    assert found.win_rate > 0.56
    assert found.win_rate + found.without["partisan"][0] == pytest.approx(0.5, abs=0.06)
    assert all(abs(found.without[name][0]) < 0.04 for name in ("ada", "bob", "cyd", "dee"))


def test_who_judged_alone_leaves_nothing_and_kinds_of_raters_are_apart() -> None:
    given = [judged("p0", "ada", ("rl", "sft"), 0), judged("p0", "m", ("rl", "sft"), 1, "model")]
    people, models = influence(given)
    assert [(s.raters, s.win_rate, s.without) for s in (people, models)] == [("human", 1.0, {}), ("model", 0.0, {})]
    assert influence([]) == []
