"""What a round shows in the terminal: a bar for whatever is under way, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from postgrad.methods.sft import Progress as Report
from postgrad.rounds.dashboard import Dashboard, Lines, progress_bar, watch_stage
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.numbers import format_findings
from postgrad.run import RunDirectory


class Bars:
    """One live bar or dashboard at a time; leaving the context stops it, whatever happened.

    Args:
        console: where to draw.
        stages: names of all that will be announced, in order.
    """

    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        self._console = console
        self._stages = stages
        self._live: Progress | Dashboard | Lines | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def announce(self, stage: str) -> None:
        self.stop()
        self._console.print(f"[bold]{self._stages.index(stage) + 1}/{len(self._stages)}[/] {stage}")

    def open(self, title: str, run: RunDirectory | None = None) -> Report:
        """A bar that pulses until the first step says how many there are; its title alone where nobody watches.

        With the directory of a run that writes metrics, the view is a dashboard of them and their warnings.
        """
        self.stop()
        if run is not None:
            self._live = view = watch_stage(self._console, title, run)
            return view.report
        if not self._console.is_terminal:
            self._console.print(f"   {title}", highlight=False)
            return lambda done, total: None
        live = progress_bar(self._console)
        task = live.add_task(title, total=None)
        live.start()
        self._live = live

        def report(done: int, total: int) -> None:
            live.update(task, completed=done, total=total)
            if done >= total:
                live.stop()

        return report

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def summary_tables(manifest: Manifest) -> list[Table]:
    """Stages, policies, matches and verdict of a finished round; of another method, stages and what they found."""
    if manifest.record.method != "round":
        return [_stages(manifest), _findings(manifest)]
    summaries = {stage.name: stage.summary for stage in manifest.record.stages}
    return [_stages(manifest), _players(summaries["arena"]), _matches(summaries["arena"], summaries["gate"])]


def _stages(manifest: Manifest) -> Table:
    table = Table(title=f"round {manifest.record.id}", title_justify="left")
    for name, justify in (("stage", "left"), ("time", "right"), ("tokens", "right"), ("peak memory", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for stage in manifest.record.stages:
        tokens = stage.tokens.generated + stage.tokens.trained + stage.tokens.scored
        table.add_row(
            stage.name,
            f"{stage.seconds:.0f} s",
            f"{tokens:,}" if tokens else "",
            f"{stage.peak_memory_bytes / 1e9:.1f} GB",
        )
    seconds = sum(stage.seconds for stage in manifest.record.stages)
    peak = max(stage.peak_memory_bytes for stage in manifest.record.stages)
    table.add_section()
    table.add_row("all", f"{seconds / 60:.1f} min", "", f"{peak / 1e9:.1f} GB")
    return table


def _findings(manifest: Manifest) -> Table:
    """What `format_findings` says of every stage."""
    table = Table(title="what the stages found", title_justify="left")
    for name, justify in (("stage", "left"), ("quantity", "left"), ("value", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for stage in manifest.record.stages:
        for number, (key, value) in enumerate(format_findings(stage.summary)):
            table.add_row("" if number else stage.name, key.replace("_", " "), value)
        table.add_section()
    return table


def _players(arena: dict[str, Any]) -> Table:
    """One column a policy, so that it fits a narrow terminal."""
    table = Table(title="arena: held-out prompts, simulated raters", title_justify="left")
    table.caption = "* in no reward"
    table.caption_justify = "left"
    table.add_column("policy", overflow="fold")
    for player in arena["players"]:
        table.add_column(player, justify="right", overflow="fold")
    rows = list(arena["players"].values())
    measures = [arena["measures"][player] for player in arena["players"]]
    table.add_row("Elo", *(f"{row['elo']:.0f}" for row in rows))
    table.add_row("95% interval", *(f"{row['elo_low']:.0f} to {row['elo_high']:.0f}" for row in rows))
    table.add_row("tokens", *(f"{row['mean_tokens']:.1f}" for row in rows))
    table.add_row("cut off", *(f"{row['truncated_frac']:.0%}" for row in rows))
    table.add_row("constraints met", *(_share(measured.get("constraints_met")) for measured in measures))
    table.add_row("F1 with reference*", *(_share(measured.get("reference_f1")) for measured in measures))
    return table


def _matches(arena: dict[str, Any], gate: dict[str, Any]) -> Table:
    table = Table(
        title=f"verdict: {gate['verdict']}",
        title_justify="left",
        caption="; ".join(gate["reasons"]),
        caption_justify="left",
    )
    table.add_column("match", overflow="fold")
    for name in ("win / tie / loss", "win rate", "95% interval"):
        table.add_column(name, justify="right", overflow="fold")
    for pair in arena["pairs"]:
        table.add_row(
            f"{pair['a']} against {pair['b']}",
            f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
            f"{pair['win_rate']:.0%}",
            f"{pair['low']:.0%} to {pair['high']:.0%}",
        )
    return table


def _share(row: dict[str, float | None] | None) -> str:
    return "-" if row is None or row["mean"] is None else f"{row['mean']:.0%}"
