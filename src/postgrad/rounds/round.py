"""A round from beginning to end. Every stage is skipped where it is done, and continued where it was cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from postgrad.config.round import Recipe
from postgrad.db.engine import sqlite_url
from postgrad.feedback.store import LabelStore
from postgrad.gates.release import ReleasePointer
from postgrad.rounds.context import Context, OpenBar, read_splits, write_json
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.judge import arena_stage, gate_stage
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.stages import (
    gold_stage,
    labels_stage,
    prompts_stage,
    reward_stage,
    rl_stage,
    samples_stage,
    sft_stage,
)
from postgrad.run import sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Example


def run_round(
    recipe: Recipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path,
    bar: OpenBar,
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
        bar: opens a progress bar under a title, or a view of a run's metrics.
        announce: told the name of each stage as it begins.
        database: URL of the label store; None is a SQLite file in the workspace.
        ask: asks a person for the training comparisons.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    with open_round(recipe, workspace=workspace, model=model, asks_a_person=ask is not None) as manifest:
        write_json(manifest.directory / "text.json", {"template_and_tokenizer_sha256": renderer.fingerprint})
        released = ReleasePointer(workspace).read()
        url = database or sqlite_url(workspace / "postgrad.db")
        with LabelStore(url) as store:
            ctx = Context(recipe, manifest, initial, source, store, renderer, bar, ask)
            gold = ("gold",) if "gold" in manifest.stages else ()
            work = [
                Work("prompts", (), lambda s: prompts_stage(ctx, s)),
                Work("sft", ("prompts",), lambda s: sft_stage(ctx, s)),
                Work("samples", ("sft",), lambda s: samples_stage(ctx, s)),
                Work("labels", ("samples",), lambda s: labels_stage(ctx, s)),
                Work("reward", ("sft", "labels"), lambda s: reward_stage(ctx, s, conversations=True)),
                Work("gold", ("sft", "labels"), lambda s: gold_stage(ctx, s)),
                Work("rl", ("sft", "reward", *gold), lambda s: rl_stage(ctx, s, _rl_examples(ctx))),
                Work("arena", ("sft", "rl"), lambda s: arena_stage(ctx, s, released)),
                Work("gate", ("rl", "arena"), lambda s: gate_stage(ctx, s, workspace, released)),
            ]
            inputs = {"source": sha256_file(source), "model": model["sha256"], "text": renderer.fingerprint}
            work = [each for each in work if each.name in manifest.stages]
            run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _rl_examples(ctx: Context) -> list[Example]:
    return read_splits(ctx.source, ctx.recipe.data.system)["rl"]
