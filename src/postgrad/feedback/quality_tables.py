"""The quality of labels as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from postgrad.feedback.intervals import Estimate
from postgrad.feedback.kinds import Scale
from postgrad.feedback.quality import Quality
from postgrad.feedback.slices import By, Slice

MEASURES = {
    "raw": "raw",
    "cohen_kappa": "Cohen's \u03ba",
    "cohen_kappa_quadratic_strength": "Cohen's \u03ba, strength, quadratic",
    "fleiss_kappa": "Fleiss' \u03ba",
    "alpha_nominal": "Krippendorff's \u03b1",
    "alpha_ordinal_strength": "Krippendorff's \u03b1, strength, ordinal",
}
_SKILL = ("rater", "kind", "answers", "gold right", "agrees", "accuracy", "weight")
_HABITS = ("rater", "first chosen", "length slope", "consistent", "median s", "too fast")


def quality_tables(found: Quality) -> list[Table]:
    """Labels by kind, agreement with 95% intervals, and two lines for each rater: skill and habits."""
    kinds = Table("kind", Column("labels", justify="right"), title="Labels")
    for kind, num in found.labels.items():
        kinds.add_row(kind, str(num))
    agreement = Table("among", "measure", "value [95%]", Column("questions", justify="right"), title="Agreement")
    for pair in found.agreement:
        between = f"{pair.first} raters" if pair.first == pair.second else f"{pair.first} and {pair.second}"
        for name, estimate in pair.measures.items():
            questions = str(estimate.num) if estimate else ""
            agreement.add_row(between, MEASURES[name], _number(estimate), questions)
            between = ""
    skill, habits = (
        Table(*(Column(name, overflow="fold") for name in names), title=title)
        for names, title in ((_SKILL, "Raters"), (_HABITS, "Their habits"))
    )
    for rater in found.raters:
        skill.add_row(
            rater.rater_id,
            rater.kind,
            str(rater.answers),
            f"{rater.gold_right} of {rater.gold}" if rater.gold else "",
            percent(rater.agreement),
            percent(rater.accuracy),
            _number(rater.weight),
        )
        habits.add_row(
            rater.rater_id,
            percent(rater.position),
            _number(rater.length),
            percent(rater.consistency),
            "" if rater.median_ms is None else f"{rater.median_ms / 1000:.1f}",
            "" if rater.too_fast is None else f"{rater.too_fast:.0%}",
        )
    others = [_scale_table(found.scales)] if found.scales else []
    return [kinds, agreement, *others, skill, habits]


def slice_table(found: Sequence[Slice], by: By) -> Table:
    chance = "Cohen's \u03ba with the others" if by == "rater" else "Krippendorff's \u03b1"
    columns = (by, "raters", Column("labels", justify="right"), "raw [95%]", f"{chance} [95%]")
    table = Table(*columns, title=f"Agreement by {by}")
    for one in found:
        table.add_row(one.name, one.raters, str(one.labels), _number(one.raw), _number(one.kappa))
    return table


def _scale_table(found: Sequence[Scale]) -> Table:
    columns = ("kind", "scale", "raters", "raw [95%]", "Krippendorff's \u03b1 [95%]", Column("asked", justify="right"))
    table = Table(*columns, title="Agreement on ratings, reviews and red teaming")
    for scale in found:
        num = str(scale.raw.num) if scale.raw else ""
        alpha = f"{_number(scale.alpha)} {scale.level}" if scale.alpha else ""
        table.add_row(scale.kind, scale.name, scale.raters, _number(scale.raw), alpha, num)
    return table


def _number(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def percent(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"
