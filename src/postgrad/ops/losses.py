"""Losses as sums. The caller divides by a global count, so splitting a batch never changes a gradient.

Every function returns `(total, count, metrics)`: a scalar to differentiate, the number (or weight) of the units summed,
and detached sums over the same units. Whatever stands where a mask is False, NaN included, has no influence.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postgrad.ops.kl import kl_estimate
from postgrad.ops.masked import Reduction, masked_sum, reduced_sum

LossSum = tuple[Tensor, float, dict[str, float]]
PolicyLossKind = Literal["ppo", "gspo", "cispo", "reinforce"]
DpoKind = Literal["sigmoid", "ipo"]


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
    kind: PolicyLossKind = "ppo",
    reduction: Reduction | None = None,
) -> LossSum:
    """Policy gradient with the ratio r = exp(logprobs - old_logprobs); all tensors are [..., T].

    ppo: max(-r A, -clip(r, 1 - clip_eps, 1 + clip_eps_high) A), arXiv 1707.06347 eq. 7; where A < 0, `dual_clip` > 1
    bounds it by -dual_clip A (arXiv 1912.09729 eq. 5).
    gspo: the same with a sequence's geometric mean ratio and its mean advantage (arXiv 2507.18071 eq. 5, 7).
    cispo: -sg(min(r, 1 + clip_eps_high)) A logprobs, without lower bound (arXiv 2506.13585 eq. 4).
    reinforce: -A logprobs; right only while the policy is the one that sampled.

    `clip_eps_high` defaults to `clip_eps`, `reduction` to "token", but for gspo, which has one ratio a sequence and no
    other reduction than "sequence". Metrics are sums over what is counted: tokens, or a sequence's mean over its
    tokens. "policy/clip_frac" sums the tokens whose gradient a bound removes (cispo: truncates), "policy/kl_old" the
    k3 estimate of KL(old || new) in nats per token.

    Raises:
        ValueError: unknown kind.
    """
    assert dual_clip is None or dual_clip > 1, "a dual clip of one or less would bound the on-policy loss"
    assert kind != "gspo" or reduction in (None, "sequence"), "gspo has one ratio a sequence"
    high = clip_eps if clip_eps_high is None else clip_eps_high
    reduction = reduction or ("sequence" if kind == "gspo" else "token")
    logprobs = logprobs.masked_fill(~mask, 0)
    old_logprobs = old_logprobs.masked_fill(~mask, 0)
    advantages = advantages.masked_fill(~mask, 0)
    log_ratio = logprobs - old_logprobs
    kl_old = kl_estimate(old_logprobs, logprobs.detach(), "k3")
    if kind == "gspo":
        num_tokens = mask.sum(-1, keepdim=True).clamp_min(1)
        log_ratio, advantages = ((x.sum(-1, keepdim=True) / num_tokens).expand_as(x) for x in (log_ratio, advantages))
    ratio = log_ratio.exp()
    if kind in ("ppo", "gspo"):
        loss, clipped = _clipped_surrogate(ratio, advantages, 1 - clip_eps, 1 + high, dual_clip)
    elif kind == "cispo":
        loss = -ratio.detach().clamp_max(1 + high) * advantages * logprobs
        clipped = ratio > 1 + high
    elif kind == "reinforce":
        loss = -advantages * logprobs
        clipped = torch.zeros_like(mask)
    else:
        raise ValueError(f"policy loss {kind!r} is not one of ppo, gspo, cispo, reinforce")
    total, count = reduced_sum(loss, mask, reduction)
    per_unit: Reduction = "token" if reduction == "token" else "sequence"
    quantities = {"policy/clip_frac": clipped.to(ratio.dtype), "policy/kl_old": kl_old, "policy/ratio_mean": ratio}
    metrics = {key: reduced_sum(x, mask, per_unit)[0] for key, x in quantities.items()}
    return total, count, _floats({"loss/policy": total} | metrics)


def _clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """The loss, and where it is a bound that does not depend on the policy."""
    free = -ratio * advantages
    bounded = -ratio.clamp(low, high) * advantages
    loss, clipped = torch.maximum(free, bounded), bounded > free
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        above = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(above, ceiling, loss), clipped | above
    return loss, clipped


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, value_clip: float | None
) -> LossSum:
    """Half the larger of (V - R)^2 and (clip(V, V_old - c, V_old + c) - R)^2, over the selected tokens.

    Source: the value clipping of PPO's reference implementation (openai/baselines, ppo2). `value_clip` is in units of
    return; None leaves the plain squared error. "value/clip_frac" sums the tokens whose gradient the clip removes.
    """
    values, old_values, returns = (x.masked_fill(~mask, 0) for x in (values, old_values, returns))
    free = (values - returns).square()
    loss, clipped = free, torch.zeros_like(mask)
    if value_clip is not None:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        bounded = (near - returns).square()
        loss, clipped = torch.maximum(free, bounded), bounded > free
    total = loss.sum() / 2
    metrics = {"loss/value": total, "value/clip_frac": (clipped & mask).sum()}
    return total, int(mask.sum()), _floats(metrics)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    weight: Tensor | None = None,
    tie: Tensor | None = None,
    label: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> LossSum:
    """-log sigmoid(chosen - rejected - margin), one score a pair (arXiv 2203.02155 eq. 1; margin: 2307.09288 eq. 2).

    `label` is the chance that the chosen answer is the better one, one by default, and `label_smoothing` the share of
    labels taken to be flipped (cDPO's, Mitchell 2023, for rewards): the loss is then the cross-entropy with that
    chance. Where `tie` is True it is 1/2, without margin. The units are the pairs, each counting `weight` (one by
    default). Accuracy is asked of decided pairs alone and so needs its own denominator: "reward/correct" /
    "reward/decided"; equal scores are half correct.
    """
    gap = chosen - rejected
    weight = torch.ones_like(gap) if weight is None else weight
    tie = torch.zeros_like(gap, dtype=torch.bool) if tie is None else tie
    label = torch.ones_like(gap) if label is None else label
    chance = torch.where(tie, 0.5, label * (1 - label_smoothing) + (1 - label) * label_smoothing)
    logit = gap if margin is None else gap - margin.masked_fill(tie, 0)
    total = -(weight * (chance * logsigmoid(logit) + (1 - chance) * logsigmoid(-logit))).sum()
    correct = (torch.sign(gap) + 1) / 2
    metrics = {
        "loss/bradley_terry": total,
        "reward/correct": (weight * correct).masked_fill(tie, 0).sum(),
        "reward/decided": weight.masked_fill(tie, 0).sum(),
    }
    return total, float(weight.sum()), _floats(metrics)


def step_loss(scores: Tensor, good: Tensor, weight: Tensor) -> LossSum:
    """Binary cross-entropy of sigmoid(score) with whether each step is good (arXiv 2305.20050, section 2.6).

    The units are the steps, each counting `weight`. "reward/correct" sums those on whose side of 0 their score lies.
    """
    total = -(weight * (good * logsigmoid(scores) + (1 - good) * logsigmoid(-scores))).sum()
    correct = (torch.sign(scores) * (2 * good - 1) + 1) / 2
    metrics = {"loss/steps": total, "reward/correct": (weight * correct).sum(), "reward/decided": weight.sum()}
    return total, float(weight.sum()), _floats(metrics)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    kind: DpoKind = "sigmoid",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> LossSum:
    """Direct preference optimisation over pairs; arguments are logprobs of whole answers, d their log-ratio's gap.

    sigmoid: -log sigmoid(beta d), arXiv 2305.18290 eq. 7; `label_smoothing` is the share of labels taken to be
    flipped. ipo: (d - 1 / (2 beta))^2, arXiv 2310.12036 eq. 17. An answer's reward is beta times its log-ratio.

    Raises:
        ValueError: unknown kind, or label smoothing with ipo, which has no use for it.
    """
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    gap = chosen - rejected
    if kind == "sigmoid":
        right, wrong = -logsigmoid(beta * gap), -logsigmoid(-beta * gap)
        loss = (1 - label_smoothing) * right + label_smoothing * wrong
    elif kind == "ipo":
        if label_smoothing:
            raise ValueError("label_smoothing belongs to the sigmoid loss; ipo takes 0")
        loss = (gap - 1 / (2 * beta)).square()
    else:
        raise ValueError(f"preference loss {kind!r} is not one of sigmoid, ipo")
    return _over_pairs(loss, beta * chosen, beta * rejected, weight)


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float, weight: Tensor | None = None) -> LossSum:
    """-log sigmoid(beta (chosen - rejected) - gamma), arXiv 2405.14734 eq. 6; arguments are mean logprobs of a token.

    An answer's reward is beta times its mean logprob.
    """
    loss = -logsigmoid(beta * (chosen - rejected) - gamma)
    return _over_pairs(loss, beta * chosen, beta * rejected, weight)


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, weight: Tensor | None = None) -> LossSum:
    """-chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)), arXiv 2403.07691 eq. 3, 4, 6 and 7.

    Arguments are mean logprobs of a token; odds are P / (1 - P) of their exponential. `beta` is the paper's lambda.
    An answer's reward is beta times its log odds.
    """
    chosen_odds, rejected_odds = _log_odds(chosen), _log_odds(rejected)
    loss = -chosen - beta * logsigmoid(chosen_odds - rejected_odds)
    return _over_pairs(loss, beta * chosen_odds, beta * rejected_odds, weight)


def _log_odds(logp: Tensor) -> Tensor:
    """Log p - log(1 - p); a probability that rounds to one is held just below it."""
    logp = logp.clamp_max(-torch.finfo(logp.dtype).eps)
    return logp - torch.where(logp > -math.log(2), (-torch.expm1(logp)).log(), torch.log1p(-logp.exp()))


def _over_pairs(loss: Tensor, chosen_reward: Tensor, rejected_reward: Tensor, weight: Tensor | None) -> LossSum:
    """Sum over pairs, each counting `weight` (one by default); equal rewards are half accurate."""
    weight = torch.ones_like(loss) if weight is None else weight
    total, margin = (weight * loss).sum(), chosen_reward - rejected_reward
    metrics = {
        "loss/preference": total,
        "preference/accuracy": (weight * (torch.sign(margin) + 1) / 2).sum(),
        "preference/margin": (weight * margin).sum(),
        "preference/chosen_reward": (weight * chosen_reward).sum(),
        "preference/rejected_reward": (weight * rejected_reward).sum(),
    }
    return total, float(weight.sum()), _floats(metrics)


def kto_loss(
    log_ratio: Tensor,
    good: Tensor,
    *,
    kl: float,
    beta: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
    weight: Tensor | None = None,
) -> LossSum:
    """1 - sigmoid(+-beta (log_ratio - kl)), plus where `good`, one term an answer (arXiv 2402.01306 section 4).

    `log_ratio` is of whole answers, policy to reference; `kl` >= 0 is the reference point of the whole step, in nats an
    answer, without gradient; `good_weight` and `bad_weight` are the paper's lambda_D and lambda_U, which are no part
    of the count. An answer on the right side of the reference point is accurate. Rewards, beta log_ratio, are summed
    apart for good and bad answers, beside the weights "preference/good" and "preference/bad" to divide them by.
    """
    weight = torch.ones_like(log_ratio) if weight is None else weight
    reward = beta * log_ratio
    gain = torch.where(good, reward - beta * kl, beta * kl - reward)
    lam = torch.where(good, reward.new_tensor(good_weight), reward.new_tensor(bad_weight))
    total = (weight * lam * torch.sigmoid(-gain)).sum()
    metrics = {
        "loss/preference": total,
        "preference/accuracy": (weight * (torch.sign(gain) + 1) / 2).sum(),
        "preference/chosen_reward": (weight * reward)[good].sum(),
        "preference/rejected_reward": (weight * reward)[~good].sum(),
        "preference/good": weight[good].sum(),
        "preference/bad": weight[~good].sum(),
    }
    return total, float(weight.sum()), _floats(metrics)


def nll_loss(logprobs: Tensor, mask: Tensor, weight: Tensor | None = None) -> LossSum:
    """Negative log likelihood of the selected tokens, in nats; with `weight` each token counts its weight."""
    if weight is None:
        total, count = -masked_sum(logprobs, mask), float(mask.sum())
    else:
        total = -(logprobs.masked_fill(~mask, 0) * weight.masked_fill(~mask, 0)).sum()
        count = float(weight.masked_fill(~mask, 0).sum())
    return total, count, _floats({"loss/nll": total})


def _floats(sums: dict[str, Tensor]) -> dict[str, float]:
    """One transfer from the device for all of them."""
    return dict(zip(sums, torch.stack([x.detach().double() for x in sums.values()]).tolist(), strict=True))
