"""Logprobs and entropies of tokens, straight from hidden states: [N, V] is never in memory, forward or backward.

Shape suffixes: N tokens, D hidden size, V vocabulary, C tokens or words of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from postgrad.ops.product import product

CHUNK = 128
"""Tokens whose logits are in memory together: 25 MB with a vocabulary of 49152."""


def token_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Log softmax(hidden weight^T / temperature) at the targets, and the distribution's entropy, in nats.

    The backward pass computes the logits again, a block of the vocabulary at a time, so that each row of the weight's
    gradient is written once; both results are differentiable in `hidden_ND` and `weight_VD`. Arithmetic is float32,
    or float64 if an input is, also between bfloat16 states and weights.

    Returns:
        logprobs [N] and entropy [N], both float32 (float64).
    """
    assert temperature > 0, "a temperature of zero is a choice of the argmax, not a distribution"
    assert chunk > 0, "a chunk has at least one token"
    logprobs_N, entropy_N = _TokenLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, chunk)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        h_ND = _widened(hidden_ND, weight_VD)
        num = len(targets_N)
        lse_N, logprobs_N, entropy_N = h_ND.new_empty(3, num).unbind()
        for start in range(0, num, chunk):
            part = slice(start, start + chunk)
            logits_CV = wide_product(h_ND[part] / temperature, weight_VD)
            target_C1 = targets_N[part, None]
            target_logit_C1 = logits_CV.gather(1, target_C1)
            logp_CV = logits_CV.log_softmax(1)
            logprob_C1 = logp_CV.gather(1, target_C1)
            lse_N[part] = (target_logit_C1 - logprob_C1)[:, 0]
            logprobs_N[part] = logprob_C1[:, 0]
            p_CV = torch.exp(logp_CV, out=logits_CV)
            # a dot product would sum 49152 terms one after the other and lose two digits; `sum` adds pairwise
            entropy_N[part] = -p_CV.mul_(logp_CV).sum(1)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, lse_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_ND, weight_VD, targets_N, lse_N, entropy_N = ctx.saved_tensors
        h_ND = _widened(hidden_ND, weight_VD)
        gh_N = None if grad_entropy_N is None or not grad_entropy_N.any() else grad_entropy_N
        g_N1 = torch.zeros_like(lse_N)[:, None] if grad_logprobs_N is None else grad_logprobs_N[:, None]
        scaled_ND = h_ND / ctx.temperature
        factor_ND = scaled_ND.to(torch.bfloat16) if weight_VD.dtype == torch.bfloat16 else scaled_ND
        grad_h_ND = torch.zeros_like(h_ND) if ctx.needs_input_grad[0] else None
        grad_w_VD = torch.empty_like(weight_VD, dtype=h_ND.dtype) if ctx.needs_input_grad[1] else None
        # As many logits at a time as in the forward pass.
        width = ctx.chunk * len(weight_VD) // max(ctx.chunk, len(targets_N))
        for start in range(0, len(weight_VD), width):
            block = slice(start, min(start + width, len(weight_VD)))
            grad_NC = wide_product(scaled_ND, weight_VD[block]).sub_(lse_N[:, None])
            if gh_N is not None:
                # d logprob / d logits = 1[target] - p and d entropy / d logits = -p (log p + entropy)
                gh_N1 = gh_N[:, None]
                p_NC = grad_NC.exp()
                torch.addcmul(-g_N1 - gh_N1 * entropy_N[:, None], grad_NC, -gh_N1, out=grad_NC).mul_(p_NC)
            else:
                grad_NC.exp_().mul_(-g_N1)
            here = ((targets_N >= block.start) & (targets_N < block.stop)).nonzero()[:, 0]
            grad_NC[here, targets_N[here] - start] += g_N1[here, 0]
            if grad_h_ND is not None:
                grad_h_ND += wide_product(grad_NC, weight_VD[block].T)
            if grad_w_VD is not None:
                grad_w_VD[block] = wide_product(grad_NC.T, factor_ND.T)
        if grad_h_ND is not None:
            grad_h_ND /= ctx.temperature
        grad_hidden = None if grad_h_ND is None else grad_h_ND.to(hidden_ND.dtype)
        # autograd rounds it to what the weight's gradients are kept in
        return grad_hidden, grad_w_VD, None, None, None


def wide_product(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """`product` in float32 at least: a logit of 20 would be off by up to 0.06 in bfloat16.

    A GPU sums products of bfloat16 numbers in float32 without a float32 copy of the weight, and many times faster.
    """
    if x_MI.device.type == "cuda" and weight_OI.dtype == torch.bfloat16:
        return torch.mm(x_MI.to(torch.bfloat16), weight_OI.T, out_dtype=torch.float32)
    wide_OI = _widened(weight_OI, x_MI)
    return product(x_MI.to(wide_OI.dtype), wide_OI)


def _widened(x: Tensor, other: Tensor) -> Tensor:
    return x.to(torch.promote_types(torch.promote_types(x.dtype, other.dtype), torch.float32))
