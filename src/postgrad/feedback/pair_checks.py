"""What is odd about pairs: counted, and treated as the recipe says. Nothing disappears without a number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from postgrad.config.pairs import TreatmentConfig
from postgrad.errors import DataError
from postgrad.feedback.pairs import Found, Pair
from postgrad.feedback.records import content_id

_EXAMPLES: Final = 3
_SAID: Final = {
    "unreadable": "the row is no pair in the format of its file",
    "prompts_differ": "chosen and rejected answer different prompts",
    "empty_answer": "an answer is empty",
    "equal_sides": "both answers are the same",
    "checkpoint_gone": "the policy that answered is in no round of this workspace",
    "contradictory": "the same two answers were also preferred the other way round",
    "one_rater": "one person gave more than `odd.max_rater_share` of the labels",
    "too_long": "prompt and answer have more than `data.max_tokens` tokens",
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
    found: Iterable[Found], cfg: TreatmentConfig, *, checkpoints: Collection[str]
) -> tuple[list[Pair], list[Oddity]]:
    """The pairs to learn from, and everything that is odd, whether or not it was left in.

    A pair that several things are wrong with counts once for each, up to the first that drops it.

    Args:
        found: as the sources have them.
        cfg: what becomes of what.
        checkpoints: SHA-256 of all weights that the workspace holds.

    Raises:
        DataError: the recipe says to stop, or nothing is left.
    """
    left = list(found)
    total = len(left)
    sieve = _Sieve(cfg)
    left = sieve.each("prompts_differ", left, lambda f: f.prompts_differ)
    left = sieve.each("empty_answer", left, lambda f: not f.pair.better.text.strip() or not f.pair.worse.text.strip())
    left = sieve.each("equal_sides", left, lambda f: f.pair.better.text == f.pair.worse.text)
    left = sieve.each("checkpoint_gone", left, lambda f: not _known(f.pair, checkpoints))
    both_ways = _both_ways(left)
    left = sieve.each("contradictory", left, lambda f: not f.pair.tie and _question(f.pair) in both_ways)
    beyond = _beyond(left, cfg.max_rater_share)
    left = sieve.each("one_rater", left, lambda f: id(f) in beyond)
    if not left:
        raise DataError(f"none of {total} pairs is left to learn from; {sieve.sentence()}")
    return [f.pair for f in left], sieve.oddities


def add_too_long(oddities: list[Oddity], long: Sequence[Pair], cfg: TreatmentConfig) -> None:
    """Count pairs that did not fit, which whoever renders them finds out.

    Raises:
        DataError: the recipe says to stop.
    """
    sieve = _Sieve(cfg)
    sieve.each("too_long", [Found(pair, f"prompt {pair.prompt_id}") for pair in long], lambda _: True)
    oddities += sieve.oddities


def unreadable_rows(where: Mapping[str, Sequence[str]], cfg: TreatmentConfig) -> Oddity:
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
    def __init__(self, cfg: TreatmentConfig) -> None:
        self._cfg = cfg
        self.oddities: list[Oddity] = []

    def each(self, problem: str, found: Sequence[Found], is_odd: Any) -> list[Found]:
        treatment = getattr(self._cfg, problem)
        odd = [f for f in found if is_odd(f)]
        oddity = Oddity(
            problem, treatment, _SAID[problem], len(odd), len(odd) if treatment == "drop" else 0,
            dict(Counter(f.pair.source for f in odd)), [f.where for f in odd[:_EXAMPLES]],
        )  # fmt: skip
        self.oddities.append(oddity)
        if odd and treatment == "stop":
            raise DataError(
                f"{len(odd)} of {len(found)} pairs: {oddity.meaning} ({', '.join(oddity.examples)}); mend them, or set "
                f"'data.odd.{problem}' to \"drop\"" + (' or "keep"' if problem != "too_long" else "")
            )
        if treatment != "drop":
            return list(found)
        gone = {id(f) for f in odd}
        return [f for f in found if id(f) not in gone]

    def sentence(self) -> str:
        counted = [f"{o.dropped} dropped because {o.meaning}" for o in self.oddities if o.dropped]
        return "; ".join(counted) or "the sources hold none"


def _known(pair: Pair, checkpoints: Collection[str]) -> bool:
    return all(side.checkpoint in checkpoints for side in (pair.better, pair.worse) if side.checkpoint)


def _question(pair: Pair) -> tuple[str, ...]:
    return (pair.prompt_id, *sorted((pair.better.text, pair.worse.text)))


def _both_ways(found: Iterable[Found]) -> set[tuple[str, ...]]:
    """Questions on which somebody preferred the one answer, and somebody the other."""
    winners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for f in found:
        if not f.pair.tie and f.pair.better.text != f.pair.worse.text:
            winners[_question(f.pair)].add(f.pair.better.text)
    return {question for question, texts in winners.items() if len(texts) > 1}


def _beyond(found: Sequence[Found], share: float) -> set[int]:
    """What a person gave beyond their share of the labels whose raters are known, chosen by hash.

    Dropping lowers the total too, so the most diligent is cut until nobody is beyond the share of what is left.
    """
    by_rater: dict[str, list[Found]] = defaultdict(list)
    for f in found:
        if f.pair.rater:
            by_rater[f.pair.rater].append(f)
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
        for f in sorted(given, key=lambda f: content_id(f.where, f.pair.better.text, f.pair.worse.text))[
            counts[rater] :
        ]
    }
