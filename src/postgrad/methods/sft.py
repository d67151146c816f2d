"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from postgrad.config.sections import PassesConfig, RateConfig
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
    trainer: Trainer, rows: Sequence[Rendered], cfg: PassesConfig, run: RunDirectory, progress: Progress
) -> None:
    """Minimise the mean negative log-likelihood of the masked tokens, in passes over all rows; see `imitate`."""
    schedule = epoch_batches(len(rows), cfg.epochs, cfg.examples_per_step, seed=run.seed(0))
    imitate(trainer, [[rows[i] for i in index] for index in schedule], cfg, run, progress)


def imitate(
    trainer: Trainer,
    batches: Sequence[Sequence[Rendered]],
    cfg: RateConfig,
    run: RunDirectory,
    progress: Progress,
    examine: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """One update a batch towards the masked tokens.

    Args:
        trainer: resumed from the run's newest checkpoint, if there is one.
        batches: token ids and loss masks, of every step.
        cfg: peak learning rate and its schedule.
        run: receives metrics and checkpoints.
        progress: told after every step.
        examine: gives further metrics, after so many steps.
    """
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    for step, rows in enumerate(batches[start:], start=start):
        began = time.perf_counter()
        batch = collate([ids for ids, _ in rows], [mask for _, mask in rows])
        metrics = trainer.forward_backward(batch, _loss)
        rate = cfg.learning_rate * rate_share(cfg.schedule, step, len(batches), warmup_frac=cfg.warmup_frac)
        metrics |= trainer.optim_step(rate) | {"optim/learning_rate": rate}
        metrics["time/step_s"] = time.perf_counter() - began
        if examine is not None:
            metrics |= examine(step + 1)
        run.write_metrics(step + 1, metrics)
        if (step + 1) % SAVE_EVERY == 0:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, len(batches))


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
