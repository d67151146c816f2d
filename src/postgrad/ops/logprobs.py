"""Logprobs and entropies of tokens, straight from hidden states: [N, V] is never in memory, forward or backward.

Shape suffixes: N tokens, D hidden size, V vocabulary, C tokens or words of one chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from postgrad.ops.product import PackedWeight, add_product, has_gradient, product

CHUNK = 128
"""Tokens whose logits are in memory together: 25 MB with a vocabulary of 49152."""

BLOCK = 256
"""Numbers that are summed in float32."""


class Unembedding(NamedTuple):
    """How last hidden states become logits: scale * (hidden weight^T + bias), then softcap * tanh(logits / softcap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    """Largest logit; Gemma 2, arXiv:2408.00118, section 2."""
    packed: PackedWeight | None = None
    """Multiplied in place of the weight."""

    def logits(self, hidden_ND: Tensor, temperature: float | Tensor) -> Tensor:
        """Over the temperature, one number or one a row [N, 1]: [N, V] of float32 or wider, without a gradient."""
        linear = self.bias_V is None and self.softcap is None
        # A pass over the hidden states is cheaper than one over the logits.
        hidden_ND = hidden_ND * (self.scale / temperature if linear else self.scale)
        bias_V = None if self.bias_V is None else self.bias_V * self.scale
        logits_NV = (
            wide_product(hidden_ND, self.weight_VD, bias_V) if self.packed is None else self.packed(hidden_ND, bias_V)
        )
        if self.softcap is not None:
            logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV if linear else logits_NV.div_(temperature)

    def block(self, block: slice) -> Unembedding:
        """A part of the vocabulary."""
        bias_V = None if self.bias_V is None else self.bias_V[block]
        return self._replace(weight_VD=self.weight_VD[block], bias_V=bias_V)


def token_logprobs(
    hidden_ND: Tensor, unembedding: Unembedding, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Log softmax(logits / temperature) at the targets, and the distribution's entropy, in nats.

    The backward pass computes the logits again, a block of the vocabulary at a time, so that each row of the weight's
    gradient is written once; both results are differentiable in the hidden states, the weight and the bias.
    Arithmetic is float32, or float64 if an input is, also between bfloat16 states and weights.

    Returns:
        logprobs [N] and entropy [N], both float32 (float64).
    """
    assert temperature > 0, "a temperature of zero is a choice of the argmax, not a distribution"
    assert chunk > 0, "a chunk has at least one token"
    logprobs_N, entropy_N = _TokenLogprobs.apply(hidden_ND, *unembedding[:4], targets_N, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        targets_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        h_ND = _widened(hidden_ND, weight_VD)
        unembedding = Unembedding(weight_VD, bias_V, scale, softcap)
        num = len(targets_N)
        lse_N, logprobs_N, entropy_N = h_ND.new_empty(3, num).unbind()
        for start in range(0, num, chunk):
            part = slice(start, start + chunk)
            logits_CV = unembedding.logits(h_ND[part], temperature)
            best_C1 = logits_CV.amax(1, keepdim=True)
            target_C1 = logits_CV.gather(1, targets_N[part, None]) - best_C1
            weights_CV = logits_CV.sub_(best_C1).exp()
            total_C = wide_sum(weights_CV)
            lse_N[part] = best_C1[:, 0] + total_C.log()
            logprobs_N[part] = target_C1[:, 0] - total_C.log()
            entropy_N[part] = total_C.log() - wide_sum(weights_CV.mul_(logits_CV)) / total_C
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, lse_N, entropy_N)
        ctx.scale, ctx.softcap, ctx.temperature, ctx.chunk = scale, softcap, temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, lse_N, entropy_N = ctx.saved_tensors
        h_ND = _widened(hidden_ND, weight_VD)
        unembedding = Unembedding(weight_VD, bias_V, ctx.scale, ctx.softcap)
        gh_N = None if grad_entropy_N is None or not grad_entropy_N.any() else grad_entropy_N
        g_N1 = torch.zeros_like(lse_N)[:, None] if grad_logprobs_N is None else grad_logprobs_N[:, None]
        factor = ctx.scale / ctx.temperature
        scaled_ND = h_ND * factor
        rounded_ND = scaled_ND.to(torch.bfloat16) if weight_VD.dtype == torch.bfloat16 else scaled_ND
        grad_h_ND = torch.zeros_like(h_ND) if ctx.needs_input_grad[0] else None
        in_place = h_ND.dtype == weight_VD.dtype and has_gradient(weight_VD)
        grad_w_VD = None
        if ctx.needs_input_grad[1]:
            grad_w_VD = weight_VD.grad if in_place else torch.zeros_like(weight_VD, dtype=h_ND.dtype)
        grad_b_V = h_ND.new_empty(len(weight_VD)) if ctx.needs_input_grad[2] else None
        # As many logits at a time as in the forward pass.
        width = ctx.chunk * len(weight_VD) // max(ctx.chunk, len(targets_N))
        for start in range(0, len(weight_VD), width):
            block = slice(start, min(start + width, len(weight_VD)))
            grad_NC = unembedding.block(block).logits(h_ND, ctx.temperature)
            slope_NC = None if ctx.softcap is None else 1 - (grad_NC * (ctx.temperature / ctx.softcap)) ** 2
            grad_NC.sub_(lse_N[:, None])
            if gh_N is not None:
                # d logprob / d logits = 1[target] - p and d entropy / d logits = -p (log p + entropy)
                gh_N1 = gh_N[:, None]
                p_NC = grad_NC.exp()
                torch.addcmul(-g_N1 - gh_N1 * entropy_N[:, None], grad_NC, -gh_N1, out=grad_NC).mul_(p_NC)
            else:
                grad_NC.exp_().mul_(-g_N1)
            here = ((targets_N >= block.start) & (targets_N < block.stop)).nonzero()[:, 0]
            grad_NC[here, targets_N[here] - start] += g_N1[here, 0]
            if slope_NC is not None:
                grad_NC *= slope_NC
            if grad_h_ND is not None:
                grad_h_ND += wide_product(grad_NC, weight_VD[block].T)
            if grad_w_VD is not None:
                if weight_VD.dtype == h_ND.dtype:
                    add_product(grad_w_VD[block], grad_NC.T, scaled_ND.T)
                else:
                    grad_w_VD[block] = wide_product(grad_NC.T, rounded_ND.T)
            if grad_b_V is not None:
                grad_b_V[block] = grad_NC.sum(0).mul_(factor)
        if grad_h_ND is not None:
            grad_h_ND *= factor
        grad_hidden = None if grad_h_ND is None else grad_h_ND.to(hidden_ND.dtype)
        # autograd rounds this to what the weight's gradients are kept in
        grad_weight = None if in_place else grad_w_VD
        return grad_hidden, grad_weight, grad_b_V, None, None, None, None, None


def wide_sum(x_NV: Tensor) -> Tensor:
    """Sums of rows, [N] float64: by blocks in their own type, and those in float64.

    Summing 49152 numbers in float32 costs a logprob 7e-6 on average.
    """
    whole = x_NV.shape[1] // BLOCK * BLOCK
    blocks_NKC = x_NV[:, :whole].view(len(x_NV), -1, BLOCK)
    return blocks_NKC.sum(2).double().sum(1) + x_NV[:, whole:].double().sum(1)


def wide_product(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`product` in float32 at least: a logit of 20 would be off by up to 0.06 in bfloat16.

    A GPU sums products of bfloat16 numbers in float32 without a float32 copy of the weight, and many times faster.
    """
    if x_MI.device.type == "cuda" and weight_OI.dtype == torch.bfloat16:
        out_MO = torch.mm(x_MI.to(torch.bfloat16), weight_OI.T, out_dtype=torch.float32)
        return out_MO if bias_O is None else out_MO.add_(bias_O)
    wide_OI = _widened(weight_OI, x_MI)
    return product(x_MI.to(wide_OI.dtype), wide_OI, None if bias_O is None else bias_O.to(wide_OI.dtype))


def _widened(x: Tensor, other: Tensor) -> Tensor:
    return x.to(torch.promote_types(torch.promote_types(x.dtype, other.dtype), torch.float32))
