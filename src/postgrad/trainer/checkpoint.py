"""Checkpoints of a run under way: whole or absent after `kill -9`, and only the newest is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from postgrad.protocols import Trainer
from postgrad.run import RunDirectory, disk_errors


def save_checkpoint(trainer: Trainer, directory: Path, step: int) -> None:
    """Write `directory`/step-NNNN in one move and delete the older ones.

    Raises:
        StoreError: the disk is full; the older checkpoint is still there.
    """
    target = directory / f"step-{step:04d}"
    unfinished = directory / f".step-{step:04d}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    with disk_errors(target):
        try:
            trainer.save(unfinished)
            os.rename(unfinished, target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    for older in directory.glob("step-*"):
        if older != target:
            shutil.rmtree(older)


def load_checkpoint(trainer: Trainer, directory: Path) -> int:
    """Load the newest checkpoint, if there is one; returns the number of steps it stands for."""
    newest = max(directory.glob("step-*"), key=_step, default=None)
    if newest is None:
        return 0
    trainer.load(newest)
    return _step(newest)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def forget_checkpoints(run: RunDirectory) -> None:
    """The run is finished and its result saved: the optimizer's state, twice the model's size, is of no more use."""
    directory = checkpoint_directory(run)
    for checkpoint in directory.glob("step-*"):
        # In one move: a removal that is killed must not leave half a checkpoint to go on from.
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.tmp"))
    shutil.rmtree(directory, ignore_errors=True)


def checkpoint_directory(run: RunDirectory) -> Path:
    """Not among a stage's outputs."""
    return run.path / "checkpoints"
