"""`postgrad compare-methods`: one comparison a seed, all in one workspace, and one table of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from postgrad.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def compare(
    name: str,
    workspace: Path,
    seeds: str,
    overrides: tuple[str, ...],
    markdown: Path | None,
    html: Path | None,
    console: Console,
    *,
    prepare: Callable[..., Any],
) -> None:
    """Run every seed that is not done; `prepare` is what the command line does for every recipe.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    from postgrad.config.compare import CompareRecipe
    from postgrad.config.load import load_recipe
    from postgrad.recipes import recipe_path
    from postgrad.rounds.compare_table import as_markdown, as_rich, make_page, write_page
    from postgrad.rounds.manifest import plan_stages
    from postgrad.rounds.summary import Bars
    from postgrad.run import atomic_write

    path = recipe_path(name)
    recipes = []
    for seed in _numbers(seeds):
        recipe = load_recipe(path, (*overrides, f"seed={seed}"))
        if not isinstance(recipe, CompareRecipe):
            raise ConfigError(f"recipe {str(path)!r} has method {recipe.method!r}; compare-methods takes 'compare'")
        recipes.append(recipe)
    manifests = []
    try:
        for recipe in recipes:
            console.print(f"[bold]seed {recipe.seed}[/]")
            _, start = prepare(recipe, path, workspace, None)
            with Bars(console, plan_stages(recipe.model_dump())) as bars:
                manifests.append(start(bars))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        raise typer.Exit(130) from None
    page = make_page(recipes[0], manifests)
    console.print(as_rich(page))
    for note in page.notes:
        console.print(note, markup=False, highlight=False)
    if markdown is not None:
        atomic_write(markdown, as_markdown(page))
    if html is not None:
        write_page(page, html)


def _numbers(seeds: str) -> list[int]:
    try:
        found = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {seeds!r} are not numbers with commas between them, such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise ConfigError(f"--seeds {seeds!r} names a seed twice; name each once")
    return found
