"""Padding to the right, and packing it away again.

B sequences, T longest sequence, R packed rows, L packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from postgrad.ops.attention import Spans


class Packed(NamedTuple):
    """Sequences laid end to end, a shared prefix once; a token sees its own sequence's past and nothing else."""

    input_ids_RL: Tensor
    position_ids_RL: Tensor
    spans: Spans
    """Over the R * L tokens, counted along the rows."""
    place_BT: Tensor  # int64: where token t of sequence b sits among the R * L; 0 where padding


def pad(rows: Sequence[Sequence[float]], *, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zeros on the right, and their lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows])
    padded_BT = torch.zeros(len(rows), int(lengths.max()), dtype=dtype)
    for i, row in enumerate(rows):
        padded_BT[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded_BT, lengths


def pack(
    input_ids_BT: Tensor, lengths_B: Tensor, *, prefix_lengths_B: Tensor | None = None, row_tokens: int | None = None
) -> Packed:
    """Into one row, or, first-fit decreasing, into rows of `row_tokens` or of the longest bundle where that is longer.

    Sequences whose first `prefix_lengths_B` tokens are the same become a bundle that holds these tokens once:
    siblings sampled from one prompt cost that prompt once, and its gradient is the sum over them. Equal sequences are
    one sequence, so what is read from them is equal to the last bit. Where attention works from a mask rows should be
    short, because it then pays for the square of a row's length.
    """
    given = [tuple(row[:n]) for row, n in zip(input_ids_BT.tolist(), lengths_B.tolist(), strict=True)]
    first = {row: i for i, row in reversed(list(enumerate(given)))}
    ids = list(dict.fromkeys(given))
    prefixes = [0] * len(ids) if prefix_lengths_B is None else prefix_lengths_B[[first[row] for row in ids]].tolist()
    bundles = _bundles(ids, prefixes, row_tokens)
    rows = [bundles] if row_tokens is None else _fit(bundles, row_tokens)
    width = max(sum(bundle.size for bundle in row) for row in rows)
    tokens_RL = torch.zeros(len(rows), width, dtype=torch.int64)
    positions_RL = torch.zeros_like(tokens_RL)
    places = torch.zeros(len(ids), input_ids_BT.shape[1], dtype=torch.int64)
    tokens_N, positions_N = tokens_RL.view(-1), positions_RL.view(-1)
    causal: list[tuple[int, int]] = []
    shared: list[tuple[int, int, int, int]] = []
    for r, row in enumerate(rows):
        at = r * width
        for bundle in row:
            # A prefix of one sequence alone is a part of that sequence.
            prefix = bundle.prefix if len(bundle.members) > 1 else 0
            start = at + prefix
            if prefix:
                tokens_N[at:start] = torch.tensor(ids[bundle.members[0]][:prefix])
                positions_N[at:start] = torch.arange(prefix)
                causal.append((at, start))
                shared.append((start, at + bundle.size, at, start))
            for i in bundle.members:
                stop = start + len(ids[i]) - prefix
                tokens_N[start:stop] = torch.tensor(ids[i][prefix:])
                positions_N[start:stop] = torch.arange(prefix, len(ids[i]))
                places[i, :prefix] = torch.arange(at, at + prefix)
                places[i, prefix : len(ids[i])] = torch.arange(start, stop)
                if stop > start:  # an answer may be empty, the prefix alone
                    causal.append((start, stop))
                start = stop
            at = start
    number = {row: i for i, row in enumerate(ids)}
    place_BT = places[[number[row] for row in given]]
    device = input_ids_BT.device
    return Packed(
        tokens_RL.to(device), positions_RL.to(device), Spans(tuple(causal), tuple(shared)), place_BT.to(device)
    )


class _Bundle(NamedTuple):
    prefix: int
    members: list[int]
    size: int


def _bundles(ids: list[tuple[int, ...]], prefixes: list[int], row_tokens: int | None) -> list[_Bundle]:
    """Sequences by shared prefix; a bundle that has outgrown a row ends once the prefix is well paid for."""
    done: list[_Bundle] = []
    growing: dict[tuple[int, ...], _Bundle] = {}
    for i, (row, prefix) in enumerate(zip(ids, prefixes, strict=True)):
        key = row[:prefix] if prefix else (-1 - i,)
        bundle = growing.get(key)
        if bundle is not None and row_tokens and bundle.size + len(row) - prefix > max(row_tokens, 4 * prefix):
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
