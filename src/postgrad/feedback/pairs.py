"""What reward models and preference methods learn from: one opinion on two answers to one prompt, from any source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from postgrad.feedback.codec import conversation_from_json, conversation_to_json
from postgrad.feedback.records import RaterKind, content_id
from postgrad.types import Conversation, Message


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


@dataclass(frozen=True, slots=True)
class Found:
    """A pair as its source has it, before anything was checked."""

    pair: Pair
    where: str
    """Names it to whoever has to mend it: "pairs.jsonl line 12", "label 7"."""
    prompts_differ: bool = False
    """The worse answer was given to another prompt than the one that stands here."""


def prompt_id_of(prompt: Conversation) -> str:
    """By content, as imports name prompts."""
    return content_id("prompt", conversation_to_json(prompt))


def first_words(prompt: Conversation) -> str:
    """What a conversation begins with: all that grew out of one first message belongs on one side of a split."""
    return next((m.content for m in prompt.messages if m.role == "user"), "")


def with_system(pair: Pair, system: str) -> Pair:
    """The same with a system message in front, where it has none."""
    if not system or any(m.role == "system" for m in pair.prompt.messages[:1]):
        return pair
    prompt = Conversation((Message("system", system), *pair.prompt.messages), pair.prompt.tools)
    return replace(pair, prompt=prompt)


def pair_to_json(pair: Pair) -> dict[str, Any]:
    return asdict(pair) | {"prompt": conversation_to_json(pair.prompt)}


def pair_from_json(row: dict[str, Any]) -> Pair:
    sides = {
        side: Answered(row[side]["text"], tuple(row[side]["token_ids"]), row[side]["checkpoint"])
        for side in ("better", "worse")
    }
    return Pair(**{**row, **sides, "prompt": conversation_from_json(row["prompt"])})
