"""Credit: from rewards to advantages. Nothing here is differentiated.

Shape suffixes: B sequences, T tokens, N answers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

GroupKind = Literal["grpo", "dr_grpo", "rloo", "maxrl"]


@torch.no_grad()
def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over the tokens that `mask` selects.

    A masked token, such as a tool's output between two turns, is no step: its reward and value are ignored and the
    tokens around it are neighbours. After the last selected token the value is zero, so truncation counts as an end.

    Returns:
        advantages [B, T] and returns = advantages + values [B, T], both zero where masked.
    """
    next_value = torch.zeros_like(values_BT[:, 0])
    next_advantage = torch.zeros_like(next_value)
    advantages_BT = torch.zeros_like(values_BT)
    for t in reversed(range(values_BT.shape[1])):
        value, mask = values_BT[:, t], mask_BT[:, t]
        delta = rewards_BT[:, t] + gamma * next_value - value
        next_advantage = torch.where(mask, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask, value, next_value)
        advantages_BT[:, t] = next_advantage
    return advantages_BT.masked_fill(~mask_BT, 0), (advantages_BT + values_BT).masked_fill(~mask_BT, 0)


@torch.no_grad()
def group_advantages(rewards_N: Tensor, group_ids_N: Tensor, *, kind: GroupKind, eps: float = 1e-6) -> Tensor:
    """Compare every answer with its siblings; m and s are the mean and the Bessel deviation of its group of G.

    grpo: (r - m) / (s + eps), arXiv 2402.03300. dr_grpo: r - m, arXiv 2503.20783. rloo: r minus the mean of the
    others, that is G / (G - 1) (r - m), arXiv 2402.14740. maxrl: (r - m) / (m + eps), arXiv 2602.02710.
    A group of one has nothing to be compared with: its advantage is zero. Statistics are taken in float64, because
    rounding in the mean of equal float32 rewards, divided by eps, would look like signal.

    Raises:
        ValueError: unknown kind, or a negative reward with maxrl.
    """
    _, group_N = group_ids_N.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    size_G = torch.bincount(group_N).double()
    others_G = (size_G - 1).clamp_min(1)
    reward_N = rewards_N.double()

    def total(x_N: Tensor) -> Tensor:
        return reward_N.new_zeros(len(size_G)).index_add(0, group_N, x_N)

    mean_N = (total(reward_N) / size_G)[group_N]
    centred_N = reward_N - mean_N
    if kind == "grpo":
        deviation_G = (total(centred_N.square()) / others_G).sqrt()
        advantages_N = centred_N / (deviation_G[group_N] + eps)
    elif kind == "dr_grpo":
        advantages_N = centred_N
    elif kind == "rloo":
        advantages_N = centred_N * (size_G / others_G)[group_N]
    elif kind == "maxrl":
        if bool((reward_N < 0).any()):
            raise ValueError("maxrl divides by the mean reward of a group and needs rewards >= 0")
        advantages_N = centred_N / (mean_N + eps)
    else:
        raise ValueError(f"group advantage {kind!r} is not one of grpo, dr_grpo, rloo, maxrl")
    return advantages_N.to(rewards_N.dtype)


@torch.no_grad()
def overlong_penalty(num_tokens_B: Tensor, *, max_tokens: int, buffer: int) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to max_tokens - buffer, then down to -1 at max.

    `num_tokens_B` are lengths of answers, prompts apart.
    """
    assert 0 < buffer <= max_tokens, "the buffer is the last part of the token budget"
    return ((max_tokens - buffer - num_tokens_B) / buffer).clamp(-1, 0)


@torch.no_grad()
def sampler_weights(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """What answers are worth that another distribution sampled than the one that trains.

    With w = exp(old_logprobs - sampler_logprobs): a token weighs min(w, cap), truncated importance sampling
    (Ionides 2008), and an answer stays while the geometric mean of its w is in [low, high], which, unlike their
    product, does not drift with its length. Weights of equal distributions are one.

    Returns:
        weights [B, T], zero where masked, and the answers that stay, [B] bool.
    """
    log_w_BT = (old_logprobs_BT - sampler_logprobs_BT).masked_fill(~mask_BT, 0)
    mean_B = (log_w_BT.sum(1) / mask_BT.sum(1).clamp_min(1)).exp()
    weights_BT = log_w_BT.exp().clamp_max(cap).masked_fill(~mask_BT, 0)
    return weights_BT, (mean_B >= low) & (mean_B <= high)
