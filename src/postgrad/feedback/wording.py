"""What a label says, in a few words: for lists, and for those who rule on what others said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

SHOWN: Final = 120
"""Characters of a text that stand for it."""
STRENGTHS: Final[Mapping[int, str]] = {1: "slightly better", 2: "better", 3: "much better"}


def letters(num: int) -> list[str]:
    """Names of the places on a screen."""
    return [chr(ord("A") + i) for i in range(num)]


def in_words(kind: str, value: Mapping[str, Any], order: Sequence[int] = ()) -> str:
    """One line without a line break.

    Args:
        kind: of the label.
        value: as it is stored; empty once its author is erased.
        order: answer indices as shown, so that A is what stood first.
    """
    if not value:
        return "erased"
    if "tiers" in value:
        return _ordering(value, order)
    if kind == "rate":
        rated = [f"{axis} {number}" for axis, number in value["axes"].items()]
        return ", ".join(rated + list(value["flags"])) or "nothing to rate"
    if kind == "review":
        return ", ".join(f"{value['steps'].count(v)} {v}" for v in ("good", "neutral", "bad") if v in value["steps"])
    if "turns" in value:
        num = len(value["turns"])
        turns = f"{num} turn" if num == 1 else f"{num} turns"
        return turns + (f", severity {value['severity']}" if "severity" in value else "")
    written = " ".join(value["text"].split())
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."


def _ordering(value: Mapping[str, Any], order: Sequence[int]) -> str:
    tiers = value["tiers"]
    if not tiers:
        return "cannot judge" + (f": {' '.join(value['cannot_judge'].split())}" if value["cannot_judge"] else "")
    place = {answer: i for i, answer in enumerate(order)}
    names = letters(sum(map(len, tiers)))
    shown = [[names[i] for i in sorted(place.get(answer, answer) for answer in tier)] for tier in tiers]
    if value["both_bad"]:
        return "both bad"
    if len(shown) == 1:
        return "tie"
    if value["strength"] is not None:
        return f"{shown[0][0]} {STRENGTHS[value['strength']]}"
    return " > ".join(" = ".join(tier) for tier in shown)
