"""Agreement on comparisons, slice by slice: does it fall from week to week, in one round, with one rater?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from postgrad.feedback import agreement as agree
from postgrad.feedback.agreement import Grade
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.records import RATER_KINDS, Judged, RaterKind

By = Literal["week", "round", "rater"]
BYS: Final[tuple[By, ...]] = get_args(By)


@dataclass(frozen=True, slots=True)
class Slice:
    name: str
    raters: RaterKind
    labels: int
    raw: Estimate | None
    kappa: Estimate | None
    """Beyond chance: Krippendorff's alpha within a week or round, Cohen's kappa of a rater with the others."""


_NAMES: Final[Mapping[By, Callable[[Judged], str]]] = {
    "week": lambda j: "{}-W{:02d}".format(*j.created_at.isocalendar()[:2]),
    "round": lambda j: j.round_id,
    "rater": lambda j: j.preference.rater_id,
}


def slices(judged: Sequence[Judged], by: By, *, seed: int = 0) -> list[Slice]:
    """Slices by name and by kind of rater. Weeks are ISO 8601's, in UTC; two labels meet in the week of both."""
    found = []
    for raters in RATER_KINDS:
        mine = [j for j in judged if j.rater_kind == raters]
        everybody = agree.signs(mine)
        for name in sorted({_NAMES[by](j) for j in mine}):
            own = [j for j in mine if _NAMES[by](j) == name]
            grades = agree.signs(own)
            raw, kappa = _with_others(grades, everybody, seed) if by == "rater" else _among(grades, seed)
            found.append(Slice(name, raters, len(own), raw, kappa))
    return found


def _among(grades: Sequence[Grade], seed: int) -> tuple[Estimate | None, Estimate | None]:
    return agree.raw_agreement(grades, seed=seed), agree.krippendorff_alpha(grades, "nominal", seed=seed)


def _with_others(
    grades: Sequence[Grade], everybody: Sequence[Grade], seed: int
) -> tuple[Estimate | None, Estimate | None]:
    mine = {g.rater for g in grades}
    others = [g for g in everybody if g.rater not in mine]
    return agree.agreement_between(grades, others, seed=seed), agree.cohen_kappa(grades, others, seed=seed)
