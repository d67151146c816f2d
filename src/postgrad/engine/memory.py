"""Keys and values of the sequences under way: every prompt once, and beside it what each sequence has sampled itself.

Shape suffixes: U prompts, G most siblings of a prompt, B rows (sequences under way), H query heads, K key and value
heads, D head size, P longest prompt, W room for a row's own tokens, N tokens of the prompts being read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from postgrad.ops.attention import Spans, masked_attention, packed_attention, plan_attention
from postgrad.ops.product import widened

GROW = 32
"""Own tokens that a row gains room for at a time: answers end when they like, so their limit is not reserved."""


class Memory:
    """Slots for prompts and for rows. A row that leaves gives its slot to the last one, so that rows lie together.

    Args:
        num_layers: of the model.
        device: of the model.
        exact: sum as a trainer does that reads these answers' logprobs.
    """

    def __init__(self, num_layers: int, device: torch.device, *, exact: bool) -> None:
        self.device = device
        self.exact = exact
        self.prompt_keys: list[Tensor] = [torch.empty(0)] * num_layers  # [U, K, P, D]
        self.prompt_values: list[Tensor] = [torch.empty(0)] * num_layers
        self.keys: list[Tensor] = [torch.empty(0)] * num_layers  # [B, K, W, D]
        self.values: list[Tensor] = [torch.empty(0)] * num_layers
        self.prompts: list[tuple[int, ...]] = []
        self.prompt_of: list[int] = []
        """Row -> its prompt."""
        self.lengths: list[int] = []
        """Row -> own tokens whose keys are here."""
        self.room = 0

    def wide(self, x: Tensor) -> Tensor:
        """Keys, values and queries as they are kept and summed."""
        return widened(x) if self.exact else x

    def add_rows(self, prompts: Sequence[int]) -> None:
        """Rows without own tokens, each with the number of its prompt."""
        self.prompt_of += prompts
        self.lengths += [0] * len(prompts)
        self._make_room()

    def drop_rows(self, rows: Sequence[int], *, keep: Collection[tuple[int, ...]]) -> list[tuple[int, int]]:
        """Forget rows, and prompts that nobody continues or is to `keep`.

        Returns:
            the moves (from row, to row) to be repeated by whoever keeps something else by row.
        """
        moves = []
        for row in sorted(rows, reverse=True):
            last = len(self.lengths) - 1
            if row != last:
                moves.append((last, row))
                used = self.lengths[last]
                for tensor in (*self.keys, *self.values):
                    tensor[row, :, :used] = tensor[last, :, :used]
                self.lengths[row], self.prompt_of[row] = self.lengths[last], self.prompt_of[last]
            self.lengths.pop()
            self.prompt_of.pop()
        alive = [u for u, prompt in enumerate(self.prompts) if u in set(self.prompt_of) or prompt in keep]
        if len(alive) < len(self.prompts):
            kept = torch.tensor(alive, dtype=torch.int64, device=self.device)
            self.prompts = [self.prompts[u] for u in alive]
            width = max((len(p) for p in self.prompts), default=0)
            for tensors in (self.prompt_keys, self.prompt_values):
                tensors[:] = [tensor[kept, :, :width] for tensor in tensors]
            renumbered = {u: i for i, u in enumerate(alive)}
            self.prompt_of = [renumbered[u] for u in self.prompt_of]
        return moves

    def plan(self, rows: int, prompts: Sequence[tuple[int, ...]]) -> ForwardPlan:
        """For a forward pass over one more token of every row and of idle rows up to `rows`, then new `prompts`."""
        if rows:
            self._make_room(rows)
        step = StepPlan(self, rows) if rows else None
        return ForwardPlan(step, PromptPlan(self, prompts) if prompts else None)

    def _make_room(self, rows: int = 0) -> None:
        """At least `rows` slots, and in every slot room for one more token."""
        slots = max(rows, len(self.lengths))
        need = max(self.lengths, default=0) + 1
        for tensors in (self.keys, self.values):
            for i, tensor in enumerate(tensors):
                if not tensor.numel():
                    like = self.prompt_keys[i] if tensors is self.keys else self.prompt_values[i]
                    tensor = like.new_zeros(0, like.shape[1], 0, like.shape[3])
                if len(tensor) < slots or tensor.shape[2] < need:
                    # As much as there is use for now: who needed more may be gone.
                    room = -(-need // GROW) * GROW
                    grown = tensor.new_zeros(slots, tensor.shape[1], room, tensor.shape[3])
                    kept = tensor[:slots, :, :room]
                    grown[: len(kept), :, : kept.shape[2]] = kept
                    tensor = grown
                tensors[i] = tensor


class ForwardPlan:
    """An `AttentionPlan` over one row of tokens: those of the rows under way, then the new prompts end to end."""

    def __init__(self, step: StepPlan | None, read: PromptPlan | None) -> None:
        self._step = step
        self._read = read

    @property
    def positions(self) -> list[int]:
        """Each token's place in its own sequence."""
        stepped = self._step.positions.tolist() if self._step else []
        return stepped + [i for start, stop in (self._read.spans if self._read else ()) for i in range(stop - start)]

    def attend(
        self,
        layer: Any,
        q_1HND: Tensor,
        k_1KND: Tensor,
        v_1KND: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        rows = self._step.rows if self._step else 0
        out = torch.empty_like(q_1HND)
        if self._step:
            q_BHD, k_BKD, v_BKD = (x[0, :, :rows].transpose(0, 1) for x in (q_1HND, k_1KND, v_1KND))
            out[0, :, :rows] = self._step.attend(layer, q_BHD, k_BKD, v_BKD, scale, window, softcap)
        if self._read:
            q, k, v = (x[:, :, rows:] for x in (q_1HND, k_1KND, v_1KND))
            out[:, :, rows:] = self._read.attend(layer, q, k, v, scale, window, softcap)
        return out


class PromptPlan:
    """Prompts laid end to end, each read once; their keys and values are kept."""

    def __init__(self, memory: Memory, prompts: Sequence[tuple[int, ...]]) -> None:
        self._memory = memory
        stops = torch.tensor([len(p) for p in prompts]).cumsum(0).tolist()
        self.spans = tuple(zip([0, *stops[:-1]], stops, strict=True))
        self._old = len(memory.prompts)
        memory.prompts += prompts
        self._width = max(len(p) for p in memory.prompts)
        self._plan = plan_attention(Spans(self.spans, ()))

    def attend(
        self,
        layer: Any,
        q_1HND: Tensor,
        k_1KND: Tensor,
        v_1KND: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        i = layer.layer_idx
        self._keep(self._memory.prompt_keys, i, k_1KND)
        self._keep(self._memory.prompt_values, i, v_1KND)
        all_seen = window is None or all(b - a <= window for a, b in self.spans)
        if q_1HND.device.type == "cpu" and softcap is None and all_seen:
            return packed_attention(q_1HND, k_1KND, v_1KND, self._plan, scale=scale, exact=self._memory.exact)
        out = torch.empty_like(q_1HND)
        for start, stop in self.spans:
            piece = slice(start, stop)
            places = torch.arange(stop - start, device=q_1HND.device)
            back = places[:, None] - places
            seen = (back >= 0) & (back < (window or stop))
            q, k, v = (x[:, :, piece] for x in (q_1HND, k_1KND, v_1KND))
            out[:, :, piece] = masked_attention(q, k, v, seen, scale=scale, softcap=softcap)
        return out

    def _keep(self, tensors: list[Tensor], i: int, new_1KND: Tensor) -> None:
        _, heads, _, size = new_1KND.shape
        new_1KND = self._memory.wide(new_1KND)
        grown = new_1KND.new_zeros(self._old + len(self.spans), heads, self._width, size)
        if self._old:
            grown[: self._old, :, : tensors[i].shape[2]] = tensors[i]
        for u, (start, stop) in enumerate(self.spans, start=self._old):
            grown[u, :, : stop - start] = new_1KND[0, :, start:stop]
        tensors[i] = grown


class StepPlan:
    """One new token of every row. Siblings read their prompt's keys together, in one product."""

    def __init__(self, memory: Memory, rows: int) -> None:
        self._memory = memory
        idle = rows - len(memory.lengths)
        device = memory.device
        owners = memory.prompt_of + [0] * idle
        lengths = memory.lengths + [0] * idle
        self.rows = rows
        self._rows = torch.arange(rows, device=device)
        self._lengths = torch.tensor(lengths, device=device)
        self._width = max(lengths) + 1
        prompt_lengths = torch.tensor([len(p) for p in memory.prompts])
        self.positions = (prompt_lengths[owners] + torch.tensor(lengths)).to(device)
        siblings: list[list[int]] = [[] for _ in memory.prompts]
        for row, owner in enumerate(owners):
            siblings[owner].append(row)
        most = max(len(s) for s in siblings)
        # Row -> its place among U * G; and the rows in that order, gaps filled with row 0.
        place = [0] * rows
        order = [0] * (len(siblings) * most)
        for u, members in enumerate(siblings):
            for g, row in enumerate(members):
                place[row], order[u * most + g] = u * most + g, row
        self._in_order = order == list(range(rows))
        self._order, self._place = torch.tensor(order, device=device), torch.tensor(place, device=device)
        self._num_prompts, self._most = len(siblings), most
        self._longest = max(len(p) for p in memory.prompts)
        self._prompt_lengths = prompt_lengths[owners].to(device)
        self._biases: dict[int | None, Tensor] = {}
        self._places: dict[tuple[int, int], Tensor] = {}

    def _slots(self, heads: int, room: int) -> Tensor:
        """Where each row's new token goes in [B, K, W, D], flattened to [B * K * W, D]; [B * K]."""
        if (heads, room) not in self._places:
            head = self._rows[:, None] * heads + torch.arange(heads, device=self._rows.device)
            self._places[heads, room] = (head * room + self._lengths[:, None]).flatten()
        return self._places[heads, room]

    def _bias(self, window: int | None) -> Tensor:
        """[B, 1, 1, P + W]: zero where the row's new token sees the key, minus infinity elsewhere."""
        if window not in self._biases:
            prompt_at = torch.arange(self._longest, device=self._rows.device)
            own_at = torch.arange(self._width, device=self._rows.device)
            own = self._lengths[:, None]
            seen = torch.cat([prompt_at < self._prompt_lengths[:, None], own_at <= own], dim=1)
            if window is not None:
                own_from = self._prompt_lengths[:, None] + own_at
                key_at = torch.cat([prompt_at.expand(self.rows, -1), own_from], dim=1)
                seen &= self.positions[:, None] - key_at < window
            bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._biases[window] = bias[:, None, None]
        return self._biases[window]

    def attend(
        self,
        layer: Any,
        q_BHD: Tensor,
        k_BKD: Tensor,
        v_BKD: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """[H, B, D]."""
        i, memory = layer.layer_idx, self._memory
        keys, values = memory.keys[i][: self.rows], memory.values[i][: self.rows]
        slots = self._slots(*keys.shape[1:3])
        keys.flatten(0, 2).index_copy_(0, slots, memory.wide(k_BKD).flatten(0, 1))
        values.flatten(0, 2).index_copy_(0, slots, memory.wide(v_BKD).flatten(0, 1))
        own_keys, own_values = keys[:, :, : self._width], values[:, :, : self._width]
        prompt_keys, prompt_values = memory.prompt_keys[i], memory.prompt_values[i]
        rows, heads, size = q_BHD.shape
        shared = prompt_keys.shape[1]
        q_BKRD = (memory.wide(q_BHD) * scale).view(rows, shared, heads // shared, size)
        longest = self._longest
        scores = q_BKRD.new_empty(rows, shared, heads // shared, longest + self._width)
        scores[..., :longest] = self._apart(torch.matmul(self._together(q_BKRD), prompt_keys.transpose(2, 3)))
        scores[..., longest:] = torch.matmul(q_BKRD, own_keys.transpose(2, 3))
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        scores += self._bias(window)
        weights = scores.softmax(-1)
        out = torch.matmul(weights[..., longest:], own_values)
        out += self._apart(torch.matmul(self._together(weights[..., :longest]), prompt_values))
        return out.view(rows, heads, size).transpose(0, 1).to(q_BHD.dtype)

    def _together(self, x_BKRD: Tensor) -> Tensor:
        """[B, K, R, D] -> [U, K, G * R, D]: what the siblings of a prompt have in common is one product."""
        _, heads, repeats, size = x_BKRD.shape
        x = x_BKRD if self._in_order else x_BKRD[self._order]
        x = x.view(self._num_prompts, self._most, heads, repeats, size).transpose(1, 2)
        return x.reshape(self._num_prompts, heads, self._most * repeats, size)

    def _apart(self, x_UKGD: Tensor) -> Tensor:
        """The inverse of `_together`."""
        prompts, heads, siblings, size = x_UKGD.shape
        x = x_UKGD.view(prompts, heads, self._most, siblings // self._most, size).transpose(1, 2)
        x = x.reshape(prompts * self._most, heads, siblings // self._most, size)
        return x if self._in_order else x[self._place]
