"""Agreement on ratings, reviews and red teaming against raters whose every chance is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from simulated import SEEDS, assert_covered, covers

from postgrad.feedback.kinds import Given, Scale, scales
from postgrad.feedback.values import Kind

NOISE = (0.4, 0.6, 0.8, 1.0, 1.5, 3.0)
"""Of six raters, beside a truth of deviation 1; the last one is careless."""
QUESTIONS, OVERLAP, STEPS = 120, 3, 4
CUTS = np.linspace(-1.5, 1.5, 6)
STEP_CUTS = np.array([-0.6, 0.4])
FLAG_CUT = np.array([0.8])
_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(61)


def chances(noise: float, cuts: np.ndarray) -> np.ndarray:
    """[nodes, grades]: what a rater says of every possible truth."""
    below = norm.cdf((cuts[None, :] - _NODES[:, None]) / noise)
    return np.diff(np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1)


def joint(cuts: np.ndarray) -> np.ndarray:
    """Exact chances of the grades of two different raters, by quadrature over the truth."""
    weights = _MASSES / _MASSES.sum()
    pairs = [(a, b) for a in NOISE for b in NOISE if a != b]
    return np.mean([(chances(a, cuts) * weights[:, None]).T @ chances(b, cuts) for a, b in pairs], axis=0)


def alpha(table: np.ndarray, *, ordinal: bool) -> float:
    share = table.sum(axis=0)
    middle = share.cumsum() - share / 2
    cost = (middle[:, None] - middle[None, :]) ** 2 if ordinal else 1 - np.eye(len(share))
    return float(1 - (table * cost).sum() / (np.outer(share, share) * cost).sum())


def labels(seed: int) -> list[Given]:
    """A rating with a flag, a review and a red teaming of every question, by three of the six."""
    dice = np.random.default_rng(seed)
    found = []
    for q in range(QUESTIONS):
        truth = dice.normal(size=3)
        # The steps of one trajectory are good and bad together.
        steps = (dice.normal() + np.sqrt(2) * dice.normal(size=STEPS)) / np.sqrt(3)
        for rater in dice.choice(len(NOISE), size=OVERLAP, replace=False):
            seen = truth + NOISE[rater] * dice.normal(size=3)
            verdicts = np.searchsorted(STEP_CUTS, steps + NOISE[rater] * dice.normal(size=STEPS))
            flags = ["rude"] * int(seen[1] > FLAG_CUT[0])
            severity = int(np.searchsorted(CUTS[1:-1], seen[2]))
            found += [
                given(q, rater, "rate", {"axes": {"helpful": 1 + int(np.searchsorted(CUTS, seen[0]))}, "flags": flags}),
                given(q, rater, "review", {"steps": [("bad", "neutral", "good")[v] for v in verdicts]}),
                given(q, rater, "redteam", {"severity": severity, "harms": ["fraud"] if severity > 2 else []}),
            ]
    return found


def given(question: int, rater: Any, kind: Kind, value: dict[str, Any]) -> Given:
    details = {"axes": ["helpful"], "flags": ["rude"], "harms": ["fraud"]}
    return Given(kind, f"r{rater}", "human", f"q{question}", value, details, None, 10)


TRUTH = {
    "helpful": (CUTS, True),
    "flag rude": (FLAG_CUT, False),
    "steps": (STEP_CUTS, True),
    "severity": (CUTS[1:-1], True),
    "harm fraud": (CUTS[3:4], False),
}


@pytest.fixture(scope="module")
def found() -> Sequence[dict[str, Scale]]:
    return [{scale.name: scale for scale in scales(labels(seed))} for seed in range(SEEDS)]


@pytest.mark.parametrize("name", TRUTH)
def test_agreement_on_a_scale_is_covered(name: str, found: Sequence[dict[str, Scale]]) -> None:
    cuts, ordinal = TRUTH[name]
    table = joint(cuts)
    assert {one[name].level for one in found} == {"ordinal" if ordinal else "nominal"}
    assert_covered(f"{name}, raw", sum(covers(one[name].raw, float(np.trace(table))) for one in found))
    assert_covered(f"{name}, alpha", sum(covers(one[name].alpha, alpha(table, ordinal=ordinal)) for one in found))
    assert {one[name].raw.num for one in found if one[name].raw} == {QUESTIONS}


def test_people_and_others_are_apart_and_what_nobody_offered_is_no_grade() -> None:
    same = {"axes": {"helpful": 5}, "flags": []}
    two = [Given("rate", name, "human", "s", same, {}, None, 1) for name in ("ada", "bob")]
    model = Given("rate", "m", "model", "s", same | {"axes": {"helpful": 1}}, {}, None, 1)
    people, alone = scales([*two, model])
    assert (people.name, people.raters, people.alpha) == ("helpful", "human", None), "all grades are one"
    assert people.raw is not None
    assert people.raw.value == 1.0
    assert (alone.raters, alone.raw) == ("model", None)
    assert scales([]) == ()
