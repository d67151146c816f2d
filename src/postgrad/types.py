"""Records that cross module boundaries: frozen, standard library only.

Index t describes token t everywhere: a logprob at t is log p(token t | tokens < t), in nats, at the
sampling temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled"]
Status = Literal["completed", "truncated", "errored"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """Raw JSON, exactly as the model emitted it."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One row of any dataset.

    A demonstration trains on `completion`, or, where that is empty, on every assistant turn of `prompt`.
    """

    id: str
    prompt: Conversation
    completion: tuple[Message, ...] = ()
    """The demonstration, or the preferred side of a pair."""
    rejected: tuple[Message, ...] = ()
    target: str | None = None
    """Reference answer, for graders."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    max_tokens: int
    temperature: float = 1.0
    """0 is greedy; logprobs are then those of temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    """The output depends on this and the weights, never on the request's neighbours in the batch."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One assistant turn as it was sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    text: str
    """The tokens decoded, without end-of-turn tokens; cut at a stop string."""


@dataclass(frozen=True, slots=True)
class Turn:
    prompt_ids: tuple[int, ...]
    completion: Completion
    feedback: tuple[Message, ...] = ()
    """What the environment answered; never an assistant message."""


@dataclass(frozen=True, slots=True)
class Score:
    """A grader's opinion. `value` is None where it abstained, which is not a zero."""

    grader: str
    value: float | None
    weight: float = 1.0
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    id: str
    turns: tuple[Turn, ...]
    status: Status
    error: str | None = None
    scores: tuple[Score, ...] = ()

    @property
    def reward(self) -> float | None:
        """Weighted sum of the scores; None when every grader abstained."""
        given = [s.value * s.weight for s in self.scores if s.value is not None]
        return sum(given) if given else None


@dataclass(frozen=True, slots=True)
class Group:
    """Siblings sampled for one prompt: the unit of baselines and of grading."""

    example: Example
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The question put to a rater."""

    id: str
    prompt: Conversation
    answers: tuple[str, ...]
    sources: tuple[str, ...]
    """Sample ids, one per answer; never shown before the rater has answered."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A rater's answer: tiers of answer indices, best first; indices in one tier are tied.

    No tiers are an abstention: the rater could not judge, and `rationale` says why.
    """

    comparison_id: str
    rater_id: str
    tiers: tuple[tuple[int, ...], ...]
    strength: int | None = None
    """1 slightly, 2 clearly, 3 much better; None when ungraded or tied."""
    rationale: str = ""
    milliseconds: int | None = None
    weight: float = 1.0
    both_bad: bool = False
    """A tie in which no answer will do."""

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(better, worse) for every ordered pair; ties yield nothing."""
        for i, tier in enumerate(self.tiers):
            for lower in self.tiers[i + 1 :]:
                for better in tier:
                    for worse in lower:
                        yield better, worse


@dataclass(frozen=True, slots=True)
class Edit:
    """A corrected answer: a demonstration, and a pair edited > original."""

    sample_id: str
    rater_id: str
    original: str
    text: str
