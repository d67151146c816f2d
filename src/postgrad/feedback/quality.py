"""What the labels of a store are worth: how far raters agree, and what each of them does.

Comparisons and rankings for training and for the arena count; gold questions are easier, adjudications harder than the
rest, and both are left out but for the gold count.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from postgrad.db.tables import (
    AssignmentRow,
    ComparisonRow,
    LabelRow,
    RaterRow,
    RoundRow,
    SampleRow,
    TaskRow,
)
from postgrad.errors import StoreError
from postgrad.feedback import agreement as agree
from postgrad.feedback import bias
from postgrad.feedback.agreement import Grade
from postgrad.feedback.competence import competence, dawid_skene
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.kinds import Scale, given_labels, scales, timings
from postgrad.feedback.records import RATER_KINDS, Judged, Purpose, RaterKind
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import Kind

Thing = TypeVar("Thing")
Key = TypeVar("Key", bound=Hashable)

PURPOSES: Final[tuple[Purpose, ...]] = ("train", "arena")
KINDS: Final[tuple[Kind, ...]] = ("compare", "rank")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Among raters of one kind where both names are the same, else across two."""

    first: str
    second: str
    measures: Mapping[str, Estimate | None]
    """None where nothing was graded twice, or all grades are one."""


@dataclass(frozen=True, slots=True)
class RaterQuality:
    rater_id: str
    kind: RaterKind
    answers: int
    """Of every kind, gold and repeats included."""
    gold_right: int
    gold: int
    agreement: Estimate | None = None
    """With the other raters of its kind."""
    accuracy: Estimate | None = None
    """By Dawid and Skene's model of its kind."""
    weight: Estimate | None = None
    """Its discrimination among its kind: what `Preference.weight` may be."""
    position: Estimate | None = None
    """Share of choices of the answer displayed first."""
    length: Estimate | None = None
    """Logistic slope on relative length."""
    consistency: Estimate | None = None
    """Share of swapped repeats answered alike."""
    median_ms: float | None = None
    too_fast: float | None = None
    """Share of timed answers of every kind; None where no limit is set."""


@dataclass(frozen=True, slots=True)
class Quality:
    labels: Mapping[str, int]
    """Standing ones by kind."""
    questions: int
    """Comparisons and rankings that were answered."""
    agreement: tuple[Agreement, ...]
    raters: tuple[RaterQuality, ...]
    scales: tuple[Scale, ...] = ()
    """Of ratings, reviews and red teaming."""


def quality(
    store: LabelStore,
    *,
    round_id: str | None = None,
    rewards: Mapping[str, float] | None = None,
    too_fast_s: float = 0.0,
    seed: int = 0,
) -> Quality:
    """Everything that can be said of the labels.

    Args:
        store: holds them.
        round_id: all rounds where it is None.
        rewards: by sample id, to hold a reward model against every kind of rater.
        too_fast_s: as `QueueConfig.too_fast_s`.
        seed: of the bootstraps.

    Raises:
        StoreError: also where the store holds no such round.
    """
    with store.reading() as session:
        _check_round(session, round_id)
        kinds: dict[str, RaterKind] = {row.id: row.kind for row in session.execute(select(RaterRow.id, RaterRow.kind))}
        labels, answers = _counts(session, round_id)
        gold = _gold(session, round_id)
        others = given_labels(session, round_id)
    judged, repeats = (judgements(store, round_id=round_id, repeats=repeats) for repeats in (False, True))
    timed = timings(others)
    sides: dict[str, list[Judged]] = {kind: [j for j in judged if j.rater_kind == kind] for kind in RATER_KINDS}
    signs = {side: agree.signs(given) for side, given in sides.items() if given}
    scored = [j.comparison for j in judged if rewards and all(s in rewards for s in j.comparison.sources)]
    if rewards:
        signs["reward model"] = agree.signs_of_rewards(scored, rewards, rater="reward model")
    found = [_among(side, signs[side], sides[side], seed) for side in signs if side in sides]
    found += [_across(a, b, signs, sides, seed) for a, b in combinations(signs, 2)]
    raters: list[RaterQuality] = []
    for side in (side for side in sides if side in signs):
        raters += _raters(sides[side], signs[side], repeats, timed, too_fast_s, seed, answers, gold)
    silent = [r for r in answers if r not in {one.rater_id for one in raters}]
    raters += [
        RaterQuality(r, kinds[r], answers[r], *gold.get(r, (0, 0)), too_fast=_haste(timed.get(r, []), too_fast_s))
        for r in silent
    ]
    return Quality(
        labels=labels,
        questions=len({j.preference.comparison_id for j in judged}),
        agreement=tuple(found),
        raters=tuple(sorted(raters, key=lambda r: (RATER_KINDS.index(r.kind), r.rater_id))),
        scales=scales(others, seed=seed),
    )


def _among(kind: str, signs: Sequence[Grade], judged: Sequence[Judged], seed: int) -> Agreement:
    measures = {
        "raw": agree.raw_agreement(signs, seed=seed),
        "fleiss_kappa": agree.fleiss_kappa(signs, seed=seed),
        "alpha_nominal": agree.krippendorff_alpha(signs, "nominal", seed=seed),
        "alpha_ordinal_strength": agree.krippendorff_alpha(agree.strengths(judged), "ordinal", seed=seed),
    }
    return Agreement(kind, kind, measures)


def _across(
    first: str, second: str, signs: Mapping[str, Sequence[Grade]], sides: Mapping[str, Sequence[Judged]], seed: int
) -> Agreement:
    one, other = (agree.strengths(sides.get(side, ())) for side in (first, second))
    measures = {
        "raw": agree.agreement_between(signs[first], signs[second], seed=seed),
        "cohen_kappa": agree.cohen_kappa(signs[first], signs[second], seed=seed),
        "cohen_kappa_quadratic_strength": agree.cohen_kappa(one, other, "quadratic", seed=seed),
    }
    return Agreement(first, second, measures)


def _raters(
    judged: Sequence[Judged],
    signs: Sequence[Grade],
    repeats: Sequence[Judged],
    timed: Mapping[str, list[bias.Timing]],
    too_fast_s: float,
    seed: int,
    answers: Mapping[str, int],
    gold: Mapping[str, tuple[int, int]],
) -> list[RaterQuality]:
    """Everybody of one kind who compared something."""
    given, again = (_grouped(js, lambda j: j.preference.rater_id) for js in (judged, repeats))
    graded, by_item = _grouped(signs, lambda g: g.rater), _grouped(signs, lambda g: g.item)
    skill, weights = dawid_skene(signs), competence(signs)
    found = []
    for rater_id, own in given.items():
        mine = graded.get(rater_id, [])
        others = [g for item in {g.item for g in mine} for g in by_item[item] if g.rater != rater_id]
        made = bias.choices(own)
        right, num = gold.get(rater_id, (0, 0))
        found.append(
            RaterQuality(
                rater_id=rater_id,
                kind=own[0].rater_kind,
                answers=answers[rater_id],
                gold_right=right,
                gold=num,
                agreement=agree.agreement_between(mine, others, seed=seed),
                accuracy=skill.accuracy.get(rater_id),
                weight=weights.weight.get(rater_id),
                position=bias.position_rate(made),
                length=bias.length_slope(made),
                consistency=bias.self_consistency(own, again.get(rater_id, ())),
                median_ms=bias.median_milliseconds(own),
                too_fast=_haste([*bias.timings(own), *timed.get(rater_id, [])], too_fast_s),
            )
        )
    return found


def _haste(timed: Sequence[bias.Timing], too_fast_s: float) -> float | None:
    return bias.too_fast(timed, too_fast_s) if too_fast_s else None


def judgements(store: LabelStore, *, round_id: str | None = None, repeats: bool = False) -> list[Judged]:
    """The comparisons and rankings that `quality` looks at."""
    return [
        j
        for purpose in PURPOSES
        for j in store.preferences(purpose=purpose, round_id=round_id, kinds=KINDS, repeats=repeats, judges=True)
    ]


def _grouped(things: Iterable[Thing], key: Callable[[Thing], Key]) -> dict[Key, list[Thing]]:
    found: dict[Key, list[Thing]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


def _check_round(session: Session, round_id: str | None) -> None:
    known = session.scalars(select(RoundRow.id).order_by(RoundRow.created_at)).all()
    if round_id is not None and round_id not in known:
        raise StoreError(f"no round {round_id!r} in the label store; rounds: {', '.join(known) or 'none yet'}")


def _counts(session: Session, round_id: str | None) -> tuple[dict[str, int], dict[str, int]]:
    """Standing labels by kind and by rater."""
    query = (
        select(LabelRow.kind, LabelRow.rater_id, func.count())
        .outerjoin(TaskRow, TaskRow.id == LabelRow.task_id)
        .outerjoin(ComparisonRow, ComparisonRow.id == LabelRow.comparison_id)
        .outerjoin(SampleRow, SampleRow.id == LabelRow.sample_id)
        .where(LabelRow.undone_at.is_(None))
        .group_by(LabelRow.kind, LabelRow.rater_id)
        .order_by(LabelRow.kind, LabelRow.rater_id)
    )
    if round_id is not None:
        query = query.where(func.coalesce(TaskRow.round_id, ComparisonRow.round_id, SampleRow.round_id) == round_id)
    kinds: dict[str, int] = {}
    raters: dict[str, int] = {}
    for kind, rater_id, num in session.execute(query):
        kinds[kind] = kinds.get(kind, 0) + num
        raters[rater_id] = raters.get(rater_id, 0) + num
    return kinds, raters


def _gold(session: Session, round_id: str | None) -> dict[str, tuple[int, int]]:
    """(right, answered) gold tasks of each rater."""
    query: Any = (
        select(AssignmentRow.rater_id, AssignmentRow.correct, func.count())
        .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
        .where(AssignmentRow.gold, AssignmentRow.state == "submitted")
        .group_by(AssignmentRow.rater_id, AssignmentRow.correct)
    )
    if round_id is not None:
        query = query.where(TaskRow.round_id == round_id)
    found: dict[str, tuple[int, int]] = {}
    for rater_id, correct, num in session.execute(query):
        right, answered = found.get(rater_id, (0, 0))
        found[rater_id] = (right + num * bool(correct), answered + num)
    return found
