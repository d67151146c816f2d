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
