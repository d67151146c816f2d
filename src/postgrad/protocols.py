"""The seams of the house. A Protocol and a constructor call; no registries, no factories, no base classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch

from postgrad.data.batch import Batch
from postgrad.types import Completion, GenerationRequest, Group, Score

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What a model says about a batch; index t describes token t, zero where `loss_mask` is False.

    `Policy.evaluate` returns it on the CPU, beside its batch; a loss gets both on the model's device.
    """

    logprobs: torch.Tensor  # [B, T] float32, nats
    entropy: torch.Tensor  # [B, T] float32, nats
    values: torch.Tensor | None = None  # [B, T] float32, value of the state before token t
    divergence: torch.Tensor | None = None  # [B, T] float32, nats: KL to a teacher over the whole vocabulary


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over the batch and the number of things summed; the trainer divides by the global count."""

    total: torch.Tensor
    count: float
    metrics: Mapping[str, float]
    """Sums over the same things, to be divided by the same count."""


class Policy(Protocol):
    """A trained model, a frozen reference, a teacher."""

    def evaluate(self, batch: Batch) -> PolicyOutput: ...


class RolloutEngine(Protocol):
    """Token ids in, token ids and logprobs out."""

    version: int

    async def generate(
        self, requests: Sequence[GenerationRequest], on_token: Callable[[int, int], bool] | None = None
    ) -> list[Completion]:
        """Completions in the order of the requests.

        `on_token(request index, token id)` streams them, and cancels the request by returning False. Calls that stream
        may overlap: each begins at the next token of those under way, ends with its own last one, and when it is
        cancelled its requests are.
        """
        ...

    async def load_weights(self, weights: Weights, *, version: int) -> None: ...


class Grader(Protocol):
    """Whole group in, so that a pairwise judgement needs no second interface."""

    name: str

    async def grade(self, group: Group) -> Sequence[Score]:
        """One score for each answer, in order; every call has a thread and an event loop of its own."""
        ...


class Algorithm(Protocol):
    """The only place where PPO, GRPO and RLOO differ."""

    def select(self, groups: Sequence[Group]) -> list[Group]: ...
    def prepare(self, batch: Batch, policy: Policy, reference: Policy) -> tuple[Batch, dict[str, float]]: ...
    def loss(self, batch: Batch, output: PolicyOutput) -> Loss:
        """Its metrics hold "policy/kl_old"."""
        ...

    def after(self, metrics: Mapping[str, float]) -> Self:
        """The algorithm of the step that follows the one with these metrics.

        What an algorithm learns about itself, such as an adaptive KL coefficient, is a function of the metrics that
        `prepare` returned, so a resumed run folds the rows of its metrics file.
        """
        ...


class Trainer(Policy, Protocol):
    """Parameters and optimizer."""

    version: int

    def forward_backward(self, batch: Batch, loss: Callable[[Batch, PolicyOutput], Loss]) -> dict[str, float]: ...
    def optim_step(self, learning_rate: float) -> dict[str, float]: ...
    def weights(self) -> Weights: ...
    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...
