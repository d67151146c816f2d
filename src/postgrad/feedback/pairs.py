"""What reward models and preference methods learn from: one opinion on two answers to one prompt, from any source."""

from __future__ import annotations

from dataclasses import dataclass

from postgrad.feedback.records import RaterKind
from postgrad.types import Conversation


@dataclass(frozen=True, slots=True)
class Answered:
    """One side of a pair."""

    text: str
    token_ids: tuple[int, ...] = ()
    """As sampled; empty where only the text is known."""
    checkpoint: str = ""
    """SHA-256 of the weights that wrote it; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class Pair:
    prompt_id: str
    prompt: Conversation
    better: Answered
    worse: Answered
    rater: str
    rater_kind: RaterKind
    source: str
    """"labels", or the file that it was read from."""
    tie: bool = False
    both_bad: bool = False
    """A tie in which no answer will do."""
    strength: int = 1
    """1 slightly better, or not graded; 2 clearly; 3 much better."""
    weight: float = 1.0
    domain: str = ""
    """What kind of prompt it is, where the source says so."""
