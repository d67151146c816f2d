"""The sections of a recipe that name pairs of answers and say what to do with those that are odd."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from postgrad.config.sections import Positive, Section

PairFormat = Literal["labels", "pairs", "hh", "webgpt", "helpsteer", "helpsteer3", "unpaired"]
Treatment = Literal["drop", "keep", "stop"]
LabelKind = Literal["compare", "rank", "adjudicate", "edit", "converse"]


class PairSourceConfig(Section):
    """One source of a mixture."""

    format: PairFormat
    path: str = ""
    """A file, relative to the recipe; "labels" are the workspace's own."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Times the weight of each of its labels in the loss."""
    domain: str = ""
    """What its rows are called in tables, where they do not say themselves."""
    max_pairs: Positive | None = None
    """The first so many."""
    at_least: dict[str, float] = Field(default_factory=dict)
    """Keys of a row whose numbers must be as large, or the row is left out: { p_pair = 0.9 }."""
    attribute: str = "helpfulness"
    """Which score of "helpsteer" rows says what is better."""
    kinds: Annotated[tuple[LabelKind, ...], Field(min_length=1)] = ("compare", "rank", "adjudicate", "edit", "converse")
    """Of "labels"."""
    rounds: tuple[str, ...] = ()
    """Ids of the rounds whose "labels" count; none means all."""

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if (self.format == "labels") == bool(self.path):
            raise ValueError("'labels' are the workspace's own and have no 'path'; every other format needs one")
        return self


class TreatmentConfig(Section):
    """What becomes of odd pairs. All are counted in the report, whatever becomes of them."""

    equal_sides: Treatment = "drop"
    """Both answers are the same text."""
    empty_answer: Treatment = "drop"
    prompts_differ: Treatment = "drop"
    """Chosen and rejected answer different prompts; kept, the prompt of the chosen one stands for both."""
    checkpoint_gone: Treatment = "keep"
    """A label on an answer of a policy that is in no round of the workspace."""
    contradictory: Treatment = "keep"
    """Both directions on the same two answers, or both verdicts on one: noise, which the loss can weigh. Dropped, all
    of these labels are."""
    one_rater: Treatment = "keep"
    """A person with more than `max_rater_share` of the labels; dropped, what is beyond that share is."""
    max_rater_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    too_long: Literal["drop", "stop"] = "drop"
    """More than `data.max_tokens`, or than the model reads, with its prompt."""


class MixtureTreatmentConfig(TreatmentConfig):
    unreadable: Literal["drop", "stop"] = "stop"
    """Rows of a file that are no pairs in its format."""


class PairsConfig(Section):
    sources: Annotated[tuple[PairSourceConfig, ...], Field(min_length=1)]
    system: str = ""
    """System message put before every prompt that has none; empty leaves it to the model's template."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Of the prompts, by a hash of their first user message."""
    max_tokens: Positive = 512
    """Of a prompt with one answer."""
    odd: MixtureTreatmentConfig = MixtureTreatmentConfig()

    def check_all_are_pairs(self) -> None:
        """Raise ValueError where a source holds answers that were judged by themselves."""
        if any(source.format == "unpaired" for source in self.sources):
            raise ValueError(
                "a source of format 'unpaired' holds answers that were judged alone, from which only "
                "'preference.algorithm' = \"kto\" learns; remove the source"
            )
