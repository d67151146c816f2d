"""Rows to tensors: the one place where alignment is decided.

A `Batch` is padded, one sequence a row, and index t describes token t. Models pack the padding away
(`ops.packing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from postgrad.errors import DataError
from postgrad.ops.packing import pad
from postgrad.types import Group


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences, right-padded. Per-token fields are zero where they have nothing to say.

    It lives on the CPU, where it is cut and packed; only what a loss reads goes to the model's device.
    """

    input_ids: torch.Tensor  # [B, T] int64
    lengths: torch.Tensor  # [B] int64
    loss_mask: torch.Tensor  # [B, T] bool: trained (sampled, or a demonstration's) tokens; never at t = 0
    rewards: torch.Tensor | None = None  # [B] float32
    group_ids: torch.Tensor | None = None  # [B] int64
    finished: torch.Tensor | None = None  # [B] bool: the policy ended its turn itself
    sampler_logprobs: torch.Tensor | None = None  # [B, T] float32
    old_logprobs: torch.Tensor | None = None  # [B, T] float32
    ref_logprobs: torch.Tensor | None = None  # [B, T] float32
    old_values: torch.Tensor | None = None  # [B, T] float32
    advantages: torch.Tensor | None = None  # [B, T] float32
    returns: torch.Tensor | None = None  # [B, T] float32

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())

    def rows(self, index: torch.Tensor) -> Batch:
        """The sequences at `index`, cut to the longest of them."""
        width = int(self.lengths[index].max())
        picked: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                picked[f.name] = value[index][:, :width] if value.ndim == 2 else value[index]
        return Batch(**picked)

    def minibatches(self, num: int, *, seed: int) -> Iterator[Batch]:
        """A random partition into at most `num` parts of whole groups, as equal as can be: siblings share a prompt."""
        groups = torch.arange(len(self)) if self.group_ids is None else torch.unique(self.group_ids)
        order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
        for part in order.tensor_split(min(num, len(groups))):
            index = part if self.group_ids is None else torch.isin(self.group_ids, part).nonzero().squeeze(1)
            yield self.rows(index)

    def with_(self, **values: torch.Tensor) -> Batch:
        return replace(self, **values)

    def to(self, device: torch.device) -> Batch:
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: value.to(device) for name, value in present.items()})


def collate(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], *, names: Sequence[str] = ()) -> Batch:
    """Pad token ids and their loss masks on the right.

    Raises:
        DataError: a sequence has no trained token; `names` says which.
    """
    empty = [i for i, mask in enumerate(masks) if not any(mask[1:])]
    if empty:
        rows = ", ".join(repr(names[i]) if names else str(i) for i in empty)
        raise DataError(f"no token to train on in {rows}: a demonstration needs an assistant turn with text")
    input_ids, lengths = pad(ids)
    mask_BT, mask_lengths = pad(masks)
    assert torch.equal(lengths, mask_lengths), "one mask entry per token"
    loss_mask = mask_BT.bool()
    loss_mask[:, 0] = False
    return Batch(input_ids, lengths, loss_mask)


def make_batch(groups: Sequence[Group]) -> Batch:
    """Single-turn trajectories as they were sampled: token in, token out. Either all of them have a reward or none."""
    ids, masks, logprobs, rewards, group_ids, finished = [], [], [], [], [], []
    for g, group in enumerate(groups):
        for trajectory in group.trajectories:
            (turn,) = trajectory.turns
            prompt, sampled = turn.prompt_ids, turn.completion
            ids.append((*prompt, *sampled.token_ids))
            masks.append((False,) * len(prompt) + (True,) * len(sampled.token_ids))
            logprobs.append((0.0,) * len(prompt) + sampled.logprobs)
            rewards.append(trajectory.reward)
            group_ids.append(g)
            finished.append(sampled.finish_reason == "stop")
    assert len({reward is None for reward in rewards}) == 1, "a trajectory without reward must not be selected"
    batch = collate(ids, masks)
    if rewards[0] is not None:
        batch = batch.with_(rewards=torch.tensor(rewards, dtype=torch.float32))
    return batch.with_(
        group_ids=torch.tensor(group_ids),
        finished=torch.tensor(finished),
        sampler_logprobs=pad(logprobs, dtype=torch.float32)[0],
    )


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[tuple[torch.Tensor, Batch]]:
    """(indices, rows): whole groups of similar length together, about `max_tokens` a part, one group at least.

    A group's prompt counts once, as it is computed once.
    """
    prompts = batch.loss_mask.int().argmax(1)
    ids = torch.arange(len(batch)) if batch.group_ids is None else batch.group_ids
    groups = [(ids == g).nonzero().squeeze(1) for g in torch.unique(ids)]
    groups.sort(key=lambda rows: -int(batch.lengths[rows].max()))
    part: list[torch.Tensor] = []
    total = 0
    for rows in groups:
        tokens = int((batch.lengths - prompts)[rows].sum() + prompts[rows].max())
        if part and total + tokens > max_tokens:
            index = torch.cat(part)
            yield index, batch.rows(index)
            part, total = [], 0
        part.append(rows)
        total += tokens
    index = torch.cat(part)
    yield index, batch.rows(index)
