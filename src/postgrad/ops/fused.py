"""What lies between a layer's products, keeping for the backward pass only what it cannot compute again at once.

Shape suffixes: M rows, D hidden size, I size inside the feed-forward layer, O outer size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from postgrad.ops.product import add_product, has_gradient, product

_silu = torch.nn.functional.silu


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation, x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    if torch.is_grad_enabled():
        out: Tensor = _RmsNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
        return out
    return (x * _inverse(x, eps)).mul_(weight_D)


def _inverse(x: Tensor, eps: float) -> Tensor:
    return (x * x).mean(-1, keepdim=True).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse = _inverse(x, eps)
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        normed = x * inverse
        grad_weight_D = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            scaled = grad * weight_D
            along = (scaled * normed).mean(-1, keepdim=True)
            grad_x = scaled.sub_(normed.mul_(along)).mul_(inverse)
        return grad_x, grad_weight_D, None


class GatedProduct(torch.autograd.Function):
    """(silu(gate) * up) weight^T + bias: the end of SwiGLU, Shazeer 2020, arXiv:2002.05202, eq. 6."""

    @staticmethod
    def forward(ctx: Any, gate_MI: Tensor, up_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_MI, up_MI, weight_OI)
        return product(_silu(gate_MI).mul_(up_MI), weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
        gate_MI, up_MI, weight_OI = ctx.saved_tensors
        opened_MI = _silu(gate_MI)
        grad_weight_OI = None
        if ctx.needs_input_grad[2]:
            inside_MI = opened_MI * up_MI
            if has_gradient(weight_OI):
                add_product(weight_OI.grad, grad_MO.T, inside_MI.T)
            else:
                grad_weight_OI = product(grad_MO.T, inside_MI.T)
        grad_inside_MI = product(grad_MO, weight_OI.T)
        grad_up_MI = opened_MI.mul_(grad_inside_MI)
        grad_gate_MI = torch.ops.aten.silu_backward(grad_inside_MI.mul_(up_MI), gate_MI)
        return grad_gate_MI, grad_up_MI, grad_weight_OI, grad_MO.sum(0) if ctx.needs_input_grad[3] else None
