"""What a label of each kind says. Stored as JSON, checked here, whoever it comes from: page, API, file or model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from postgrad.errors import DataError

Kind = Literal["compare", "rank", "rate", "edit", "write", "converse", "redteam", "review", "adjudicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BETWEEN: tuple[Kind, ...] = ("compare", "rank", "adjudicate")
"""Kinds about several answers."""
ABOUT_ONE: tuple[Kind, ...] = ("rate", "edit", "review")
CHECKABLE: tuple[Kind, ...] = (*BETWEEN, "rate", "review")
"""Kinds of which an answer can be known to be right. Of texts and conversations many are, and none is like another."""
MAX_CHARACTERS = 400_000
MAX_RANKED = 9

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Short = Annotated[str, Field(max_length=2_000)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ordering(_Value):
    """Tiers of answer indices, best first; no tiers are an abstention, which needs a reason."""

    tiers: tuple[tuple[int, ...], ...]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    """1 slightly, 2 clearly, 3 much better, of the first tier over the last; None for a tie and for ranks."""
    both_bad: bool = False
    """A tie in which no answer will do."""
    cannot_judge: Short = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen = [i for tier in self.tiers for i in tier]
        if not seen and not self.cannot_judge.strip():
            raise ValueError("'cannot judge' needs a reason")
        if seen and self.cannot_judge:
            raise ValueError("an answer that cannot be judged has no tiers")
        if len(set(seen)) != len(seen) or not all(self.tiers):
            raise ValueError("every answer stands in one tier, and no tier is empty")
        if self.both_bad and len(self.tiers) != 1:
            raise ValueError("'both bad' is a tie")
        if self.strength is not None and len(self.tiers) != 2:
            raise ValueError("a strength grades one answer over another")
        return self


class Rating(_Value):
    axes: dict[str, Annotated[int, Field(ge=1, le=7)]]
    flags: tuple[str, ...] = ()


class Written(_Value):
    """An edit's or a demonstration's text."""

    text: Text


class Exchange(_Value):
    """One turn of a conversation with the policy: what was said, who might go on, and who did."""

    message: Text
    candidates: tuple[str, ...]
    """Sample ids, in the order in which they were made."""
    order: tuple[int, ...]
    """Indices of candidates as shown."""
    chosen: Annotated[int, Field(ge=0)]
    """Index of the candidate that the conversation went on with."""
    strength: Annotated[int, Field(ge=1, le=3)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(self.order) != list(range(len(self.candidates))) or self.chosen >= len(self.candidates):
            raise ValueError("a turn's order and choice speak of its candidates")
        return self


class Conversed(_Value):
    turns: Annotated[tuple[Exchange, ...], Field(min_length=1)]


class RedTeamed(Conversed):
    severity: Annotated[int, Field(ge=0, le=4)]
    """0 the model held, 4 it did the worst that was asked."""
    harms: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.severity > 0 and not self.harms:
            raise ValueError("a success needs the harms that it did")
        return self


class Reviewed(_Value):
    """One verdict a step, up to the first that was not read."""

    steps: Annotated[tuple[Literal["good", "neutral", "bad"], ...], Field(min_length=1)]


Value = Ordering | Rating | Written | Conversed | RedTeamed | Reviewed
_MODELS: Mapping[str, type[_Value]] = {
    "compare": Ordering,
    "rank": Ordering,
    "adjudicate": Ordering,
    "rate": Rating,
    "edit": Written,
    "write": Written,
    "converse": Conversed,
    "redteam": RedTeamed,
    "review": Reviewed,
}


def check_value(
    kind: str, value: Any, *, num_answers: int = 0, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The value as it is stored, every default spelled out.

    Args:
        kind: one of `KINDS`.
        value: JSON.
        num_answers: that the question shows; indices stay below it.
        details: of the task, which names the axes, flags, steps and harms that it asks about.

    Raises:
        DataError: with one sentence that names the field.
    """
    if kind not in _MODELS:
        raise DataError(f"a label of kind {kind!r} is not one of {', '.join(KINDS)}")
    try:
        parsed = _MODELS[kind].model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{kind}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
    _check_against(kind, parsed, num_answers, details or {})
    return parsed.model_dump(mode="json")


def _check_against(kind: str, value: _Value, num_answers: int, details: Mapping[str, Any]) -> None:
    if isinstance(value, Ordering) and value.tiers:
        named = sorted(i for tier in value.tiers for i in tier)
        if named != list(range(num_answers)):
            raise DataError(f"{kind}: tiers must name each of the {num_answers} answers once")
    if isinstance(value, Rating):
        _only("axes", value.axes, details.get("axes", ()))
        _only("flags", value.flags, details.get("flags", ()))
        if missing := [axis for axis in details.get("axes", ()) if axis not in value.axes]:
            raise DataError(f"rate: {missing[0]!r} is not rated")
    if isinstance(value, RedTeamed):
        _only("harms", value.harms, details.get("harms", ()))
    if isinstance(value, Reviewed) and len(value.steps) > len(details.get("steps", ())):
        raise DataError(f"review: {len(value.steps)} verdicts on {len(details.get('steps', ()))} steps")


def _only(what: str, given: Any, known: Sequence[str]) -> None:
    if odd := [name for name in given if name not in known]:
        raise DataError(f"{what}: {odd[0]!r} is not one of {', '.join(known) or 'none'}")
