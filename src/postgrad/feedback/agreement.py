"""How far raters agree with each other: the ceiling for any model of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from postgrad.types import Preference


def label_summary(preferences: Iterable[Preference]) -> dict[str, Any]:
    """Counts, the share of ties, and the share of rater pairs that gave the same answer to the same question.

    `rater_agreement` is None where no question was answered by two raters; a rater is not paired with itself.
    """
    given = list(preferences)
    by_question: dict[str, list[Preference]] = defaultdict(list)
    for p in given:
        by_question[p.comparison_id].append(p)
    same = [
        _tiers(p) == _tiers(q)
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


def _tiers(preference: Preference) -> list[frozenset[int]]:
    return [frozenset(tier) for tier in preference.tiers]


def matches(kind: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an answer to a gold task is the known one: the same winners, axes within one, the same steps."""
    if kind == "rate":
        return all(abs(given["axes"][axis] - value) <= 1 for axis, value in known["axes"].items())
    if kind == "review":
        return bool(given["steps"] == known["steps"])
    return [set(tier) for tier in given["tiers"][:1]] == [set(tier) for tier in known["tiers"][:1]]
