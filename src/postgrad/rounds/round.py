"""A round from beginning to end. Every stage is skipped where it is done, and continued where it was cut off."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import postgrad
from postgrad.config import Recipe
from postgrad.db.engine import sqlite_url
from postgrad.errors import PostgradError
from postgrad.feedback.store import LabelStore
from postgrad.gates.release import ReleasePointer
from postgrad.methods.sft import Progress
from postgrad.rounds.context import Context, write_json
from postgrad.rounds.judge import arena_stage, gate_stage
from postgrad.rounds.manifest import STAGES, Manifest, Stage, find_or_create_round
from postgrad.rounds.stages import (
    labels_stage,
    prompts_stage,
    reward_stage,
    rl_stage,
    samples_stage,
    sft_stage,
)
from postgrad.run import WorkspaceLock, disk_errors, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer


def run_round(
    recipe: Recipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path,
    bar: Callable[[str], Progress],
    announce: Callable[[str], None],
    database: str | None = None,
    ask: Callable[[LabelStore, str], None] | None = None,
) -> Manifest:
    """Run the recipe, or go on with its unfinished round.

    Args:
        recipe: resolved.
        workspace: holds rounds, labels and the release pointer; one process at a time.
        initial: model directory of the initial policy.
        source: file of the prompts.
        bar: opens a progress bar under a title.
        announce: told the name of each stage as it begins.
        database: URL of the label store; None is a SQLite file in the workspace.
        ask: asks a person for the training comparisons.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    with WorkspaceLock(workspace):
        renderer = Renderer(load_tokenizer(initial))
        manifest = find_or_create_round(
            workspace,
            recipe.model_dump(mode="json") | {"asks_a_person": ask is not None},
            versions={
                "postgrad": postgrad.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers")},
            },
            model={"name": recipe.model.name, "sha256": sha256_tree(initial)},
        )
        write_json(manifest.directory / "text.json", {"template_and_tokenizer_sha256": renderer.fingerprint})
        released = ReleasePointer(workspace).read()
        url = database or sqlite_url(workspace / "postgrad.db")
        with LabelStore(url) as store:
            ctx = Context(recipe, manifest, initial, source, store, renderer, bar, ask)
            source_hash, text_hash = sha256_file(source), renderer.fingerprint
            common = {"source": source_hash, "model": manifest.record.model["sha256"], "text": text_hash}
            work: list[tuple[str, tuple[str, ...], Callable[[Context, Stage], None]]] = [
                ("prompts", (), prompts_stage),
                ("sft", ("prompts",), sft_stage),
                ("samples", ("sft",), samples_stage),
                ("labels", ("samples",), labels_stage),
                ("reward", ("sft", "labels"), reward_stage),
                ("rl", ("sft", "reward"), rl_stage),
                ("arena", ("sft", "rl"), lambda c, s: arena_stage(c, s, released)),
                ("gate", ("rl", "arena"), lambda c, s: gate_stage(c, s, workspace, released)),
            ]
            for name, reads, run in work:
                inputs = common | {stage: manifest.digest(stage) for stage in reads}
                try:
                    with manifest.stage(name, inputs=inputs) as stage, disk_errors(stage.directory):
                        if stage.todo:
                            announce(name)
                            run(ctx, stage)
                except PostgradError:
                    if [(s.name, s.status) for s in manifest.record.stages] == [(STAGES[0], "failed")]:
                        # Refused before anything was made of it: no round is left behind.
                        shutil.rmtree(manifest.directory)
                    raise
            manifest.finish()
    return manifest
