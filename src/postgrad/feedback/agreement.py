"""How far raters agree with each other: the ceiling for any model of them.

Every coefficient is a function of sums over questions, so its interval resamples questions with all that was said
about them: answers to one question are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from postgrad.feedback.intervals import Estimate, Floats, resampled
from postgrad.feedback.records import Judged
from postgrad.types import Comparison, Preference

Level = Literal["nominal", "ordinal"]
Weighting = Literal["unweighted", "linear", "quadratic"]


@dataclass(frozen=True, slots=True)
class Grade:
    """What one rater made of one thing."""

    question: str
    rater: str
    value: int
    """Of a comparison: positive where the earlier answer is better, 0 for a tie."""
    part: str = ""
    """What is graded, where a question has several: a pair of ranked answers."""

    @property
    def item(self) -> tuple[str, str]:
        return self.question, self.part


def signs(judged: Iterable[Judged]) -> list[Grade]:
    """1, 0 or -1 for every two answers of every question; abstentions are left out."""
    return [
        Grade(j.preference.comparison_id, j.preference.rater_id, sign, f"{a}-{b}")
        for j in judged
        if j.preference.tiers
        for (a, b), sign in _signs(j.preference).items()
    ]


def strengths(judged: Iterable[Judged]) -> list[Grade]:
    """From 3, the first is much better, to -3; abstentions, rankings and victories without a strength are left out."""
    return [
        Grade(j.preference.comparison_id, j.preference.rater_id, sign * (j.preference.strength or 0), "0-1")
        for j in judged
        for sign in _signs(j.preference).values()
        if len(j.comparison.answers) == 2 and (sign == 0 or j.preference.strength is not None)
    ]


def signs_of_rewards(comparisons: Iterable[Comparison], rewards: Mapping[str, float], *, rater: str) -> list[Grade]:
    """What a reward model makes of the same questions.

    Args:
        comparisons: of which all answers have a reward.
        rewards: by sample id.
        rater: what to call the model.
    """
    return [
        Grade(c.id, rater, int(np.sign(rewards[c.sources[a]] - rewards[c.sources[b]])), f"{a}-{b}")
        for c in comparisons
        for a, b in combinations(range(len(c.sources)), 2)
    ]


def raw_agreement(grades: Iterable[Grade], *, seed: int = 0) -> Estimate | None:
    """Share of the pairs of raters of one item who gave it the same grade."""
    items = _tally(grades)
    pairs = {item: np.outer(n, n) - np.diag(n) for item, n in items.items()}
    return resampled(_by_question(pairs), lambda totals: _diagonal(totals) / totals.sum(axis=1), seed=seed)


def fleiss_kappa(grades: Iterable[Grade], *, seed: int = 0) -> Estimate | None:
    """Fleiss 1971, equations 1 to 7.

    Items with other numbers of raters count the same, as Fleiss's do; None where all grades are one.
    """
    terms = {}
    for item, n in _tally(grades).items():
        num = n.sum()
        terms[item] = np.array([1.0, (n @ n - num) / (num * (num - 1)), *(n / num)])

    def kappa(totals: Floats) -> Floats:
        means = totals[:, 1:] / totals[:, :1]
        chance: Floats = (means[:, 1:] ** 2).sum(axis=1)
        corrected: Floats = (means[:, 0] - chance) / (1 - chance)
        return corrected

    return resampled(_by_question(terms), kappa, seed=seed)


def krippendorff_alpha(grades: Iterable[Grade], level: Level, *, seed: int = 0) -> Estimate | None:
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section E; None where all grades are one.

    Equal to evalica's `alpha`, which would be called once a resample; its own bootstrap resamples pairs of raters, not
    questions.
    """
    items = _tally(grades)
    coincidences = {item: (np.outer(n, n) - np.diag(n)) / (n.sum() - 1) for item, n in items.items()}

    def alpha(totals: Floats) -> Floats:
        observed = _square(totals)
        n = observed.sum(axis=2)
        if level == "ordinal":
            middle = n.cumsum(axis=1) - n / 2
            distance = (middle[:, :, None] - middle[:, None, :]) ** 2
        else:
            distance = np.broadcast_to(1 - np.eye(n.shape[1]), observed.shape)
        expected: Floats = (n[:, :, None] * n[:, None, :] * distance).sum(axis=(1, 2))
        corrected: Floats = 1 - (n.sum(axis=1) - 1) * (observed * distance).sum(axis=(1, 2)) / expected
        return corrected

    return resampled(_by_question(coincidences), alpha, seed=seed)


def agreement_between(first: Iterable[Grade], second: Iterable[Grade], *, seed: int = 0) -> Estimate | None:
    """Chance that somebody of the one side and somebody of the other gave the same grade, averaged over items."""
    shares = _crossed(first, second)[0]
    return resampled(shares, lambda totals: _diagonal(totals) / totals.sum(axis=1), seed=seed)


def cohen_kappa(
    first: Iterable[Grade], second: Iterable[Grade], weighting: Weighting = "unweighted", *, seed: int = 0
) -> Estimate | None:
    """Cohen 1960, and 1968 for weighted disagreement; None where both sides give the same single grade.

    Where a side has several raters of an item, each is as likely to speak for it.
    """
    shares, values = _crossed(first, second)
    apart = np.abs(values[:, None] - values[None, :])
    cost = {"unweighted": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weighting]

    def kappa(totals: Floats) -> Floats:
        observed = _square(totals)
        rows, columns = observed.sum(axis=2), observed.sum(axis=1)
        expected: Floats = np.einsum("ri,rj,ij->r", rows, columns, cost) / rows.sum(axis=1)
        corrected: Floats = 1 - (observed * cost).sum(axis=(1, 2)) / expected
        return corrected

    return resampled(shares, kappa, seed=seed)


def label_summary(preferences: Iterable[Preference]) -> dict[str, Any]:
    """Counts, the share of ties, and the share of rater pairs that gave the same answer to the same question.

    `rater_agreement` is None where no question was answered by two raters; a rater is not paired with itself.
    """
    given = list(preferences)
    by_question: dict[str, list[Preference]] = defaultdict(list)
    for p in given:
        by_question[p.comparison_id].append(p)
    same = [
        same_answer(p, q)
        for answers in by_question.values()
        for p, q in combinations(answers, 2)
        if p.rater_id != q.rater_id
    ]
    return {
        "num_comparisons": len(by_question),
        "num_preferences": len(given),
        "tie_frac": sum(len(p.tiers) == 1 for p in given) / len(given) if given else None,
        "rater_agreement": sum(same) / len(same) if same else None,
    }


def same_answer(one: Preference, other: Preference) -> bool:
    """Whether two answers order the same things alike, however strongly."""
    return [frozenset(tier) for tier in one.tiers] == [frozenset(tier) for tier in other.tiers]


def matches(kind: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an answer to a gold task is the known one: the same winners, axes within one, the same steps.

    Args:
        kind: one of `CHECKABLE`.
        given: as it is stored.
        known: likewise.
    """
    if kind == "rate":
        return all(abs(given["axes"][axis] - value) <= 1 for axis, value in known["axes"].items())
    if kind == "review":
        return bool(given["steps"] == known["steps"])
    return [set(tier) for tier in given["tiers"][:1]] == [set(tier) for tier in known["tiers"][:1]]


def _signs(preference: Preference) -> dict[tuple[int, int], int]:
    better = set(preference.pairs())
    answers = sorted(i for tier in preference.tiers for i in tier)
    return {(a, b): ((a, b) in better) - ((b, a) in better) for a, b in combinations(answers, 2)}


def _tally(grades: Iterable[Grade]) -> dict[tuple[str, str], Floats]:
    """How often each item got each grade, where two raters graded it; a rater's first grade of an item counts."""
    given = _firsts(grades)
    values = sorted({g.value for g in given})
    counts = _counts(given, values)
    return {item: n for item, n in counts.items() if n.sum() > 1}


def _crossed(first: Iterable[Grade], second: Iterable[Grade]) -> tuple[Floats, Floats]:
    """[num_questions, values * values] joint shares of the two sides' grades of items that both graded, and values."""
    sides = [_firsts(first), _firsts(second)]
    values = sorted({g.value for side in sides for g in side})
    one, other = (_counts(side, values) for side in sides)
    joint = {item: np.outer(n / n.sum(), other[item] / other[item].sum()) for item, n in one.items() if item in other}
    return _by_question(joint), np.array(values, dtype=float)


def _firsts(grades: Iterable[Grade]) -> Sequence[Grade]:
    found: dict[tuple[tuple[str, str], str], Grade] = {}
    for g in grades:
        found.setdefault((g.item, g.rater), g)
    return list(found.values())


def _counts(grades: Iterable[Grade], values: Sequence[int]) -> dict[tuple[str, str], Floats]:
    column = {value: i for i, value in enumerate(values)}
    counts: dict[tuple[str, str], Floats] = defaultdict(lambda: np.zeros(len(values)))
    for g in grades:
        counts[g.item][column[g.value]] += 1
    return counts


def _by_question(items: Mapping[tuple[str, str], Floats]) -> Floats:
    """[num_questions, terms]: the sum over each question's items."""
    rows: dict[str, Floats] = {}
    for (question, _), terms in items.items():
        rows[question] = rows[question] + terms if question in rows else terms
    return np.array([row.ravel() for row in rows.values()])


def _square(totals: Floats) -> Floats:
    side = round(totals.shape[1] ** 0.5)
    return totals.reshape(-1, side, side)


def _diagonal(totals: Floats) -> Floats:
    diagonal: Floats = np.trace(_square(totals), axis1=1, axis2=2)
    return diagonal
