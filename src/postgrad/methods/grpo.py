"""Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, eq. 3) and what came of it: siblings are
the baseline, no critic.

One page, and its settings side by side at the end. The KL term is k2 in the loss, whose gradient is that of the
reverse KL; the paper's k3 has another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from postgrad.data.batch import Batch
from postgrad.errors import DataError
from postgrad.methods.credit import (
    CORRECTION,
    Correction,
    final_rewards,
    log_ratio_to_reference,
    policy_metrics,
    scored,
)
from postgrad.ops.advantages import GroupKind, group_advantages, overlong_penalty
from postgrad.ops.kl import kl_estimate
from postgrad.ops.losses import PolicyLossKind, policy_loss
from postgrad.ops.masked import Reduction, reduced_sum
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group, Trajectory


@dataclass(frozen=True)
class GRPO:
    """Defaults are the paper's but for the KL and end penalties; TRL and verl average over tokens, as DAPO does."""

    advantage: GroupKind = "grpo"
    surrogate: PolicyLossKind = "ppo"
    reduction: Literal["token", "sequence", "budget"] = "sequence"
    """"budget" divides an answer's sum by `max_tokens`, whatever its length."""
    max_tokens: int = 0
    """Most tokens of an answer; asked for by "budget" and `overlong_share`."""
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    kl_coef: float = 0.05
    kl_in_reward: bool = False
    """k1, summed over the answer and taken from its reward, in place of k2 in the loss."""
    missing_end_penalty: float = 1.0
    overlong_share: float = 0.0
    """The last part of `max_tokens`, in which an answer loses up to 1, linearly."""
    correction: Correction = CORRECTION

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Groups of siblings that differ in reward; the others carry no signal but the KL penalty's.

        Raises:
            DataError: a negative reward for maxrl, which divides by a group's mean.
        """
        chosen = []
        for group in scored(groups):
            rewards = {self._reward(t) for t in group.trajectories}
            differ = len(rewards) > 1 or (self.kl_in_reward and self.kl_coef > 0)
            if len(group.trajectories) > 1 and differ:
                chosen.append(group)
        return chosen

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and reference logprobs and advantages."""
        old = policy.evaluate(batch)
        batch = batch.with_(old_logprobs=old.logprobs, ref_logprobs=reference.evaluate(batch).logprobs)
        assert batch.group_ids is not None
        rewards = final_rewards(batch, self.missing_end_penalty) + self._overlong(batch.loss_mask.sum(1))
        if self.kl_in_reward:
            rewards = rewards - self.kl_coef * log_ratio_to_reference(batch).sum(1)
        advantages = group_advantages(rewards, batch.group_ids, kind=self.advantage)
        metrics = policy_metrics(batch, old) | {"reward/penalised_mean": float(rewards.mean())}
        batch, corrected = self.correction.apply(batch.with_(advantages=advantages[:, None] * batch.loss_mask))
        return batch, metrics | corrected

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """The surrogate plus `kl_coef` times k2, under one reduction."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        assert batch.ref_logprobs is not None
        reduction: Reduction = self.max_tokens if self.reduction == "budget" else self.reduction
        assert reduction, "the reduction 'budget' needs max_tokens"
        total, count, metrics = policy_loss(
            output.logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.loss_mask,
            clip_eps=self.clip_eps,
            clip_eps_high=self.clip_eps_high,
            kind=self.surrogate,
            reduction=reduction,
        )
        if not self.kl_in_reward:
            kl = kl_estimate(output.logprobs, batch.ref_logprobs, "k2")
            total = total + self.kl_coef * reduced_sum(kl, batch.loss_mask, reduction)[0]
        return Loss(total, count, metrics)

    def after(self, metrics: Mapping[str, float]) -> Self:
        return self

    def _reward(self, t: Trajectory) -> float:
        """As `prepare` will see it, KL apart."""
        assert t.reward is not None
        if self.advantage == "maxrl" and t.reward < 0:
            raise DataError(
                f"trajectory {t.id!r} has the reward {t.reward:g}: maxrl divides by a group's mean reward and needs "
                "rewards >= 0, such as a verifier's 0 or 1; use another 'rl.algorithm' with this grader"
            )
        num_tokens = sum(len(turn.completion.token_ids) for turn in t.turns)
        penalty = self.missing_end_penalty * (t.status == "truncated")
        return t.reward - penalty + float(self._overlong(torch.tensor(num_tokens)))

    def _overlong(self, num_tokens: Tensor) -> Tensor:
        if not self.overlong_share:
            return torch.zeros(num_tokens.shape)
        assert self.max_tokens, "a penalty for the last part of the token budget needs max_tokens"
        buffer = max(1, round(self.overlong_share * self.max_tokens))
        return overlong_penalty(num_tokens, max_tokens=self.max_tokens, buffer=buffer)


DR_GRPO = GRPO(advantage="dr_grpo", reduction="budget")
"""Liu et al. 2025 (arXiv:2503.20783): neither the division by a group's deviation nor that by an answer's length."""

RLOO = GRPO(advantage="rloo", reduction="budget", kl_in_reward=True)
"""Ahmadian et al. 2024 (arXiv:2402.14740): REINFORCE against the mean of the others, an answer's logprobs summed.

TRL clips the ratio of whole answers, a product over tokens; here tokens are clipped, as in PPO.
"""

DAPO = GRPO(reduction="token", clip_eps_high=0.28, missing_end_penalty=0.0, overlong_share=0.2)
"""Yu et al. 2025 (arXiv:2503.14476, eq. 8 to 13): clip-higher, token-mean, a soft penalty in the last fifth of the
budget (4,096 of 20,480 tokens there). Its dynamic sampling is the loop's, which refills what `select` leaves out."""

GSPO = GRPO(surrogate="gspo", clip_eps=3e-4, clip_eps_high=4e-4)
"""Zheng et al. 2025 (arXiv:2507.18071, eq. 5, 7; ranges of its section 5.1): the ratio of whole answers."""

CISPO = GRPO(surrogate="cispo", reduction="token", clip_eps_high=4.0)
"""MiniMax 2025 (arXiv:2506.13585, eq. 4): the ratio is a weight, cut at 5 (ScaleRL, arXiv:2510.13786), and no token
loses its gradient. TRL's `epsilon_high` is that 5 itself."""

MAXRL = GRPO(advantage="maxrl", reduction="token", missing_end_penalty=0.0)
"""Tajwar et al. 2026 (arXiv:2602.02710): divides by a group's mean reward, which climbs the log of the success rate."""
