"""The next token of every row: one product with the vocabulary, one uniform number a row, no multinomial.

Shape suffixes: B rows, D hidden size, V vocabulary, padded to whole blocks; K blocks of C tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postgrad.ops.logprobs import Unembedding
from postgrad.types import SamplingParams

BLOCK = 256
"""Probabilities are summed by blocks; only the block that the uniform number falls into is looked at closely."""


def next_tokens(
    states_BD: Tensor, unembedding: Unembedding, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Invert each row's cumulative distribution at its uniform number.

    Returns:
        token ids, and their logprobs in the whole distribution at the row's temperature (1 where that is 0).
    """
    device = states_BD.device
    temperatures = torch.tensor([p.temperature or 1.0 for p in params], device=device)
    weights_BV = unembedding.logits(states_BD, temperatures[:, None])
    if padding := -weights_BV.shape[1] % BLOCK:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, padding), value=-torch.inf)
    greedy = [p.temperature == 0 for p in params]
    best_B = weights_BV.argmax(1) if any(greedy) else None
    weights_BV.sub_(weights_BV.amax(1, keepdim=True)).exp_()
    sums_BK = weights_BV.view(len(params), -1, BLOCK).sum(2).double()
    totals_B = sums_BK.sum(1)
    kept_BV = weights_BV
    cut = [row for row, p in enumerate(params) if p.top_p < 1 or p.top_k > 0]
    if cut:
        kept_BV = weights_BV.clone()
        for row in cut:
            kept_BV[row] = _truncated(weights_BV[row], params[row])
        sums_BK = kept_BV.view(len(params), -1, BLOCK).sum(2).double()
    tokens_B = _invert(kept_BV, sums_BK, torch.tensor(uniforms, dtype=torch.float64, device=device))
    if best_B is not None:
        tokens_B = torch.where(torch.tensor(greedy, device=device), best_B, tokens_B)
    chosen_B = weights_BV.gather(1, tokens_B[:, None])[:, 0]
    logprobs: list[float] = (chosen_B.double().log() - totals_B.log()).tolist()
    tokens: list[int] = tokens_B.tolist()
    return tokens, logprobs


def _invert(weights_BV: Tensor, sums_BK: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first token at which the cumulative weight exceeds uniform * total; [B] int64."""
    cumulative_BK = sums_BK.cumsum(1)
    target_B1 = _below(uniforms_B[:, None] * cumulative_BK[:, -1:], cumulative_BK[:, -1:])
    block_B1 = torch.searchsorted(cumulative_BK, target_B1, right=True)
    members_BC = block_B1 * BLOCK + torch.arange(BLOCK, device=weights_BV.device)
    inside_BC = weights_BV.gather(1, members_BC).double().cumsum(1)
    before_B1 = cumulative_BK.gather(1, block_B1) - sums_BK.gather(1, block_B1)
    rest_B1 = _below((target_B1 - before_B1).clamp_min(0), inside_BC[:, -1:])
    return (block_B1 * BLOCK + torch.searchsorted(inside_BC, rest_B1, right=True))[:, 0]


def _below(x: Tensor, bound: Tensor) -> Tensor:
    """Strictly below, or rounding could pick a token of weight zero."""
    return torch.minimum(x, torch.nextafter(bound, torch.zeros_like(bound)))


def _truncated(weights_V: Tensor, params: SamplingParams) -> Tensor:
    """Zero what top-k and nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751) leave out."""
    ordered, index = weights_V.sort(descending=True)
    share_before = (ordered.cumsum(0) - ordered) / ordered.sum()
    drop = share_before >= params.top_p
    if params.top_k > 0:
        drop[params.top_k :] = True
    drop[0] = False
    kept = weights_V.clone()
    kept[index[drop]] = 0
    return kept
