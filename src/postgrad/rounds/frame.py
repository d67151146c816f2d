"""What every method does around its stages: lock, manifest, skip what is done, continue what was cut off."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import postgrad
from postgrad.config.load import AnyRecipe
from postgrad.errors import PostgradError
from postgrad.models.placement import place
from postgrad.rounds.manifest import Manifest, Stage, find_or_create_round
from postgrad.run import WorkspaceLock, disk_errors


class Work(NamedTuple):
    """One stage: what it is called, whose outputs it reads, and what it does."""

    name: str
    reads: tuple[str, ...]
    run: Callable[[Stage], None]


@contextlib.contextmanager
def open_round(
    recipe: AnyRecipe, *, workspace: Path, model: Mapping[str, str], asks_a_person: bool = False, once: bool = False
) -> Iterator[Manifest]:
    """The recipe's unfinished round, or a new one, with the workspace locked.

    Args:
        recipe: resolved.
        workspace: made where it does not exist.
        model: "name" and "sha256" of what the round starts from.
        asks_a_person: whether the person at the keyboard gives the labels, which makes it another round.
        once: take a finished round of the recipe too.

    Raises:
        StoreError: another process holds the workspace, the disk is full, or a manifest cannot be read.
    """
    device, dtype = place(recipe.model.device, recipe.model.dtype)
    with WorkspaceLock(workspace):
        yield find_or_create_round(
            workspace,
            recipe.model_dump(mode="json") | {"asks_a_person": asks_a_person},
            versions={
                "postgrad": postgrad.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers")},
                "device": f"{device.type}, {str(dtype).removeprefix('torch.')}",
            },
            model=model,
            once=once,
        )


def run_stages(
    manifest: Manifest, work: Sequence[Work], *, inputs: Mapping[str, str], announce: Callable[[str], None]
) -> None:
    """Every stage that is not done, in order, to the end of the round.

    Args:
        manifest: of the round, its workspace locked.
        work: one entry for every stage of the round's method, in order.
        inputs: digests that all stages depend on.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    assert tuple(w.name for w in work) == manifest.stages, "one entry a stage, in the order of the method"
    for name, reads, run in work:
        own = {**inputs, **{stage: manifest.digest(stage) for stage in reads}}
        try:
            with manifest.stage(name, inputs=own) as stage, disk_errors(stage.directory):
                if stage.todo:
                    announce(name)
                    run(stage)
        except PostgradError:
            if [(s.name, s.status) for s in manifest.record.stages] == [(manifest.stages[0], "failed")]:
                # Refused before anything was made of it: no round is left behind.
                shutil.rmtree(manifest.directory)
            raise
    manifest.finish()
