"""Proximal policy optimisation with a learned critic (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

The recipe for language models is Ziegler et al. 2019 (arXiv:1909.08593): the score at the last token, a KL
penalty to the reference at every token, a value head on the policy's trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from postgrad.data.batch import Batch
from postgrad.ops.advantages import gae
from postgrad.ops.losses import policy_loss, value_loss
from postgrad.ops.masked import masked_whiten
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group


@dataclass(frozen=True)
class PPO:
    """Defaults follow Huang et al. 2024 (arXiv:2403.17031) but for `missing_end_penalty`, its no-EOS trick."""

    clip_eps: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    kl_coef: float = 0.05
    gamma: float = 1.0
    gae_lambda: float = 0.95
    missing_end_penalty: float = 1.0
    """Taken from the reward of an answer that the token limit cut off."""

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Every group in which somebody has an opinion."""
        return [g for g in groups if all(t.reward is not None for t in g.trajectories)]

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and reference logprobs, values, advantages and returns."""
        old = policy.evaluate(batch)
        ref = reference.evaluate(batch)
        assert old.values is not None, "PPO needs a policy with a value head"
        assert batch.rewards is not None
        assert batch.finished is not None
        log_ratio = (old.logprobs - ref.logprobs) * batch.loss_mask
        rewards_BT = -self.kl_coef * log_ratio  # k1, Schulman 2020, "Approximating KL divergence"
        final = batch.rewards - self.missing_end_penalty * (~batch.finished)
        rows = torch.arange(len(batch))
        rewards_BT[rows, batch.lengths - 1] += final
        advantages, returns = gae(rewards_BT, old.values, batch.loss_mask, gamma=self.gamma, lam=self.gae_lambda)
        prepared = batch.with_(
            old_logprobs=old.logprobs,
            ref_logprobs=ref.logprobs,
            old_values=old.values,
            advantages=masked_whiten(advantages, batch.loss_mask, shift_mean=True),
            returns=returns,
        )
        return prepared, prepare_metrics(prepared, old) | {"value/explained_variance": _explained(prepared)}

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Clipped surrogate plus `value_coef` times the clipped value error, summed over tokens."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        assert output.values is not None
        assert batch.old_values is not None
        assert batch.returns is not None
        total, count, metrics = policy_loss(
            output.logprobs, batch.old_logprobs, batch.advantages, batch.loss_mask, clip_eps=self.clip_eps
        )
        value_total, _, value_metrics = value_loss(
            output.values, batch.old_values, batch.returns, batch.loss_mask, value_clip=self.value_clip
        )
        return Loss(total + self.value_coef * value_total, count, metrics | value_metrics)


def prepare_metrics(batch: Batch, old: PolicyOutput) -> dict[str, float]:
    """How far the policy stands from the reference, how sure it is, and whether the engine said the same."""
    assert batch.ref_logprobs is not None
    assert batch.sampler_logprobs is not None
    mask = batch.loss_mask
    log_ratio = (old.logprobs - batch.ref_logprobs) * mask
    return {
        "policy/kl_ref": float(log_ratio.sum() / len(batch)),
        "policy/entropy": float((old.entropy * mask).sum() / mask.sum()),
        "sampler/logprob_diff_max": float(((old.logprobs - batch.sampler_logprobs) * mask).abs().max()),
    }


def _explained(batch: Batch) -> float:
    assert batch.returns is not None
    assert batch.old_values is not None
    returns, values = batch.returns[batch.loss_mask], batch.old_values[batch.loss_mask]
    return float(1 - (returns - values).var() / returns.var().clamp_min(1e-8))
