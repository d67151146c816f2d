"""Agreement by week, round and rater."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from simulated import answered, questions

from postgrad.feedback.agreement import raw_agreement, signs
from postgrad.feedback.raters import SimulatedRater
from postgrad.feedback.records import Judged
from postgrad.feedback.slices import slices

GOOD = [SimulatedRater(f"good{i}", 0.1, 0.0, 0.0, 0.0) for i in range(3)]
CARELESS = SimulatedRater("careless", 0.3, 0.0, 0.0, 0.9)
FIRST, SECOND = datetime(2025, 12, 31, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)


def week(raters: list[SimulatedRater], at: datetime, seed: int) -> list[Judged]:
    return [
        replace(j, created_at=at, round_id=f"round{seed}")
        for j in answered(questions(120, seed=seed), raters, overlap=3, seed=seed)
    ]


def test_a_week_with_a_careless_rater_agrees_less_and_the_rater_is_told_apart() -> None:
    good, bad = week(GOOD, FIRST, 0), week([*GOOD[:2], CARELESS], SECOND, 1)
    first, second = slices([*good, *bad], "week")
    assert [(s.name, s.raters, s.labels) for s in (first, second)] == [
        ("2026-W01", "simulated", 360), ("2026-W02", "simulated", 360),
    ]  # fmt: skip
    assert first.raw == raw_agreement(signs(good))
    assert first.raw is not None
    assert second.raw is not None
    assert first.raw.low > second.raw.high
    assert first.kappa is not None
    assert second.kappa is not None
    assert first.kappa.low > second.kappa.high
    assert [s.name for s in slices([*good, *bad], "round")] == ["round0", "round1"]
    by_rater = {s.name: s for s in slices([*good, *bad], "rater")}
    assert {s.labels for s in by_rater.values()} == {120, 240}
    worst = min(by_rater.values(), key=lambda s: s.kappa.value if s.kappa else 1.0)
    assert worst.name == "careless"
    assert worst.kappa is not None
    assert worst.kappa.value == pytest.approx(0.1, abs=0.15)


def test_nothing_has_no_slices() -> None:
    assert slices([], "week") == []
