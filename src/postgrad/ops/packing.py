"""Padding to the right, and packing it away again.

B sequences, T longest sequence, R packed rows, L packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Sequences laid end to end, a shared prefix once; a token sees its own sequence's past and nothing else."""

    input_ids_RL: Tensor
    position_ids_RL: Tensor
    attention_mask: Tensor  # [R, 1, L, L] bool
    place_BT: Tensor  # int64: where token t of sequence b sits among the R * L; 0 where padding


def pad(rows: Sequence[Sequence[float]], *, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zeros on the right, and their lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows])
    padded_BT = torch.zeros(len(rows), int(lengths.max()), dtype=dtype)
    for i, row in enumerate(rows):
        padded_BT[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded_BT, lengths


def pack(
    input_ids_BT: Tensor, lengths_B: Tensor, *, prefix_lengths_B: Tensor | None = None, row_tokens: int = 256
) -> Packed:
    """First-fit decreasing into rows of `row_tokens`, or of the longest bundle where that is longer.

    Sequences whose first `prefix_lengths_B` tokens are the same become a bundle that holds these tokens once:
    siblings sampled from one prompt cost that prompt once, and its gradient is the sum over them. Rows are kept
    short because masked attention still pays for the square of a row's length.
    """
    ids = [row[:n] for row, n in zip(input_ids_BT.tolist(), lengths_B.tolist(), strict=True)]
    prefixes = [0] * len(ids) if prefix_lengths_B is None else prefix_lengths_B.tolist()
    rows = _fit(_bundles(ids, prefixes, row_tokens), row_tokens)
    width = max(sum(bundle.size for bundle in row) for row in rows)
    tokens_RL = torch.zeros(len(rows), width, dtype=torch.int64)
    positions_RL = torch.zeros_like(tokens_RL)
    # Token i sees token j <= i of its own sequence, or of its bundle's prefix.
    owner_RL, prefix_RL = torch.full_like(tokens_RL, -1), torch.full_like(tokens_RL, -2)
    bundle_RL = torch.full_like(tokens_RL, -1)
    place_BT = torch.zeros(input_ids_BT.shape, dtype=torch.int64)
    for r, row in enumerate(rows):
        at = 0
        for number, bundle in enumerate(row):
            shared = bundle.prefix
            head = slice(at, at + shared)
            tokens_RL[r, head] = torch.tensor(ids[bundle.members[0]][:shared], dtype=torch.int64)
            positions_RL[r, head] = torch.arange(shared)
            prefix_RL[r, head] = number
            bundle_RL[r, at : at + bundle.size] = number
            start = at + shared
            for i in bundle.members:
                own = slice(start, start + len(ids[i]) - shared)
                tokens_RL[r, own] = torch.tensor(ids[i][shared:], dtype=torch.int64)
                positions_RL[r, own] = torch.arange(shared, len(ids[i]))
                owner_RL[r, own] = i
                place_BT[i, :shared] = torch.arange(at, at + shared) + r * width
                place_BT[i, shared : len(ids[i])] = torch.arange(own.start, own.stop) + r * width
                start = own.stop
            at += bundle.size
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    own_past = (owner_RL[:, :, None] == owner_RL[:, None, :]) & (owner_RL >= 0)[:, None, :]
    shared_past = bundle_RL[:, :, None] == prefix_RL[:, None, :]
    # Padding sees itself alone, or its softmax would have nothing to sum.
    mask = ((own_past | shared_past) & causal) | torch.eye(width, dtype=torch.bool)
    device = input_ids_BT.device
    return Packed(*(x.to(device) for x in (tokens_RL, positions_RL, mask[:, None], place_BT)))


class _Bundle(NamedTuple):
    prefix: int
    members: list[int]
    size: int


def _bundles(ids: list[list[int]], prefixes: list[int], row_tokens: int) -> list[_Bundle]:
    """Sequences by shared prefix; a bundle that has outgrown a row ends once the prefix is well paid for."""
    done: list[_Bundle] = []
    growing: dict[tuple[int, ...], _Bundle] = {}
    for i, (row, prefix) in enumerate(zip(ids, prefixes, strict=True)):
        key = (*row[:prefix], -1 - i) if prefix == 0 else tuple(row[:prefix])
        bundle = growing.get(key)
        if bundle is not None and bundle.size + len(row) - prefix > max(row_tokens, 4 * prefix):
            done.append(bundle)
            bundle = None
        if bundle is None:
            growing[key] = _Bundle(prefix, [i], len(row))
        else:
            growing[key] = _Bundle(prefix, [*bundle.members, i], bundle.size + len(row) - prefix)
    return done + list(growing.values())


def _fit(bundles: list[_Bundle], row_tokens: int) -> list[list[_Bundle]]:
    room = max(row_tokens, max(bundle.size for bundle in bundles))
    rows: list[list[_Bundle]] = []
    free: list[int] = []
    for bundle in sorted(bundles, key=lambda bundle: -bundle.size):
        row = next((r for r, left in enumerate(free) if left >= bundle.size), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
        rows[row].append(bundle)
        free[row] -= bundle.size
    return rows
