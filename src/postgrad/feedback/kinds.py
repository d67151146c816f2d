"""Labels that order nothing: ratings, reviews, red teaming and writing; what they grade, and how long they took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from postgrad.db.tables import AssignmentRow, LabelRow, PromptRow, RaterRow, SampleRow, TaskRow
from postgrad.feedback.agreement import Grade, Level, krippendorff_alpha, raw_agreement
from postgrad.feedback.bias import Timing
from postgrad.feedback.intervals import Estimate
from postgrad.feedback.records import RATER_KINDS, RaterKind
from postgrad.feedback.values import Kind

KINDS: Final[tuple[Kind, ...]] = ("rate", "review", "redteam", "edit", "write")
_VERDICTS: Final = {"bad": -1, "neutral": 0, "good": 1}


@dataclass(frozen=True, slots=True)
class Given:
    """One standing label; neither gold nor a repeat."""

    kind: Kind
    rater_id: str
    rater_kind: RaterKind
    about: str
    """What others may have judged too: a sample, or a prompt."""
    value: Mapping[str, Any]
    details: Mapping[str, Any]
    """Of its task, where it had one."""
    milliseconds: int | None
    words: int
    """Of the prompt and of the answer shown."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How far raters of one kind agree on one scale."""

    kind: Kind
    name: str
    """An axis, "flag NAME", "steps", "severity", "harm NAME"."""
    raters: RaterKind
    level: Level
    raw: Estimate | None
    alpha: Estimate | None
    """Krippendorff's; None where nothing was graded twice, or all grades are one."""


def given_labels(session: Session, round_id: str | None) -> list[Given]:
    """All labels of `KINDS`, in the order of their submission."""
    query: Any = (
        select(LabelRow, RaterRow.kind, TaskRow.details, PromptRow.conversation, SampleRow.text)
        .join(RaterRow, RaterRow.id == LabelRow.rater_id)
        .join(PromptRow, PromptRow.id == LabelRow.prompt_id)
        .outerjoin(SampleRow, SampleRow.id == LabelRow.sample_id)
        .outerjoin(TaskRow, TaskRow.id == LabelRow.task_id)
        .outerjoin(AssignmentRow, AssignmentRow.id == LabelRow.assignment_id)
        .where(LabelRow.undone_at.is_(None), LabelRow.kind.in_(KINDS))
        .where(~func.coalesce(AssignmentRow.gold, False), ~func.coalesce(AssignmentRow.repeat, False))
        .order_by(LabelRow.id)
    )
    if round_id is not None:
        query = query.where(func.coalesce(TaskRow.round_id, SampleRow.round_id) == round_id)
    found = []
    for label, rater_kind, details, conversation, text in session.execute(query):
        texts = [*(message["content"] for message in conversation["messages"]), text or ""]
        found.append(
            Given(
                kind=label.kind,
                rater_id=label.rater_id,
                rater_kind=rater_kind,
                about=label.sample_id or label.prompt_id,
                value=label.value,
                details=details or {},
                milliseconds=label.milliseconds,
                words=sum(len(shown.split()) for shown in texts),
            )
        )
    return found


def scales(given: Iterable[Given], *, seed: int = 0) -> tuple[Scale, ...]:
    """Agreement on every scale, by kind of rater; intervals resample answers, or prompts, with all said about them."""
    grades: dict[tuple[RaterKind, Kind, str, Level], list[Grade]] = {}
    for one in given:
        for name, level, grade in _grades(one):
            grades.setdefault((one.rater_kind, one.kind, name, level), []).append(grade)
    return tuple(
        Scale(kind, name, raters, level, raw_agreement(own, seed=seed), krippendorff_alpha(own, level, seed=seed))
        for (raters, kind, name, level), own in sorted(grades.items(), key=lambda item: _order(item[0]))
    )


def timings(given: Iterable[Given]) -> dict[str, list[Timing]]:
    """By rater."""
    found: dict[str, list[Timing]] = {}
    for one in given:
        if one.milliseconds is not None:
            found.setdefault(one.rater_id, []).append(Timing(one.milliseconds, one.words))
    return found


def _grades(one: Given) -> Iterable[tuple[str, Level, Grade]]:
    """(scale, level, grade) of all that a label says; a flag or harm that was offered and not raised is a no."""
    about, rater, value = one.about, one.rater_id, one.value
    if one.kind == "rate":
        yield from ((axis, "ordinal", Grade(about, rater, score)) for axis, score in value["axes"].items())
        yield from _marks("flag", one, value["flags"], one.details.get("flags", ()))
    elif one.kind == "review":
        for i, verdict in enumerate(value["steps"]):
            yield "steps", "ordinal", Grade(about, rater, _VERDICTS[verdict], str(i))
    elif one.kind == "redteam":
        yield "severity", "ordinal", Grade(about, rater, value["severity"])
        yield from _marks("harm", one, value["harms"], one.details.get("harms", ()))


def _marks(what: str, one: Given, raised: Iterable[str], offered: Iterable[str]) -> Iterable[tuple[str, Level, Grade]]:
    chosen = set(raised)
    return ((f"{what} {name}", "nominal", Grade(one.about, one.rater_id, int(name in chosen))) for name in offered)


def _order(key: tuple[RaterKind, Kind, str, Level]) -> tuple[int, int, Level, str]:
    raters, kind, name, level = key
    return KINDS.index(kind), RATER_KINDS.index(raters), level, name
