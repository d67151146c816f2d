"""One table of every seed's comparison: in the terminal, in Markdown, and as a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from postgrad.config.compare import CompareRecipe
from postgrad.evals.pooling import (
    FEWEST_SEEDS,
    ByPrompt,
    Interval,
    mean_over_seeds,
    pooled_at_equal_length,
    pooled_mean,
)
from postgrad.rounds.manifest import Manifest
from postgrad.run import atomic_write, read_json_lines

DASH = "\u2013"


@dataclass(frozen=True)
class Seed:
    """What one finished comparison left on the disk."""

    manifest: Manifest
    scores: Mapping[tuple[str, str], Mapping[str, float]]
    """(a, b) -> prompt -> score of a against b."""
    measures: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Player -> measure -> prompt -> value."""

    @classmethod
    def read(cls, manifest: Manifest) -> Seed:
        arena = manifest.stage_directory("arena")
        scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for row in read_json_lines(arena / "judgements.jsonl"):
            scores[row["a"], row["b"]][row["prompt_id"]] = row["score"]
            scores[row["b"], row["a"]][row["prompt_id"]] = 1 - row["score"]
        measures: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in read_json_lines(arena / "answers.jsonl"):
            for player, answer in row["answers"].items():
                for name in ("tokens", "kl", "kl_sft", "utility"):
                    measures[player][name][row["prompt_id"]] = answer[name]
        return cls(manifest, scores, measures)


@dataclass(frozen=True)
class Page:
    """The table as text."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    seeds: tuple[tuple[str, ...], list[tuple[str, ...]]]
    """Headers and rows of the win rates against SFT, seed by seed."""
    notes: list[str]


def make_page(recipe: CompareRecipe, manifests: Sequence[Manifest]) -> Page:
    """Pool finished comparisons, one a seed."""
    seeds = [Seed.read(manifest) for manifest in manifests]
    names = [str(manifest.record.seed) for manifest in manifests]
    methods = [method.name for method in recipe.methods]
    headers = (
        "method", "against initial", "against sft", "at equal length", "KL from sft, nats", "KL from initial",
        "tokens", "updates", "policy tokens", "seconds",
    )  # fmt: skip
    rows = [_row(seeds, player) for player in ("initial", "sft", *methods)]
    against_sft = {player: [seed.scores[player, "sft"] for seed in seeds] for player in methods}
    by_seed = [
        (player, *(_percent(pooled_mean([scores])) for scores in given)) for player, given in against_sft.items()
    ]
    over_seeds: tuple[str, ...] = ()
    if len(seeds) >= FEWEST_SEEDS:
        over_seeds = ("mean of seeds",)
        by_seed = [(*row, _percent(mean_over_seeds(against_sft[row[0]]))) for row in by_seed]
    return Page(
        title=f"{recipe.name}: {len(methods)} methods, seed{'s' if len(names) > 1 else ''} {', '.join(names)}",
        headers=headers,
        rows=rows,
        seeds=(("against sft", *(f"seed {name}" for name in names), *over_seeds), by_seed),
        notes=_notes(recipe, seeds),
    )


def as_rich(page: Page) -> Table:
    table = Table(title=page.title, title_justify="left")
    for i, header in enumerate(page.headers):
        table.add_column(header, justify="right" if i else "left", overflow="fold")
    for row in page.rows:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))
    return table


def as_markdown(page: Page) -> str:
    tables = "\n".join(_markdown_table(*table) for table in ((page.headers, page.rows), page.seeds))
    return f"# {page.title}\n\n{tables}\n" + "\n".join(page.notes) + "\n"


def write_page(page: Page, path: Path) -> None:
    """One file without script or request; whatever a recipe is called is shown as text."""
    environment = Environment(
        loader=PackageLoader("postgrad.rounds", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    atomic_write(path, environment.get_template("compare.html.jinja").render(page=page))


def _row(seeds: Sequence[Seed], player: str) -> tuple[str, ...]:
    measured = {name: [seed.measures[player][name] for seed in seeds] for name in ("tokens", "kl", "kl_sft")}
    against = {
        other: [seed.scores[player, other] for seed in seeds] if (player, other) in seeds[0].scores else []
        for other in ("initial", "sft")
    }
    initial = _percent(pooled_mean(against["initial"])) if against["initial"] else DASH
    sft = equal = DASH
    if against["sft"] and player != "initial":
        longer: list[ByPrompt] = [
            {prompt: num - seed.measures["sft"]["tokens"][prompt] for prompt, num in tokens.items()}
            for seed, tokens in zip(seeds, measured["tokens"], strict=True)
        ]
        sft = _percent(pooled_mean(against["sft"]))
        equal = _percent(pooled_at_equal_length(against["sft"], longer))
    stages = [stage for seed in seeds if (stage := seed.manifest.find(player)) is not None]
    cost = [DASH] * 3
    if stages:
        cost = [
            f"{fmean(stage.policy_version or 0 for stage in stages):,.0f}",
            f"{fmean(stage.tokens.generated + stage.tokens.trained for stage in stages):,.0f}",
            f"{fmean(stage.seconds for stage in stages):,.0f}",
        ]
    tokens = pooled_mean(measured["tokens"])
    assert tokens is not None, "every player answers"
    return (
        player,
        initial,
        sft,
        equal,
        _nats(pooled_mean(measured["kl_sft"])),
        _nats(pooled_mean(measured["kl"])),
        f"{tokens[0]:.1f}",
        *cost,
    )


def _notes(recipe: CompareRecipe, seeds: Sequence[Seed]) -> list[str]:
    labels, budget, prompts = recipe.labels, recipe.budget, recipe.arena.num_prompts
    shared = [name for name in seeds[0].manifest.stages if name in ("samples", "labels", "edits", "reward")]
    spent = ", ".join(f"{name} {_seconds(seeds, name):,.0f}" for name in shared)
    asked = f"{_answered(seeds, 'labels', 'num_preferences'):,.0f} comparisons"
    if "edits" in shared:
        asked += f" and {_answered(seeds, 'edits', 'answers'):,.0f} answers to edit"
    stopped = [
        f"{seed.manifest.record.id}: {stage.name} was stopped ({stage.summary['stopped']})"
        for seed in seeds
        for stage in seed.manifest.record.stages
        if stage.summary.get("stopped")
    ]
    return [
        f"Budget of every method: {labels.num_prompts} labelled prompts, {budget.passes} times, "
        f"{budget.prompts_per_step} a step, with {labels.answers_per_prompt} answers to each, from the SFT policy.",
        f"Labels of a seed: {asked}.",
        f"Judged on {prompts} held-out prompts by {recipe.arena.num_raters} simulated raters that labelled nothing, in "
        "both orders.",
        "Win rates and KL with 95% bootstrap intervals over prompts; a prompt's seeds are one cluster.",
        f"A mean of seeds, of {FEWEST_SEEDS} or more, has a 95% t interval, for what other seeds would bring.",
        "Policy tokens are those sampled and those learned from; updates, policy tokens and seconds are means over "
        "seeds of the method's own stage.",
        f"Shared, seconds a seed: {spent}.",
        *stopped,
    ]


def _answered(seeds: Sequence[Seed], stage: str, key: str) -> float:
    return fmean(record.summary[key] for seed in seeds if (record := seed.manifest.find(stage)) is not None)


def _seconds(seeds: Sequence[Seed], stage: str) -> float:
    return fmean(record.seconds for seed in seeds if (record := seed.manifest.find(stage)) is not None)


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(found: Interval | None) -> str:
    return DASH if found is None else "{:.1%} [{:.1%}, {:.1%}]".format(*found)


def _nats(found: Interval | None) -> str:
    return DASH if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*(round(value, 2) + 0.0 for value in found))
