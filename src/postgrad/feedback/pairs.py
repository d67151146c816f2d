"""What reward models and preference methods learn from: one opinion on two answers to one prompt, from any source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

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
    """A tie in which no answer will do, or between the worst of a ranking."""
    strength: int = 1
    """1 slightly better, or not graded; 2 clearly; 3 much better."""
    weight: float = 1.0
    domain: str = ""
    """What kind of prompt it is, where the source says so."""

    @property
    def answers(self) -> tuple[Answered, ...]:
        return self.better, self.worse


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer that somebody found good or bad by itself."""

    prompt_id: str
    prompt: Conversation
    answer: Answered
    good: bool
    rater: str
    rater_kind: RaterKind
    source: str
    weight: float = 1.0
    domain: str = ""

    @property
    def answers(self) -> tuple[Answered, ...]:
        return (self.answer,)


Label = Pair | Verdict
SomeLabel = TypeVar("SomeLabel", Pair, Verdict, Label)


@dataclass(frozen=True, slots=True)
class Found:
    """A label as its source has it, before anything was checked."""

    label: Label
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


def with_system(label: Label, system: str) -> Label:
    """The same with a system message in front, where it has none."""
    if not system or any(m.role == "system" for m in label.prompt.messages[:1]):
        return label
    prompt = Conversation((Message("system", system), *label.prompt.messages), label.prompt.tools)
    return replace(label, prompt=prompt)


def label_to_json(label: Label) -> dict[str, Any]:
    return asdict(label) | {"prompt": conversation_to_json(label.prompt)}


def pair_from_json(row: dict[str, Any]) -> Pair:
    sides = {
        side: Answered(row[side]["text"], tuple(row[side]["token_ids"]), row[side]["checkpoint"])
        for side in ("better", "worse")
    }
    return Pair(**{**row, **sides, "prompt": conversation_from_json(row["prompt"])})
