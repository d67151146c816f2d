"""Proximal policy optimisation with a learned critic (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

The recipe for language models is Ziegler et al. 2019 (arXiv:1909.08593): the score at the last token, a KL
penalty to the reference at every token, a value head on the policy's trunk. TRL has no PPO since 1.16; verl and
OpenRLHF differ in `value_clip` 0.5 and `gae_lambda` 1, verl in `dual_clip` 3, and both leave KL out or at 0.01.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from postgrad.data.batch import Batch
from postgrad.methods.credit import CORRECTION, Correction, final_rewards, policy_metrics, scored, token_rewards
from postgrad.ops.advantages import gae
from postgrad.ops.kl import next_kl_coef
from postgrad.ops.losses import policy_loss, value_loss
from postgrad.ops.masked import masked_whiten
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group


@dataclass(frozen=True)
class PPO:
    """Defaults follow Huang et al. 2024 (arXiv:2403.17031) but for `missing_end_penalty`, its no-EOS trick."""

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    dual_clip: float | None = None
    """3 is the choice of arXiv:1912.09729."""
    value_clip: float = 0.2
    value_coef: float = 0.1
    kl_coef: float = 0.05
    kl_target: float | None = None
    """Nats an answer to which `kl_coef` is steered; None leaves it fixed."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch's tokens, KL included, to variance one; their mean stays."""
    gamma: float = 1.0
    gae_lambda: float = 0.95
    missing_end_penalty: float = 1.0
    """Taken from the reward of an answer that the token limit cut off."""
    correction: Correction = CORRECTION

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Every answer that somebody has an opinion on."""
        return scored(groups)

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and reference logprobs, values, advantages and returns."""
        old = policy.evaluate(batch)
        assert old.values is not None, "PPO needs a policy with a value head"
        mask = batch.loss_mask
        batch = batch.with_(
            old_logprobs=old.logprobs, ref_logprobs=reference.evaluate(batch).logprobs, old_values=old.values
        )
        rewards = token_rewards(batch, final_rewards(batch, self.missing_end_penalty), self.kl_coef)
        metrics = policy_metrics(batch, old) | {
            "policy/kl_coef": self.kl_coef,
            "reward/penalised_mean": float((rewards * mask).sum() / len(batch)),
        }
        if self.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, old.values, mask, gamma=self.gamma, lam=self.gae_lambda)
        batch = batch.with_(advantages=masked_whiten(advantages, mask, shift_mean=True), returns=returns)
        metrics["value/explained_variance"] = _explained(batch)
        batch, corrected = self.correction.apply(batch)
        return batch, metrics | corrected

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Clipped surrogate plus `value_coef` times the clipped value error, summed over tokens."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        assert output.values is not None
        assert batch.old_values is not None
        assert batch.returns is not None
        total, count, metrics = policy_loss(
            output.logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.loss_mask,
            clip_eps=self.clip_eps,
            clip_eps_high=self.clip_eps_high,
            dual_clip=self.dual_clip,
        )
        value_total, _, value_metrics = value_loss(
            output.values, batch.old_values, batch.returns, batch.loss_mask, value_clip=self.value_clip
        )
        return Loss(total + self.value_coef * value_total, count, metrics | value_metrics)

    def after(self, metrics: Mapping[str, float]) -> Self:
        """The next step's PPO: with `kl_target`, the coefficient that the last step used moves by the KL it found."""
        if self.kl_target is None or "policy/kl_ref" not in metrics:
            return self
        used, found = metrics["policy/kl_coef"], metrics["policy/kl_ref"]
        return replace(self, kl_coef=next_kl_coef(used, found, target=self.kl_target))


def _explained(batch: Batch) -> float:
    assert batch.returns is not None
    assert batch.old_values is not None
    returns, values = batch.returns[batch.loss_mask], batch.old_values[batch.loss_mask]
    return float(1 - (returns - values).var() / returns.var().clamp_min(1e-8))
