"""Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, eq. 3): siblings are the baseline.

The KL term is k2 in the loss, whose gradient is that of the reverse KL; the paper's k3 has another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from postgrad.data.batch import Batch
from postgrad.methods.ppo import prepare_metrics
from postgrad.ops.advantages import group_advantages
from postgrad.ops.kl import kl_estimate
from postgrad.ops.losses import policy_loss
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group


@dataclass(frozen=True)
class GRPO:
    """Sums over tokens, divided by the global token count (DAPO's reduction, arXiv:2503.14476, eq. 12)."""

    clip_eps: float = 0.2
    kl_coef: float = 0.05
    missing_end_penalty: float = 1.0
    kind: Literal["grpo", "dr_grpo"] = "grpo"
    """"dr_grpo" leaves out the division by the group's deviation (Liu et al. 2025, arXiv:2503.20783)."""

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Groups whose siblings do not all have the same reward, and all have one; the others carry no signal."""
        rewards = [[self._reward(t.reward, t.status) for t in g.trajectories] for g in groups]
        return [g for g, given in zip(groups, rewards, strict=True) if None not in given and len(set(given)) > 1]

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and reference logprobs and advantages."""
        old = policy.evaluate(batch)
        ref = reference.evaluate(batch)
        assert batch.rewards is not None
        assert batch.group_ids is not None
        assert batch.finished is not None
        rewards = batch.rewards - self.missing_end_penalty * (~batch.finished)
        advantages = group_advantages(rewards, batch.group_ids, kind=self.kind)
        prepared = batch.with_(
            old_logprobs=old.logprobs,
            ref_logprobs=ref.logprobs,
            advantages=advantages[:, None] * batch.loss_mask,
        )
        return prepared, prepare_metrics(prepared, old)

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Clipped surrogate plus `kl_coef` times k2, summed over tokens."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        assert batch.ref_logprobs is not None
        total, count, metrics = policy_loss(
            output.logprobs, batch.old_logprobs, batch.advantages, batch.loss_mask, clip_eps=self.clip_eps
        )
        kl = kl_estimate(output.logprobs, batch.ref_logprobs, "k2")
        return Loss(total + self.kl_coef * torch.where(batch.loss_mask, kl, 0.0).sum(), count, metrics)

    def _reward(self, reward: float | None, status: str) -> float | None:
        if reward is None:
            return None
        return reward - self.missing_end_penalty * (status == "truncated")
