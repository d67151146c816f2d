"""What is odd about pairs: counted, and treated as the recipe says. Nothing disappears without a number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from postgrad.config.pairs import MixtureTreatmentConfig, TreatmentConfig
from postgrad.errors import DataError
from postgrad.feedback.pairs import Found, Label, Pair
from postgrad.feedback.records import content_id

_EXAMPLES: Final = 3
_SAID: Final = {
    "unreadable": "the row is no pair in the format of its file",
    "prompts_differ": "chosen and rejected answer different prompts",
    "empty_answer": "an answer is empty",
    "equal_sides": "both answers are the same",
    "checkpoint_gone": "the policy that answered is in no round of this workspace",
    "contradictory": "the same two answers were also preferred the other way round, or the same answer judged so",
    "one_rater": "one person gave more than `odd.max_rater_share` of the labels",
    "too_long": "prompt and answer have more than `data.max_tokens` tokens, or more than the model reads",
}


@dataclass(slots=True)
class Oddity:
    """One kind of odd pair in the data."""

    problem: str
    treatment: str
    meaning: str = ""
    count: int = 0
    dropped: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    """Where the first few stand."""


def check_pairs(
    found: Iterable[Found], cfg: TreatmentConfig, *, checkpoints: Collection[str], key: str = "data.odd"
) -> tuple[list[Label], list[Oddity]]:
    """The labels to learn from, and everything that is odd, whether or not it was left in.

    A pair that several things are wrong with counts once for each, up to the first that drops it.

    Args:
        found: as the sources have them.
        cfg: what becomes of what.
        checkpoints: SHA-256 of all weights that the workspace holds.
        key: what the recipe calls `cfg`.

    Raises:
        DataError: the recipe says to stop, or nothing is left.
    """
    left = list(found)
    total = len(left)
    sieve = _Sieve(cfg, key)
    left = sieve.each("prompts_differ", left, lambda f: f.prompts_differ)
    left = sieve.each("empty_answer", left, lambda f: not all(a.text.strip() for a in f.label.answers))
    left = sieve.each("equal_sides", left, lambda f: _is_equal(f.label))
    left = sieve.each("checkpoint_gone", left, lambda f: not _known(f.label, checkpoints))
    both_ways = _both_ways(left)
    left = sieve.each("contradictory", left, lambda f: _said(f.label) is not None and _question(f.label) in both_ways)
    beyond = _beyond(left, cfg.max_rater_share)
    left = sieve.each("one_rater", left, lambda f: id(f) in beyond)
    if not left:
        raise DataError(f"none of {total} pairs is left to learn from; {sieve.sentence()}")
    return [f.label for f in left], sieve.oddities


def add_too_long(oddities: list[Oddity], long: Sequence[Label], cfg: TreatmentConfig, *, key: str = "data.odd") -> None:
    """Count labels that did not fit, which whoever renders them finds out.

    Raises:
        DataError: the recipe says to stop.
    """
    sieve = _Sieve(cfg, key)
    sieve.each("too_long", [Found(label, f"prompt {label.prompt_id}") for label in long], lambda _: True)
    oddities += sieve.oddities


def unreadable_rows(where: Mapping[str, Sequence[str]], cfg: MixtureTreatmentConfig) -> Oddity:
    """Rows of files that are no pairs, by file; with "stop", reading has refused them."""
    every = [place for places in where.values() for place in places]
    return Oddity(
        "unreadable", cfg.unreadable, _SAID["unreadable"], len(every), len(every),
        {name: len(places) for name, places in where.items() if places}, every[:_EXAMPLES],
    )  # fmt: skip


def as_rows(oddities: Iterable[Oddity]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [asdict(oddity) for oddity in oddities]


class _Sieve:
    def __init__(self, cfg: TreatmentConfig, key: str) -> None:
        self._cfg = cfg
        self._key = key
        self.oddities: list[Oddity] = []

    def each(self, problem: str, found: Sequence[Found], is_odd: Any) -> list[Found]:
        treatment = getattr(self._cfg, problem)
        odd = [f for f in found if is_odd(f)]
        oddity = Oddity(
            problem, treatment, _SAID[problem], len(odd), len(odd) if treatment == "drop" else 0,
            dict(Counter(f.label.source for f in odd)), [f.where for f in odd[:_EXAMPLES]],
        )  # fmt: skip
        self.oddities.append(oddity)
        if odd and treatment == "stop":
            raise DataError(
                f"{len(odd)} of {len(found)} pairs: {oddity.meaning} ({', '.join(oddity.examples)}); mend them, or set "
                f"'{self._key}.{problem}' to \"drop\"" + (' or "keep"' if problem != "too_long" else "")
            )
        if treatment != "drop":
            return list(found)
        gone = {id(f) for f in odd}
        return [f for f in found if id(f) not in gone]

    def sentence(self) -> str:
        counted = [f"{o.dropped} dropped because {o.meaning}" for o in self.oddities if o.dropped]
        return "; ".join(counted) or "the sources hold none"


def _is_equal(label: Label) -> bool:
    return isinstance(label, Pair) and label.better.text == label.worse.text


def _known(label: Label, checkpoints: Collection[str]) -> bool:
    return all(answer.checkpoint in checkpoints for answer in label.answers if answer.checkpoint)


def _question(label: Label) -> tuple[str, ...]:
    return (label.prompt_id, *sorted(answer.text for answer in label.answers))


def _said(label: Label) -> str | bool | None:
    """What another label on the same question may contradict; None where it says nothing of the kind."""
    if isinstance(label, Pair):
        return None if label.tie or _is_equal(label) else label.better.text
    return label.good


def _both_ways(found: Iterable[Found]) -> set[tuple[str, ...]]:
    """Questions on which somebody said the one thing, and somebody the other."""
    said: dict[tuple[str, ...], set[str | bool]] = defaultdict(set)
    for f in found:
        if (opinion := _said(f.label)) is not None:
            said[_question(f.label)].add(opinion)
    return {question for question, opinions in said.items() if len(opinions) > 1}


def _beyond(found: Sequence[Found], share: float) -> set[int]:
    """What a person gave beyond their share of the labels whose raters are known, chosen by hash.

    Dropping lowers the total too, so the most diligent is cut until nobody is beyond the share of what is left.
    """
    by_rater: dict[str, list[Found]] = defaultdict(list)
    for f in found:
        if f.label.rater:
            by_rater[f.label.rater].append(f)
    counts = {rater: len(given) for rater, given in by_rater.items()}
    while counts:
        rater = max(counts, key=lambda name: counts[name])
        total = sum(counts.values())
        if counts[rater] <= share * total:
            break
        counts[rater] = int((total - counts[rater]) * share / (1 - share))
    return {
        id(f)
        for rater, given in by_rater.items()
        for f in sorted(given, key=lambda f: content_id(f.where, *(a.text for a in f.label.answers)))[counts[rater] :]
    }
