"""Statistics over the entries that a mask selects. Whatever stands elsewhere, NaN included, has no influence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

WHITEN_EPS = 1e-8

Reduction = Literal["token", "sequence"] | int
"""How a loss per token becomes one number.

"token": the mean over all tokens (DAPO, arXiv 2503.14476, eq. 12). "sequence": the mean over sequences of the mean over
their tokens (GRPO, arXiv 2402.03300, eq. 3). An integer L: the sum over tokens, divided by L and by the number of
sequences (Dr. GRPO, arXiv 2503.20783).
"""


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0).sum()


def reduced_sum(x: Tensor, mask: Tensor, reduction: Reduction) -> tuple[Tensor, int]:
    """(sum, count) over [..., T], whose quotient, parts of a batch added up before it is taken, is the reduction.

    The count is that of tokens for "token", else of sequences with a selected token.
    """
    if reduction == "token":
        return masked_sum(x, mask), int(mask.sum())
    num_tokens = mask.sum(-1)
    sums = x.masked_fill(~mask, 0).sum(-1)
    total = sums / num_tokens.clamp_min(1) if reduction == "sequence" else sums / reduction
    return total.sum(), int((num_tokens > 0).sum())


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the selected entries, a scalar; at least one must be selected."""
    count = mask.sum()
    assert count > 0, "a mean needs at least one selected entry"
    return masked_sum(x, mask) / count


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool) -> Tensor:
    """Scale the selected entries to variance one (Bessel); with `shift_mean` to mean zero, else the mean stays.

    A single entry has variance zero. Entries that are not selected become zero.
    """
    mean = masked_mean(x, mask)
    centred = (x - mean).masked_fill(~mask, 0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp_min(1)
    scaled = centred * torch.rsqrt(variance + WHITEN_EPS)
    return scaled if shift_mean else (scaled + mean).masked_fill(~mask, 0)
