"""The matrix product behind every linear layer, forward and backward.

Shape suffixes: M rows, I inner size, O outer size.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

# torch's own float32 product is MKL's, which leaves half of an AMD core idle: 206 against 472 GFLOP/s at 2048^3 on two
# Zen 5 threads. oneDNN ships with torch too, and from two rows on a row's bits do not depend on the other rows.
_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")  # type: ignore[no-untyped-call]


def product(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Rows times transposed weight plus bias, [M, O], without a gradient of its own."""
    if _ONEDNN and x_MI.device.type == "cpu" and x_MI.dtype == weight_OI.dtype == torch.float32 and x_MI.numel():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, bias_O, "none", [], "")
        return out
    return torch.nn.functional.linear(x_MI, weight_OI, bias_O)


class Product(torch.autograd.Function):
    """`product` with its gradient; weights that are not trained cost no product of their own."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product(x_MI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MI, weight_OI = ctx.saved_tensors
        return (
            product(grad_MO, weight_OI.T) if ctx.needs_input_grad[0] else None,
            product(grad_MO.T, x_MI.T) if ctx.needs_input_grad[1] else None,
            grad_MO.sum(0) if ctx.needs_input_grad[2] else None,
        )
