"""What the algorithms share: which answers count, rewards of answers and of tokens, the correction for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from postgrad.data.batch import Batch
from postgrad.errors import TrainingDiverged
from postgrad.ops.advantages import sampler_weights
from postgrad.protocols import PolicyOutput
from postgrad.types import Group

DECILES = 10


@dataclass(frozen=True)
class Correction:
    """For engines whose probabilities are not the trainer's: rounding, another kernel, older weights.

    Rounding to bfloat16 moves a token by about 0.01 nats, so an answer whose tokens differ by 0.22 on average was
    sampled by another policy. verl and OpenRLHF leave such a correction off; TRL drops answers by the product of their
    ratios, which long answers leave by length alone.
    """

    cap: float = 2.0
    low: float = 0.8
    high: float = 1.25

    def apply(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Weigh the advantages and leave out the answers beyond the bounds.

        A weight on an advantage is a weight on its loss: clipped surrogates are positively homogeneous in it.

        Raises:
            TrainingDiverged: no answer is left.
        """
        assert batch.old_logprobs is not None
        assert batch.sampler_logprobs is not None
        assert batch.advantages is not None
        mask = batch.loss_mask
        weights, kept = sampler_weights(
            batch.old_logprobs, batch.sampler_logprobs, mask, cap=self.cap, low=self.low, high=self.high
        )
        if not kept.any():
            raise TrainingDiverged(
                f"the probabilities of all {len(batch)} answers differ by more than a factor of {self.high:g} a token "
                "between engine and trainer; check that both have the same weights, temperature and template"
            )
        metrics = {
            "sampler/ratio_mean": float(weights.sum() / mask.sum()),
            "sampler/truncated_frac": float((weights >= self.cap).sum() / mask.sum()),
            "sampler/dropped_frac": float((~kept).float().mean()),
        }
        if not kept.all():
            metrics |= _dropped_by_length(kept, mask.sum(1))
        corrected = batch.with_(advantages=batch.advantages * weights)
        return (corrected if kept.all() else corrected.rows(kept.nonzero()[:, 0])), metrics


CORRECTION = Correction()


def _dropped_by_length(kept: Tensor, lengths: Tensor) -> dict[str, float]:
    """Share of dropped answers among the shortest tenth (1) to the longest (10)."""
    dropped = (~kept)[lengths.argsort(stable=True)].float()
    return {
        f"sampler/dropped_frac_{i}": float(part.mean())
        for i, part in enumerate(dropped.tensor_split(DECILES), start=1)
        if len(part)
    }


def scored(groups: Sequence[Group]) -> list[Group]:
    """The groups without the answers that nobody has an opinion on, which is not an opinion of zero."""
    kept = [replace(g, trajectories=tuple(t for t in g.trajectories if t.reward is not None)) for g in groups]
    return [g for g in kept if g.trajectories]


def final_rewards(batch: Batch, missing_end_penalty: float) -> Tensor:
    """[B] the graders' reward, less a penalty for answers that the token limit cut off."""
    assert batch.rewards is not None
    assert batch.finished is not None
    assert bool(torch.isfinite(batch.rewards).all()), "a reward that is not finite is an abstention, not a number"
    return batch.rewards - missing_end_penalty * (~batch.finished)


def token_rewards(batch: Batch, final: Tensor, kl_coef: float) -> Tensor:
    """[B, T] minus `kl_coef` times k1 at every token (Schulman 2020), and `final` on top at an answer's last.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), eq. 2.
    """
    mask = batch.loss_mask
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    rewards = -kl_coef * log_ratio_to_reference(batch)
    rewards[torch.arange(len(batch)), last] += final
    return rewards


def log_ratio_to_reference(batch: Batch) -> Tensor:
    """[B, T] old minus reference logprob, zero where masked."""
    assert batch.old_logprobs is not None
    assert batch.ref_logprobs is not None
    return (batch.old_logprobs - batch.ref_logprobs) * batch.loss_mask


def policy_metrics(batch: Batch, old: PolicyOutput) -> dict[str, float]:
    """How far the policy stands from the reference, how sure it is, and whether the engine said the same."""
    assert batch.sampler_logprobs is not None
    mask = batch.loss_mask
    return {
        "policy/kl_ref": float(log_ratio_to_reference(batch).sum() / len(batch)),
        "policy/entropy": float((old.entropy * mask).sum() / mask.sum()),
        "sampler/logprob_diff_max": float(((old.logprobs - batch.sampler_logprobs) * mask).abs().max()),
    }
