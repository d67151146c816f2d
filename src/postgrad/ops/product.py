"""The matrix product behind every linear layer, forward and backward.

Shape suffixes: M rows, I inner size, O outer size, R rank of an adapter.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CPUINFO = Path("/proc/cpuinfo")
_X86 = platform.machine() in ("x86_64", "AMD64")
_AMD = "AuthenticAMD" in (_CPUINFO.read_text() if _CPUINFO.exists() else platform.processor())
# torch's own float32 product is MKL's, which leaves half of an AMD core idle: 206 against oneDNN's 472 GFLOP/s at
# 2048^3 on two Zen 5 threads, but 387 against 361 on two Sapphire Rapids cores. Both ship with torch, and from a dozen
# rows on a row's bits do not depend on the other rows.
_ONEDNN = _X86 and _AMD and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
PACKED_ROWS = 64
"""Rows that packed weights are laid out for; other numbers of rows use them too."""
_TRIED = 4096
"""Rows of a weight that are enough to see whether the library's packed products are right."""


def product(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Rows times transposed weight plus bias, [M, O], without a gradient of its own."""
    if _uses_onednn(x_MI) and weight_OI.dtype == torch.float32 and x_MI.numel():
        if len(x_MI) == 1:  # alone it would have other bits than among others
            return product(x_MI.repeat(2, 1), weight_OI, bias_O)[:1]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, weight_OI, bias_O, "none", [], "")
        return out
    return torch.nn.functional.linear(x_MI, weight_OI, bias_O)


def add_product(sum_MO: Tensor, x_MI: Tensor, weight_OI: Tensor) -> None:
    """Add `product` to what is there."""
    if _uses_onednn(x_MI):
        sum_MO += product(x_MI, weight_OI)
    else:
        sum_MO.addmm_(x_MI, weight_OI.T)


def widened(x: Tensor) -> Tensor:
    """What is summed in where logprobs are read and sums may differ in order: float64 for float32 on the CPU.

    Attention's sums are made up of other pieces when a token is sampled than when its answer is read, and those of thin
    factors depend on the number of rows. In float32 that is 1e-7 a layer, which grows to 3e-5 nats through thirty;
    rounded from float64 nearly all are the same bits.
    """
    return x.double() if x.dtype == torch.float32 and x.device.type == "cpu" else x


def _uses_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


class PackedWeight:
    """A copy of a weight in the order in which the library's inner loop reads it, for products with few rows.

    The bits are those of `product`.

    Args:
        weight_OI: one that `can_pack`; later changes to it are not seen.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI
        self._version = weight_OI._version
        self._packed = _pack(weight_OI)
        self._same_alone = _same_alone(min(len(weight_OI), _TRIED), weight_OI.shape[1])

    def __call__(self, x_MI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        if len(x_MI) == 1 and not self._same_alone:
            return self(x_MI.repeat(2, 1), bias_O)[:1]
        return _packed_product(x_MI, self._packed, self._weight_OI, bias_O)

    def is_of(self, weight_OI: Tensor) -> bool:
        """Whether it is the copy of this parameter as it is now."""
        return self._weight_OI is weight_OI and self._version == weight_OI._version


def can_pack(weight_OI: Tensor) -> bool:
    """Whether the library has another order for a weight of this kind, and multiplies by it rightly."""
    plain = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.float32 and weight_OI.is_contiguous()
    return plain and _packs_well(min(len(weight_OI), _TRIED), weight_OI.shape[1])


def _pack(weight_OI: Tensor) -> Tensor:
    library = torch.ops.mkldnn._reorder_linear_weight if _ONEDNN else torch.ops.mkl._mkl_reorder_linear_weight
    packed: Tensor = library(weight_OI.detach(), PACKED_ROWS)
    return packed


def _packed_product(x_MI: Tensor, packed: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    out: Tensor
    if _ONEDNN:
        out = torch.ops.mkldnn._linear_pointwise(x_MI, packed, bias_O, "none", [], "")
    else:
        out = torch.ops.mkl._mkl_linear(x_MI, packed, weight_OI, bias_O, len(x_MI))
    return out


@functools.cache
def _packs_well(outer: int, inner: int) -> bool:
    """Whether packed products exist and are right for any number of rows, which no library promises."""
    if not (_ONEDNN or (_X86 and torch.backends.mkl.is_available())):  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outer, inner, generator=generator)
    packed = _pack(weight_OI)
    for rows in (1, 12, 33, PACKED_ROWS, 200):
        x_MI = torch.randn(rows, inner, generator=generator)
        found = _packed_product(x_MI, packed, weight_OI, None)
        if not torch.allclose(found, product(x_MI, weight_OI), rtol=1e-4, atol=1e-4 * inner**0.5):
            return False
    return True


@functools.cache
def _same_alone(outer: int, inner: int) -> bool:
    """Whether one row's packed product has the bits that it has among others: not with 1536 terms on AMD's Zen 4."""
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_MI = torch.randn(outer, inner, generator=generator), torch.randn(2, inner, generator=generator)
    packed = _pack(weight_OI)
    alone, among = (_packed_product(x_MI[:rows], packed, weight_OI, None)[0] for rows in (1, 2))
    return torch.equal(alone, among)


class Product(torch.autograd.Function):
    """`product` with its gradient; weights that are not trained cost no product of their own.

    Where a weight has a gradient already, this one is added to it in place, and autograd is handed none to add.
    """

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MI, weight_OI)
        return product(x_MI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MI, weight_OI = ctx.saved_tensors
        grad_weight_OI = None
        if ctx.needs_input_grad[1]:
            if has_gradient(weight_OI):
                add_product(weight_OI.grad, grad_MO.T, x_MI.T)
            else:
                grad_weight_OI = product(grad_MO.T, x_MI.T)
        return (
            product(grad_MO, weight_OI.T) if ctx.needs_input_grad[0] else None,
            grad_weight_OI,
            grad_MO.sum(0) if ctx.needs_input_grad[2] else None,
        )


def has_gradient(weight: Tensor) -> bool:
    """Whether a parameter has a gradient to which more can be added in place."""
    return weight.is_leaf and weight.grad is not None and weight.grad.dtype == weight.dtype


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


def add_adapter(out_MO: Tensor, x_MI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Add scale (x A^T) B^T in place, where logprobs are read."""
    low_MR = torch.mm(widened(x_MI), widened(a_RI).T).to(out_MO.dtype)
    return out_MO.addmm_(low_MR, b_OR.T, alpha=scale)
