"""The section "rl": an algorithm and how it samples and updates."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from postgrad.config.sections import Positive, Schedule, Section, Share

AlgorithmName = Literal["ppo", "reinforce", "grpo", "dr_grpo", "rloo", "dapo", "gspo", "cispo", "maxrl"]


class RlConfig(Section):
    """A key that is None takes the algorithm's own default (docs/algorithms.md)."""

    PPO_ONLY: ClassVar = {
        "kl_target",
        "whiten_rewards",
        "dual_clip",
        "value_clip",
        "value_coef",
        "gamma",
        "gae_lambda",
    }

    algorithm: AlgorithmName = "ppo"
    steps: Positive
    prompts_per_step: Positive = 16
    sampling_attempts: Positive = 1
    """Most times that a step samples `prompts_per_step` prompts, until as many groups carry signal."""
    group_size: Positive = 4
    epochs: Positive = 2
    minibatches: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Schedule = "constant"
    warmup_frac: Share = 0.0
    """Share of the steps over which the rate climbs to its peak."""
    max_tokens: Positive = 40
    length_band: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Tokens an answer between which a steered reward for brevity holds the mean; None leaves length alone."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: float = 1.0
    top_k: int = 0
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    kl_stop: Annotated[float, Field(gt=0)] = 10.0
    """Nats per answer from the reference; the run ends before a step beyond it."""
    kl_old_stop: Annotated[float, Field(gt=0)] | None = None
    """Nats per token from the policy that sampled; a step's remaining updates are left out beyond it."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats per answer to which `kl_coef` is steered; None leaves it where it is."""
    clip_eps: Annotated[float, Field(gt=0)] | None = None
    clip_eps_high: Annotated[float, Field(gt=0)] | None = None
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    value_clip: Annotated[float, Field(gt=0)] | None = None
    value_coef: Annotated[float, Field(ge=0)] | None = None
    whiten_rewards: bool | None = None
    gamma: Share | None = None
    gae_lambda: Share | None = None
    missing_end_penalty: Annotated[float, Field(ge=0)] | None = None

    @field_validator("group_size", "clip_eps", "missing_end_penalty", *sorted(PPO_ONLY))
    @classmethod
    def _fits_the_algorithm(cls, value: float | None, info: ValidationInfo) -> float | None:
        key, algorithm = info.field_name, info.data.get("algorithm")
        if value is None or algorithm is None:
            return value
        if key in cls.PPO_ONLY and algorithm != "ppo":
            raise ValueError(f"belongs to ppo, and 'rl.algorithm' is {algorithm!r}; remove it")
        if key == "group_size" and value < 2 and algorithm not in ("ppo", "reinforce"):
            raise ValueError(f"{algorithm} compares siblings and needs group_size >= 2")
        if key == "clip_eps" and algorithm == "cispo":
            raise ValueError("cispo has no lower bound; set 'rl.clip_eps_high'")
        if key == "missing_end_penalty" and value > 0 and algorithm == "maxrl":
            raise ValueError("maxrl needs rewards >= 0; leave the penalty at 0")
        return value

    @field_validator("length_band")
    @classmethod
    def _a_band(cls, value: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1] <= info.data["max_tokens"]:
            raise ValueError("must rise, and end below 'rl.max_tokens' or at it")
        return value

    @field_validator("top_p", "top_k")
    @classmethod
    def _whole_distribution(cls, value: float, info: ValidationInfo) -> float:
        """Training reads probabilities of the whole distribution, so it must be the one that is sampled from."""
        whole = {"top_p": 1, "top_k": 0}[str(info.field_name)]
        if value != whole:
            raise ValueError(
                f"must be {whole}, or the loss would compare probabilities of the whole distribution with samples of "
                "a part of it"
            )
        return value
