"""Statistics over the entries that a mask selects. Whatever stands elsewhere, NaN included, has no influence."""

from __future__ import annotations

import torch
from torch import Tensor

WHITEN_EPS = 1e-8


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0).sum()


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
