"""REINFORCE with a batch's mean as baseline (Williams 1992), in the form of REINFORCE++ (Hu et al. 2025,
arXiv:2501.03262): A_t = whiten(r - beta sum_(i >= t) k1_i), over all tokens of the step.

That is PPO without its critic, with gamma and lambda at one. Siblings are not compared, so one answer a prompt will
do. verl's estimator of that name whitens the same returns; TRL has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from postgrad.data.batch import Batch
from postgrad.methods.credit import CORRECTION, Correction, final_rewards, policy_metrics, scored, token_rewards
from postgrad.ops.advantages import gae
from postgrad.ops.losses import policy_loss
from postgrad.ops.masked import masked_whiten
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group


@dataclass(frozen=True)
class Reinforce:
    """Several updates on one step's samples need the clipped ratio; in the first it is one, and this REINFORCE."""

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    kl_coef: float = 0.05
    missing_end_penalty: float = 1.0
    correction: Correction = CORRECTION

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Every answer that somebody has an opinion on."""
        return scored(groups)

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and reference logprobs and advantages."""
        old = policy.evaluate(batch)
        mask = batch.loss_mask
        batch = batch.with_(old_logprobs=old.logprobs, ref_logprobs=reference.evaluate(batch).logprobs)
        rewards = token_rewards(batch, final_rewards(batch, self.missing_end_penalty), self.kl_coef)
        to_come, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
        metrics = policy_metrics(batch, old) | {"reward/penalised_mean": float((rewards * mask).sum() / len(batch))}
        batch, corrected = self.correction.apply(batch.with_(advantages=masked_whiten(to_come, mask, shift_mean=True)))
        return batch, metrics | corrected

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Clipped surrogate, summed over tokens."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        total, count, metrics = policy_loss(
            output.logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.loss_mask,
            clip_eps=self.clip_eps,
            clip_eps_high=self.clip_eps_high,
        )
        return Loss(total, count, metrics)

    def after(self, metrics: Mapping[str, float]) -> Self:
        return self
