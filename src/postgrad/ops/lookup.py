"""Rows of an embedding table, with a gradient that touches no other rows where there is one to add to.

Shape suffixes: V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from postgrad.ops.product import has_gradient


class Lookup(torch.autograd.Function):
    """`weight_VD[ids]`, [..., D]."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(ids, weight_VD)
        return torch.nn.functional.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        ids, weight_VD = ctx.saved_tensors
        added = has_gradient(weight_VD)
        sum_VD = weight_VD.grad if added else torch.zeros_like(weight_VD)
        sum_VD.index_add_(0, ids.flatten(), grad.flatten(0, -2))
        return None, None if added else sum_VD
