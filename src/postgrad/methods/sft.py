"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from postgrad.config.sections import SftConfig
from postgrad.data.batch import Batch, collate
from postgrad.methods.schedule import rate_share
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Loss, PolicyOutput, Trainer
from postgrad.run import RunDirectory
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint

Rendered = tuple[tuple[int, ...], tuple[bool, ...]]
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
SAVE_EVERY = 8


def train_sft(
    trainer: Trainer, rows: Sequence[Rendered], cfg: SftConfig, run: RunDirectory, progress: Progress
) -> None:
    """Minimise the mean negative log-likelihood of the masked tokens.

    Args:
        trainer: resumed from the run's newest checkpoint, if there is one.
        rows: token ids and loss masks of the demonstrations.
        cfg: passes, rows a step, peak learning rate and its schedule.
        run: receives metrics and checkpoints.
        progress: told after every step.
    """
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    schedule = epoch_batches(len(rows), cfg.epochs, cfg.examples_per_step, seed=run.seed(0))
    for step, index in enumerate(schedule[start:], start=start):
        began = time.perf_counter()
        batch = collate([rows[i][0] for i in index], [rows[i][1] for i in index])
        metrics = trainer.forward_backward(batch, _loss)
        share = rate_share(cfg.schedule, step, len(schedule), warmup_frac=cfg.warmup_frac)
        metrics |= trainer.optim_step(cfg.learning_rate * share) | {"optim/learning_rate": cfg.learning_rate * share}
        run.write_metrics(step + 1, metrics | {"time/step_s": time.perf_counter() - began})
        if (step + 1) % SAVE_EVERY == 0:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, len(schedule))


def epoch_batches(num_rows: int, epochs: int, rows_per_step: int, *, seed: int) -> list[list[int]]:
    """Row indices of every step; each pass is a new permutation, and its last step may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    steps: list[list[int]] = []
    for _ in range(epochs):
        order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
        steps += [order[i : i + rows_per_step] for i in range(0, num_rows, rows_per_step)]
    return steps


def _loss(batch: Batch, output: PolicyOutput) -> Loss:
    return Loss(*nll_loss(output.logprobs, batch.loss_mask))
