"""A teacher that scores a student's own tokens, and a trainer that learns from its whole distributions.

The teacher may read another prompt than the student: a system message or documents, in its own template. What both
share are the answer's tokens, so token t of the answer in one is token t of it in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from postgrad.data.batch import Batch, collate
from postgrad.models.policy import PolicyModel
from postgrad.ops.divergence import reverse_kl
from postgrad.protocols import PolicyOutput
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

Ids = tuple[int, ...]


class Teacher:
    """A frozen `Policy` over the student's batches.

    Args:
        model: may be the trained model itself when `adapter_off` gives what it was.
        prompts: the student's prompts, as token ids, to the teacher's; those left out are the same.
        batch_tokens: most tokens of one forward pass; changes memory, not results.
        temperature: at which the student samples.
        adapter_off: read a peft model with its adapter switched off.
    """

    def __init__(
        self,
        model: PolicyModel,
        prompts: Mapping[Ids, Ids],
        *,
        batch_tokens: int,
        temperature: float = 1.0,
        adapter_off: bool = False,
    ) -> None:
        self.model = model.eval()
        self._prompts = prompts
        self._adapter_off = adapter_off
        self._policy = FrozenPolicy(model, batch_tokens=batch_tokens, temperature=temperature, adapter_off=adapter_off)

    def evaluate(self, batch: Batch) -> PolicyOutput:
        own = self.translate(batch)
        out = self._policy.evaluate(own)
        logprobs, entropy = (
            torch.zeros(batch.input_ids.shape).masked_scatter(batch.loss_mask, values[own.loss_mask])
            for values in (out.logprobs, out.entropy)
        )
        return PolicyOutput(logprobs, entropy)

    @torch.no_grad()
    def states(self, batch: Batch) -> torch.Tensor:
        """The states that predict the answers' tokens, answer by answer, [N, E]."""
        own = self.translate(batch)
        off: AbstractContextManager[Any] = self.model.adapter.disable_adapter() if self._adapter_off else nullcontext()
        with off:
            return self.model.states_before(own.input_ids, own.lengths, own.loss_mask)

    def translate(self, batch: Batch) -> Batch:
        """The same answers after the teacher's prompts."""
        rows = []
        for ids, length, start in zip(
            batch.input_ids.tolist(), batch.lengths.tolist(), batch.loss_mask.int().argmax(1).tolist(), strict=True
        ):
            prompt = tuple(ids[:start])
            rows.append((self._prompts.get(prompt, prompt), tuple(ids[start:length])))
        own = collate(
            [(*prompt, *answer) for prompt, answer in rows],
            [(False,) * len(prompt) + (True,) * len(answer) for prompt, answer in rows],
        )
        assert own.num_loss_tokens == batch.num_loss_tokens, "a row is a prompt and one answer"
        return own if batch.group_ids is None else own.with_(group_ids=batch.group_ids)


class TaughtTrainer(LocalTrainer):
    """A `LocalTrainer` whose losses see the KL from the student to its teacher over the whole vocabulary."""

    def __init__(self, model: PolicyModel, teacher: Teacher, *, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(model, temperature=temperature, **options)
        self._teacher = teacher
        self._at = temperature

    def _output(self, batch: Batch) -> PolicyOutput:
        # First, since it may switch off the adapter of the very model that learns.
        teacher_states_NE = self._teacher.states(batch)
        mask_BT = batch.loss_mask.to(self.model.device)
        states_ND = self.model.states_before(batch.input_ids, batch.lengths, batch.loss_mask)
        kl, logprobs, entropy = (
            torch.zeros(mask_BT.shape, device=mask_BT.device).masked_scatter(mask_BT, values_N.float())
            for values_N in reverse_kl(
                states_ND,
                self.model.unembedding,
                teacher_states_NE,
                self._teacher.model.unembedding,
                batch.input_ids[batch.loss_mask].to(self.model.device),
                temperature=self._at,
            )
        )
        return PolicyOutput(logprobs, entropy, divergence=kl)
