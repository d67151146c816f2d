"""What `postgrad bench` does, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from postgrad.bench import compare, tables
from postgrad.bench.compare import Report, Setup
from postgrad.bench.workloads import Workload, workloads
from postgrad.data.readers import read_examples
from postgrad.errors import ConfigError
from postgrad.run import atomic_write
from postgrad.types import Message

NUM_ROWS = 96
"""Conversations for SFT that are taken from the head of the file."""


def setup(model: Path, threads: int | None, peers: Path | None) -> Setup:
    return Setup(model, threads or compare.default_threads(), compare.default_device(), peers)


def plan(rows: Path, only: Sequence[str], against: Sequence[str], peers: Path | None) -> list[Workload]:
    """The workloads to run, after everything that can be wrong with the request.

    Raises:
        ConfigError: an unknown name, or a peer that is not there.
        DataError: `rows` cannot be read.
    """
    chosen = compare.choose(workloads(conversations(rows)), only, against)
    compare.check_peers(chosen, peers)
    return chosen


def conversations(source: Path) -> list[list[dict[str, Any]]]:
    """The first rows of a file as messages; a prompt with a reference answer is a conversation of two.

    Raises:
        DataError: the file cannot be read.
        ConfigError: no row of it has an answer to learn from.
    """
    found = []
    for example in read_examples(source):
        messages = [*example.prompt.messages, *example.completion]
        if messages[-1].role != "assistant" and example.target is not None:
            messages.append(Message("assistant", example.target))
        if messages[-1].role == "assistant":
            found.append([{"role": m.role, "content": m.content} for m in messages])
    if not found:
        raise ConfigError(f"--rows: no row of {str(source)!r} ends with an answer; name a file of demonstrations")
    return found[:NUM_ROWS]


def measure(
    chosen: Sequence[Workload], setup: Setup, *, repeats: int, save_to: Path | None, console: Console
) -> Report:
    """Run the plan behind a bar; what an interrupted run has measured by then is on the disk."""
    total = sum(1 for _ in compare.schedule(chosen, repeats))
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total)

        def begin(what: str) -> None:
            bars.update(task, description=what)
            if not console.is_terminal:
                console.print(what, highlight=False)

        def done(report: Report) -> None:
            bars.advance(task)
            if save_to is not None:
                report.save(save_to)

        return compare.measure(chosen, setup, repeats=repeats, progress=begin, save=done)


def read(paths: Sequence[Path]) -> Report:
    """Reports from the disk, as one."""
    return compare.joined([compare.read_report(path) for path in paths])


def show(report: Report, console: Console, markdown: Path | None) -> None:
    """Draw the tables, and write them as Markdown where that is wanted."""
    console.print(tables.heading(report), highlight=False)
    for table in tables.tables(report, spread=False):
        console.print(tables.rich_table(table))
    for note in tables.remarks(report):
        console.print(f"- {note}", highlight=False)
    if markdown is not None:
        atomic_write(markdown, tables.markdown(report))
