"""Attention over sequences laid end to end, without computing what a mask would throw away.

Shape suffixes: N tokens of all sequences, H query heads, K key and value heads, D head size, L tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postgrad.ops.product import widened

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

SAME_LENGTH = 0.8
"""Pieces at least this share of the longest among them are padded to it and computed together."""
PADDED_FREE = 16
"""Pieces this much shorter than the longest are padded to it however short they are: a call costs more."""


class Spans(NamedTuple):
    """Which of N tokens see which; tokens are numbered along the row they lie in."""

    causal: tuple[tuple[int, int], ...]
    """[start, stop): each token sees itself and those before it in the span. Every token is in one span at most."""
    shared: tuple[tuple[int, int, int, int], ...]
    """[start, stop) of tokens that also see all of [start, stop) of a prefix."""


class Plan(NamedTuple):
    """`Spans` made ready for a device."""

    single: tuple[tuple[int, int], ...]
    padded: tuple[tuple[Tensor, Tensor], ...]
    """(places [pieces * L], valid [pieces, L]) of spans computed together; padding repeats a span's last token."""
    shared: tuple[tuple[int, int, int, int], ...]


def plan_attention(spans: Spans) -> Plan:
    """Put causal spans of similar length together, because each call has a price of its own."""
    ordered = sorted(spans.causal, key=lambda span: span[0] - span[1])
    single: list[tuple[int, int]] = []
    padded: list[tuple[Tensor, Tensor]] = []
    at = 0
    while at < len(ordered):
        longest = ordered[at][1] - ordered[at][0]
        shortest = min(longest * SAME_LENGTH, longest - PADDED_FREE)
        stop = next((i for i in range(at, len(ordered)) if ordered[i][1] - ordered[i][0] < shortest), len(ordered))
        if stop == at + 1:
            single.append(ordered[at])
        else:
            padded.append(_padded(ordered[at:stop], longest))
        at = stop
    return Plan(tuple(single), tuple(padded), spans.shared)


def _padded(spans: Sequence[tuple[int, int]], longest: int) -> tuple[Tensor, Tensor]:
    start = torch.tensor([span[0] for span in spans])[:, None]
    length = torch.tensor([span[1] - span[0] for span in spans])[:, None]
    offset = torch.arange(longest)[None, :]
    return (start + torch.minimum(offset, length - 1)).flatten(), offset < length


def spans_mask(spans: Spans, rows: int, width: int) -> Tensor:
    """The same as a mask for tokens in `rows` rows, [R, 1, L, L] bool; a token of no span sees itself."""
    mask = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
    for start, stop in spans.causal:
        row, at = divmod(start, width)
        end = at + stop - start
        mask[row, at:end, at:end] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
    for start, stop, first, last in spans.shared:
        row, at = divmod(start, width)
        mask[row, at : at + stop - start, first - row * width : last - row * width] = True
    return mask[:, None]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, *, scale: float, softcap: float | None) -> Tensor:
    """Softmax attention from a mask of what is seen, [R, H, L, D] like the queries.

    With a softcap the scores are softcap * tanh(score / softcap) (Gemma 2, arXiv:2408.00118, section 2).
    """
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    rows, heads, length, size = q.shape
    shared = k.shape[1]
    grouped = (q * (scale / softcap)).reshape(rows, shared, heads // shared, length, size)
    scores = softcap * torch.tanh(grouped @ k[:, :, None].transpose(3, 4))
    weights = scores.masked_fill(~seen.unsqueeze(-3), -torch.inf).softmax(-1)
    return (weights @ v[:, :, None]).flatten(1, 2)


def packed_attention(
    q_1HND: Tensor, k_1KND: Tensor, v_1KND: Tensor, plan: Plan, *, scale: float, exact: bool
) -> Tensor:
    """Softmax attention of every token over what its spans let it see, on the CPU; [1, H, N, D] like the queries.

    Each span goes through the flash attention of Dao et al. 2022 (arXiv:2205.14135) by itself. A token that sees two
    pieces, its own span and a shared prefix, gets their outputs weighted by their share of the softmax's denominator;
    given the joint output and denominator, the backward pass of each piece is exact by itself. With `exact` the
    forward pass's sums are `widened`.
    """
    out: Tensor = _PackedAttention.apply(q_1HND, k_1KND, v_1KND, plan, scale, exact)  # type: ignore[no-untyped-call]
    return out


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, exact: bool) -> Tensor:
        # The kernel looks at neither of these.
        assert q.shape[1] % k.shape[1] == 0, "the number of query heads is a multiple of that of key heads"
        given = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
        q, k, v = map(widened, given) if exact else given
        out = torch.zeros_like(q)
        # The kernel states denominators in float32 for bfloat16.
        lse = q.new_zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for start, stop in plan.single:
            piece = slice(start, stop)
            out[:, :, piece], lse[:, :, piece] = _flash(
                q[:, :, piece], k[:, :, piece], v[:, :, piece], 0.0, True, scale=scale
            )
        for places, valid in plan.padded:
            part, part_lse = _flash(*(_gather(x, places, valid) for x in (q, k, v)), 0.0, True, scale=scale)
            _scatter(out, places, valid, part)
            _scatter(lse[..., None], places, valid, part_lse[..., None])
        for start, stop, first, last in plan.shared:
            piece, prefix = slice(start, stop), slice(first, last)
            part, part_lse = _flash(q[:, :, piece], k[:, :, prefix], v[:, :, prefix], 0.0, False, scale=scale)
            joint = torch.logaddexp(lse[:, :, piece], part_lse)
            out[:, :, piece].mul_((lse[:, :, piece] - joint).exp_()[..., None])
            out[:, :, piece].addcmul_(part, (part_lse - joint).exp_()[..., None].to(part.dtype))
            lse[:, :, piece] = joint
        out = out.to(given[0].dtype)
        ctx.save_for_backward(*given, out, lse.to(torch.promote_types(out.dtype, torch.float32)))
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        gq, gk, gv = (torch.zeros_like(x) for x in (q, k, v))
        for start, stop in ctx.plan.single:
            piece = slice(start, stop)
            gq[:, :, piece], gk[:, :, piece], gv[:, :, piece] = _flash_backward(
                *(x[:, :, piece] for x in (grad, q, k, v, out, lse)), 0.0, True, scale=ctx.scale
            )
        for places, valid in ctx.plan.padded:
            given = [_gather(x, places, valid) for x in (grad, q, k, v, out, lse[..., None])]
            given[0].masked_fill_(~valid[:, None, :, None], 0)
            parts = _flash_backward(*given[:5], given[5][..., 0], 0.0, True, scale=ctx.scale)
            for whole, part in zip((gq, gk, gv), parts, strict=True):
                _scatter(whole, places, valid, part)
        for start, stop, first, last in ctx.plan.shared:
            piece, prefix = slice(start, stop), slice(first, last)
            parts = _flash_backward(
                grad[:, :, piece], q[:, :, piece], k[:, :, prefix], v[:, :, prefix], out[:, :, piece],
                lse[:, :, piece], 0.0, False, scale=ctx.scale,
            )  # fmt: skip
            for whole, place, part in zip((gq, gk, gv), (piece, prefix, prefix), parts, strict=True):
                whole[:, :, place] += part
        return gq, gk, gv, None, None, None


def _gather(x_1HND: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    """[pieces, H, L, D]."""
    pieces, length = valid.shape
    return x_1HND[0].transpose(0, 1).index_select(0, places).view(pieces, length, *x_1HND.shape[1::2]).transpose(1, 2)


def _scatter(x_1HND: Tensor, places: Tensor, valid: Tensor, part: Tensor) -> None:
    chosen = valid.flatten()
    x_1HND[0].transpose(0, 1)[places[chosen]] = part.transpose(1, 2).flatten(0, 1)[chosen]
