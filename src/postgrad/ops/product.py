"""The matrix product behind every linear layer, forward and backward.

Shape suffixes: M rows, I inner size, O outer size, R rank of an adapter.
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


class AdaptedProduct(torch.autograd.Function):
    """`product` with a frozen weight and a trained low-rank term: x W^T + bias + scale (x A^T) B^T.

    Hu et al. 2021, arXiv:2106.09685, eq. 3. Only x and x A^T are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        # Factors this thin cost less time than oneDNN takes to be called, and `addmm` passes over the output once.
        low_MR = torch.mm(x_MI, a_RI.T)
        ctx.save_for_backward(x_MI, weight_OI, a_RI, b_OR, low_MR)
        ctx.scale = scale
        return product(x_MI, weight_OI, bias_O).addmm_(low_MR, b_OR.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
        x_MI, weight_OI, a_RI, b_OR, low_MR = ctx.saved_tensors
        assert not ctx.needs_input_grad[1], "an adapter's base weight is frozen"
        grad_low_MR = torch.mm(grad_MO, b_OR).mul_(ctx.scale)
        grad_x_MI = None
        if ctx.needs_input_grad[0]:
            grad_x_MI = product(grad_MO, weight_OI.T).addmm_(grad_low_MR, a_RI)
        grad_a_RI = torch.mm(grad_low_MR.T, x_MI)
        grad_b_OR = torch.mm(grad_MO.T, low_MR).mul_(ctx.scale)
        return grad_x_MI, None, None, grad_a_RI, grad_b_OR, None
