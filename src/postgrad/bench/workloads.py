"""The work that is timed, and who does it. A job is plain JSON, so that another interpreter can read it.

Sizes that decide a comparison are stated here once, and reach this package and its peers alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["rl", "sft", "decode"]

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Write a sentence about dogs.",
    "How do magnets work?",
    "Give me a tip for sleeping well.",
    "What is 12 plus 7?",
    "Explain rain to a child.",
)
DECODE_QUESTION = "What is the capital of France? Answer in one sentence."
PROMPTS_PER_STEP = 4
LONG_WORDS = 490
_FILLER = "the river runs past the old mill "
_RL = {
    "group_size": 8,
    "max_tokens": 32,
    "learning_rate": 1e-5,
    "kl_coef": 0.04,
    # Of the reward, which falls with the distance of an answer's length from it.
    "target_characters": 80,
}


@dataclass(frozen=True, slots=True)
class Side:
    """Who does the work, and how: this package, or a peer at its defaults or not."""

    name: str
    driver: str
    """Script in `peers/`; empty is this package."""
    environment: str = ""
    """Folder below the peers' directory whose Python runs the driver."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Added to the job."""

    @property
    def peer(self) -> str:
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    about: str
    kind: Kind
    job: Mapping[str, Any]
    sides: tuple[Side, ...]
    warmup: int = 1
    steps: int = 3
    """Timed ones, in every process."""


OURS = Side("postgrad", "")
TRL_GRPO = Side("trl grpo", "trl_grpo", "trl")
TRANSFORMERS = Side("transformers", "transformers_generate", "trl")
VLLM = Side("vllm", "vllm_generate", "vllm")


def workloads(rows: Sequence[Sequence[Mapping[str, str]]]) -> list[Workload]:
    """All of them; `rows` are the conversations for SFT, each a list of {"role", "content"}."""
    rl = [_rl_workload(long=long, lora_rank=rank) for long in (False, True) for rank in (0, 16)]
    decode = [_decode_workload(f"decode-{n}", f"{n} requests of 64 tokens", [64] * n) for n in (8, 32, 64)]
    ragged = _decode_workload("decode-ragged", "64 requests of 8 to 128 tokens", ragged_lengths(64, 8, 128))
    sft = Workload(
        "sft",
        "ragged conversations, 8 a step, at most 1,024 tokens each, every token trained",
        "sft",
        {
            "rows": [list(row) for row in rows],
            "batch_size": 8,
            "max_length": 1024,
            "learning_rate": 1e-5,
            "batch_tokens": 2048,
        },
        (
            OURS,
            Side("trl sft", "trl_sft", "trl", {"packing": False}),
            Side("trl sft packed", "trl_sft", "trl", {"packing": True}),
        ),
    )
    return [sft, *rl, *decode, ragged]


def ragged_lengths(num: int, low: int, high: int) -> list[int]:
    """Evenly spread from `low` to `high`, in an order that no batching profits from."""
    spread = [low + round(i * (high - low) / max(1, num - 1)) for i in range(num)]
    # Steps of the golden section come round evenly.
    stride = next(s for s in range(round(0.618 * num), 2 * num) if math.gcd(s, num) == 1)
    return [spread[i * stride % num] for i in range(num)]


def _rl_workload(*, long: bool, lora_rank: int) -> Workload:
    warmup, steps = 1, 1 if long else 3
    name = ("rl-long-" if long else "rl-") + ("lora" if lora_rank else "full")
    about = f"4 prompts{f' of {LONG_WORDS} words' if long else ''} x 8 answers of at most 32 tokens, " + (
        f"LoRA of rank {lora_rank}" if lora_rank else "all weights"
    )
    asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(PROMPTS_PER_STEP * (warmup + steps))]
    # The warm-up is a step with short prompts everywhere: it loads code and starts threads, and that is soon done.
    first = PROMPTS_PER_STEP * warmup
    prompts = asked[:first] + [_lengthened(q) if long else q for q in asked[first:]]
    job = {
        **_RL,
        "prompts": prompts,
        "prompts_per_step": PROMPTS_PER_STEP,
        "lora_rank": lora_rank,
        # One group in memory at a time, and of a long one no activations but the layers' inputs.
        "batch_tokens": 512,
        "gradient_checkpointing": long,
    }
    sides = (
        Side("postgrad grpo", "", options={"algorithm": "grpo"}),
        Side("postgrad ppo", "", options={"algorithm": "ppo"}),
        TRL_GRPO,
    )
    return Workload(name, about, "rl", job, sides, warmup, steps)


def _decode_workload(name: str, about: str, lengths: Sequence[int]) -> Workload:
    job = {"prompt": DECODE_QUESTION, "lengths": list(lengths)}
    return Workload(name, f"{about}, one shared prompt", "decode", job, (OURS, TRANSFORMERS, VLLM), steps=2)


def _lengthened(question: str) -> str:
    return "Read this first. " + _FILLER * (LONG_WORDS // len(_FILLER.split())) + question
