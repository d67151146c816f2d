"""What the label store takes and gives, beside the records of `postgrad.types`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from postgrad.types import Comparison, FinishReason, Preference, SamplingParams

Purpose = Literal["train", "arena", "exam", "gold"]
"""What a question is for; the answers to "gold" ones are known, and nothing is trained on any but "train"."""
RaterKind = Literal["human", "simulated", "model"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
RATER_KINDS: tuple[RaterKind, ...] = get_args(RaterKind)


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def content_id(*parts: Any) -> str:
    """24 hexadecimal digits of the SHA-256 of the parts as canonical JSON."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored answer and where it came from."""

    prompt_id: str
    round_id: str
    stage: str
    """Which policy answered: initial, sft, rl, or exam-0004, the policy as it was examined after four steps."""
    checkpoint: str
    """SHA-256 of its weights."""
    policy_version: int
    params: SamplingParams
    seed: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason

    @property
    def id(self) -> str:
        return content_id("sample", asdict(self))


@dataclass(frozen=True, slots=True)
class Submission:
    """A preference as it arrives: with the order in which the answers were shown."""

    preference: Preference
    order: tuple[int, ...]
    """Answer indices from first to last on the screen."""
    client_key: str = ""
    """Names this submission, so that sending it twice stores it once; by default one per rater, question and order."""
    reason: str = ""
    """Why an abstention is one; by default its rationale."""

    @property
    def key(self) -> str:
        p = self.preference
        return self.client_key or content_id("preference", p.comparison_id, p.rater_id, self.order)


@dataclass(frozen=True, slots=True)
class Judged:
    """A stored preference with everything that it is about."""

    preference: Preference
    comparison: Comparison
    order: tuple[int, ...]
    prompt_id: str
    round_id: str
    purpose: Purpose
    rater_kind: RaterKind
    created_at: datetime
    stages: tuple[str, ...] = ()
    """Which policy gave each answer."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's metadata."""
