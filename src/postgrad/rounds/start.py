"""From a recipe that imitates or compares to its plan and its run; the command line does the same for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from postgrad.config.compare import CompareRecipe
from postgrad.config.distill import DistillRecipe
from postgrad.config.iterate import IterateRecipe
from postgrad.config.sft import SftRecipe
from postgrad.models.pull import resolve
from postgrad.rounds.compare import run_compare
from postgrad.rounds.distill import run_distill
from postgrad.rounds.iterate import run_iterate
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.preflight import Plan, plan_run
from postgrad.rounds.sft import run_sft
from postgrad.rounds.summary import Bars


def prepare_imitation(
    recipe: SftRecipe | IterateRecipe | DistillRecipe | CompareRecipe,
    *,
    workspace: Path,
    initial: Path,
    folder: Path,
    find: Callable[[str], Path],
) -> tuple[Plan, Callable[[Bars], Manifest]]:
    """What memory depends on, and the recipe's method, ready to start.

    Args:
        recipe: resolved.
        workspace: one process at a time.
        initial: model directory of the initial policy.
        folder: where the recipe's relative paths begin.
        find: the file of a `source`.
    """
    if isinstance(recipe, SftRecipe):
        sets = [find(each.source) for each in recipe.data.sets]
        return plan_run(recipe, initial=initial, source=None, sets=sets), lambda bars: run_sft(
            recipe, workspace=workspace, initial=initial, sources=sets, bar=bars.open, announce=bars.announce
        )
    if isinstance(recipe, CompareRecipe):
        prompts = find(recipe.data.source)
        return plan_run(recipe, initial=initial, source=prompts), lambda bars: run_compare(
            recipe, workspace=workspace, initial=initial, source=prompts, bar=bars.open, announce=bars.announce
        )
    source = find(recipe.data.source) if recipe.data.source else None
    if isinstance(recipe, DistillRecipe):
        teacher = resolve(recipe.teacher.name) if recipe.teacher.name else initial
        return plan_run(recipe, initial=initial, source=source, teacher=teacher), lambda bars: run_distill(
            recipe,
            workspace=workspace,
            initial=initial,
            teacher=teacher,
            source=source,
            bar=bars.open,
            announce=bars.announce,
        )
    return plan_run(recipe, initial=initial, source=source), lambda bars: run_iterate(
        recipe,
        workspace=workspace,
        initial=initial,
        source=source,
        folder=folder,
        bar=bars.open,
        announce=bars.announce,
    )
