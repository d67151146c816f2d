"""Parameters and optimizer on one device: forward_backward, optim_step, weights, save, load.

Gradients are summed over micro-batches and calls, and divided once, in `optim_step`, by the number of things
the losses counted; so one batch of eight, eight of one, packed or padded, all take the same step.

Weights in bfloat16 have three digits, and an update changes the fifth: the optimizer works on float32 masters, sums
gradients in float32, and rounds the masters into the weights after every step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from postgrad.data.batch import Batch, micro_batches
from postgrad.errors import DataError, TrainingDiverged
from postgrad.models.memory import pages_of_its_own
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Loss, PolicyOutput, Weights

# A second-moment memory of twenty updates suits runs of a few dozen; what is pulled back is pulled by KL, not decay.
ADAM = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}

FORWARD_ONLY = 4
"""Times `batch_tokens` that fit into the same memory where nothing is kept for a backward pass."""
HEADS_RATE = 10.0
"""A fresh scalar head learns this much faster than the trained trunk under it."""


class HasBatch(Protocol):
    @property
    def batch(self) -> Batch: ...


Part = TypeVar("Part", bound=Batch | HasBatch)


class LocalTrainer:
    """A `Trainer` over a `PolicyModel`.

    Args:
        model: its parameters with `requires_grad` are trained.
        batch_tokens: most tokens of one forward pass; changes memory, not results.
        temperature: at which logprobs are read, the sampler's.
        max_grad_norm: the averaged gradient is scaled down to this norm.
        dump: where the batch of a diverged step is written.
    """

    def __init__(
        self,
        model: PolicyModel,
        *,
        batch_tokens: int,
        temperature: float = 1.0,
        max_grad_norm: float = 1.0,
        dump: Path | None = None,
    ) -> None:
        self.model = model
        self.version = 0
        self.trained_tokens = 0
        self.batch_tokens = batch_tokens
        self._temperature = temperature
        self._max_grad_norm = max_grad_norm
        self._dump = dump
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert self._trainable, "nothing to train"
        self._masters = {name: _master(p) for name, p in self._trainable.items()}
        heads = [p for name, p in self._masters.items() if name.startswith("heads.")]
        trunk = [p for name, p in self._masters.items() if not name.startswith("heads.")]
        self._optimizer = torch.optim.AdamW(
            [{"params": trunk, "rate": 1.0}, {"params": heads, "rate": HEADS_RATE}],
            lr=0.0,
            fused=True,
            **ADAM,  # type: ignore[arg-type]
        )
        # Gradients stay where they are for good, as weights and moments do: the pieces that memory would fall into
        # between them cost 0.5 GB with a model of 135M, and what is there can be added to in place.
        with pages_of_its_own():
            for name, p in self._trainable.items():
                p.grad = self._masters[name].grad = torch.zeros_like(self._masters[name])
        self._count = 0.0
        self._seen: list[Batch] = []
        self._initial = {name: _fingerprint(p) for name, p in self._masters.items()}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> PolicyOutput:
        self.model.eval()
        return _evaluate(self.model, batch, self.batch_tokens, self._temperature)

    def forward_backward(self, batch: Batch, loss: Callable[[Batch, PolicyOutput], Loss]) -> dict[str, float]:
        """Add the gradient of the loss's sum; returns its metrics averaged over this call.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        parts = (part for _, part in micro_batches(batch, self.batch_tokens))
        return self.accumulate(parts, lambda part: loss(part.to(self.model.device), self._output(part)))

    def accumulate(self, parts: Iterable[Part], loss: Callable[[Part], Loss]) -> dict[str, float]:
        """As `forward_backward`, for a loss that runs the model itself and knows what must stay together.

        Dropout stays off, or the policy that learns would not be the one that sampled.
        """
        self.model.eval()
        for layer in self.model.layers:
            layer.training = True  # itself alone, not what is in it: only so does transformers checkpoint it
        sums: dict[str, float] = {}
        count = 0.0
        for part in parts:
            batch = part if isinstance(part, Batch) else part.batch
            self._seen.append(batch)
            result = loss(part)
            if not torch.isfinite(result.total):
                self._diverged(f"the loss is {result.total.item()}")
            result.total.backward()  # type: ignore[no-untyped-call]
            count += result.count
            self.trained_tokens += int(batch.lengths.sum())
            for key, value in result.metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        self._count += count
        return {key: value / count for key, value in sums.items()}

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """Divide by the count, clip, step.

        Raises:
            TrainingDiverged: the gradient norm is not finite, or a tensor has not moved after two updates.
        """
        parameters = list(self._masters.values())
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self._count)
        norm = nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        if not torch.isfinite(norm):
            self._diverged(f"the gradient norm is {norm.item()}")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        with pages_of_its_own():
            self._optimizer.step()
        self._round()
        self._optimizer.zero_grad(set_to_none=False)
        self._count, self._seen = 0.0, []
        self.version += 1
        if self.version == 2:
            self._assert_everything_moved()
        return {"optim/grad_norm": float(norm)}

    def weights(self) -> Weights:
        return self.model.state_dict()

    def save(self, directory: Path) -> None:
        """Trainable tensors (masters), optimizer state and counters: what `load` needs to go on bit for bit."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self._masters.items()}
        for name, p in self._masters.items():
            for key, value in self._optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value.contiguous()
        save_file(tensors, directory / "trainer.safetensors")
        state = {"version": self.version, "trained_tokens": self.trained_tokens}
        (directory / "trainer.json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Go on from `save`.

        Raises:
            DataError: the checkpoint is of another model or another choice of trainable weights.
        """
        tensors = load_file(directory / "trainer.safetensors")
        saved = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
        if saved != self._trainable.keys():
            odd = sorted(saved ^ self._trainable.keys())[0]
            raise DataError(f"checkpoint {str(directory)!r} does not fit this model: {odd!r} is in only one of them")
        with torch.no_grad():
            for name, p in self._masters.items():
                p.copy_(tensors[f"model.{name}"])
                self._optimizer.state[p] = {
                    key: tensors[f"{key}.{name}"].to(p.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{name}" in tensors
                }
        self._round()
        state = json.loads((directory / "trainer.json").read_text(encoding="utf-8"))
        self.version, self.trained_tokens = state["version"], state["trained_tokens"]

    def _output(self, batch: Batch) -> PolicyOutput:
        return PolicyOutput(
            *self.model.token_outputs(batch.input_ids, batch.lengths, batch.loss_mask, temperature=self._temperature)
        )

    @torch.no_grad()
    def _round(self) -> None:
        for name, p in self._trainable.items():
            p.copy_(self._masters[name])

    def _assert_everything_moved(self) -> None:
        """A frozen tensor looks like a normal loss and a normal gradient norm; only its bits tell."""
        still = [name for name, p in self._masters.items() if _fingerprint(p) == self._initial[name]]
        if still:
            raise TrainingDiverged(
                f"{len(still)} trainable tensors did not change in two updates, such as {still[0]!r}"
            )

    def _diverged(self, what: str) -> None:
        where = ""
        if self._dump is not None:
            self._dump.mkdir(parents=True, exist_ok=True)
            for i, batch in enumerate(self._seen):
                fields = {"input_ids": batch.input_ids, "lengths": batch.lengths, "loss_mask": batch.loss_mask}
                extra = {k: getattr(batch, k) for k in ("advantages", "returns", "old_logprobs", "rewards")}
                save_file(
                    fields | {k: v for k, v in extra.items() if v is not None}, self._dump / f"batch-{i}.safetensors"
                )
            where = f"; its batch is in {str(self._dump)!r}"
        raise TrainingDiverged(f"update {self.version + 1}: {what}{where}; lower the learning rate")


class FrozenPolicy:
    """A `Policy` that is never trained: the reference, or a teacher.

    Args:
        model: may be the trained model itself when `adapter_off` gives its reference for free.
        adapter_off: a peft model whose adapter is switched off while this policy is read.
    """

    def __init__(
        self, model: PolicyModel, *, batch_tokens: int, temperature: float = 1.0, adapter_off: bool = False
    ) -> None:
        self._model = model
        self.batch_tokens = batch_tokens
        self._temperature = temperature
        self._adapter_off = adapter_off

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> PolicyOutput:
        self._model.eval()
        if not self._adapter_off:
            return _evaluate(self._model, batch, self.batch_tokens, self._temperature)
        with self._model.adapter.disable_adapter():
            return _evaluate(self._model, batch, self.batch_tokens, self._temperature)


def _evaluate(model: PolicyModel, batch: Batch, batch_tokens: int, temperature: float) -> PolicyOutput:
    shape = batch.input_ids.shape
    logprobs, entropy, values = (torch.zeros(shape) for _ in range(3))
    has_values = False
    for index, part in micro_batches(batch, FORWARD_ONLY * batch_tokens):
        out = PolicyOutput(*model.token_outputs(part.input_ids, part.lengths, part.loss_mask, temperature=temperature))
        width = part.input_ids.shape[1]
        logprobs[index, :width], entropy[index, :width] = out.logprobs.cpu(), out.entropy.cpu()
        if out.values is not None:
            values[index, :width], has_values = out.values.cpu(), True
    return PolicyOutput(logprobs, entropy, values if has_values else None)


def _master(p: torch.Tensor) -> torch.Tensor:
    """What the optimizer moves: the parameter itself, or of one in bfloat16 a float32 copy, as its gradient is then."""
    if p.dtype != torch.bfloat16:
        return p
    p.grad_dtype = torch.float32
    return p.detach().float()


def _fingerprint(tensor: torch.Tensor) -> bytes:
    """Of every bit and its place: `torch.hash_tensor` xors, so elements that change alike in pairs cancel out."""
    bits = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(bits.tobytes()).digest()
