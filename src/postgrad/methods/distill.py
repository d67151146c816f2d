"""On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649; Gu et al. 2024, arXiv:2306.08543).

The student samples, and the teacher has an opinion on every token.

What is minimised is the reverse KL, E_(y ~ student) sum_t log student(y_t | y_<t) - log teacher(y_t | y_<t). As an
`Algorithm`, its reference is the teacher, and it needs no grader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch

from postgrad.data.batch import Batch
from postgrad.methods.credit import CORRECTION, Correction, log_ratio_to_reference, policy_metrics
from postgrad.ops.advantages import gae
from postgrad.ops.kl import kl_estimate
from postgrad.ops.losses import policy_loss
from postgrad.ops.masked import masked_sum
from postgrad.protocols import Loss, Policy, PolicyOutput
from postgrad.types import Group


@dataclass(frozen=True)
class Distillation:
    """A token's advantage is teacher minus student logprob (Thinking Machines Lab 2025, "On-Policy Distillation").

    `gamma` adds those of the tokens that follow: at 0 the expected gradient is that of the KL at each state that was
    visited, at 1 that of the KL between whole answers.
    """

    estimate: Literal["sampled", "full"] = "sampled"
    """By the sampled token (k1), as a policy gradient; or exactly, over the whole vocabulary of the states visited."""
    gamma: float = 0.0
    clip_eps: float = 0.2
    correction: Correction = CORRECTION

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Every answer that was given."""
        answered = [replace(g, trajectories=tuple(t for t in g.trajectories if t.turns)) for g in groups]
        return [group for group in answered if group.trajectories]

    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]:
        """Fill old and the teacher's logprobs and advantages."""
        old = policy.evaluate(batch)
        batch = batch.with_(old_logprobs=old.logprobs, ref_logprobs=reference.evaluate(batch).logprobs)
        charge = log_ratio_to_reference(batch)
        to_come, _ = gae(-charge, torch.zeros_like(charge), batch.loss_mask, gamma=self.gamma, lam=1.0)
        metrics = policy_metrics(batch, old)
        # An answer's divergence from a teacher begins high and has no bound to be held to.
        del metrics["policy/kl_ref"]
        metrics["teacher/kl"] = float(charge.sum() / batch.num_loss_tokens)
        batch, corrected = self.correction.apply(batch.with_(advantages=to_come))
        return batch, metrics | corrected

    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Summed over tokens."""
        assert batch.old_logprobs is not None
        assert batch.advantages is not None
        mask = batch.loss_mask
        if self.estimate == "sampled":
            return Loss(
                *policy_loss(output.logprobs, batch.old_logprobs, batch.advantages, mask, clip_eps=self.clip_eps)
            )
        assert output.divergence is not None, "the exact divergence needs a trainer that knows the teacher"
        total = masked_sum(output.divergence, mask)
        moved = masked_sum(kl_estimate(batch.old_logprobs, output.logprobs.detach(), "k3"), mask)
        return Loss(total, int(mask.sum()), {"loss/reverse_kl": total.item(), "policy/kl_old": moved.item()})

    def after(self, metrics: Mapping[str, float]) -> Self:
        return self
