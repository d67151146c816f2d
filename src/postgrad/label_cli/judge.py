"""`postgrad label judge`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from postgrad.feedback.judges import Judge, JudgeSummary
    from postgrad.feedback.records import Purpose
    from postgrad.feedback.store import LabelStore
    from postgrad.types import Comparison


@label_app.command()
def judge(
    endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible API; its key is read from POSTGRAD_JUDGE_KEY.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="As the endpoint calls it.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Name or directory of a model to judge in this process instead.")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="Text file that says what makes an answer better.")] = None,
    purpose: Annotated[str, typer.Option(help="Of the comparisons: train, arena, exam or gold.")] = "train",
    round_: Annotated[str | None, typer.Option("--round", help="Id; all rounds if left out.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one attempt at an endpoint.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Another one is another rater.")] = 0,
) -> None:
    """Let a model judge the comparisons, each in both orders, beside the people."""
    from postgrad.feedback.judges import agreement_with_people, judge_comparisons, judge_id
    from postgrad.feedback.records import PURPOSES

    if (endpoint is None) == (checkpoint is None) or (endpoint is None) != (model is None):
        raise ConfigError("name a judge: --endpoint URL with --model NAME, or --checkpoint DIR")
    if purpose not in PURPOSES:
        raise ConfigError(f"--purpose {purpose!r} is not one of {', '.join(PURPOSES)}")
    with open_store(workspace, db, must_exist=True) as store:
        pairs, longer = _pairs(store, purpose, round_)

        async def run() -> tuple[str, JudgeSummary]:
            async with _open_judge(endpoint, model, checkpoint, _rubric(rubric), seed, timeout) as opened:
                rater_id = judge_id(opened)
                with _watched(_console()) as progress:
                    return rater_id, await judge_comparisons(
                        store, opened, pairs, rater_id=rater_id, concurrency=concurrency, progress=progress
                    )

        try:
            rater_id, summary = asyncio.run(run())
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; the same command goes on from here\n")
            raise typer.Exit(130) from None
        people = agreement_with_people(store, summary.combined, purpose=purpose, round_id=round_)
    _console().print(_judge_table(rater_id, summary, len(pairs), people))
    if longer:
        _console().print(f"left out: {longer} comparisons of more than two answers")


def _pairs(store: LabelStore, purpose: Purpose, round_id: str | None) -> tuple[list[Comparison], int]:
    """Comparisons of two answers, and how many there are of more."""
    found = list(store.comparisons(purpose=purpose, round_id=round_id))
    pairs = [c for c in found if len(c.answers) == 2]
    if not pairs:
        where = "" if round_id is None else f" in round {round_id!r}"
        raise ConfigError(
            f"there are no comparisons of two answers for {purpose!r}{where}; check --round and --purpose"
        )
    return pairs, len(found) - len(pairs)


def _rubric(path: Path | None) -> str:
    from postgrad.feedback.judge_prompt import RUBRIC, read_rubric

    return RUBRIC if path is None else read_rubric(path)


@asynccontextmanager
async def _open_judge(
    endpoint: str | None, model: str | None, checkpoint: str | None, rubric: str, seed: int, timeout_s: float
) -> AsyncIterator[Judge]:
    if checkpoint is not None:
        yield _local_judge(checkpoint, rubric, seed)
        return
    from postgrad.feedback.endpoint_judge import EndpointJudge

    assert endpoint is not None
    assert model is not None
    async with EndpointJudge(endpoint, model=model, rubric=rubric, seed=seed, timeout_s=timeout_s) as opened:
        yield opened


def _local_judge(checkpoint: str, rubric: str, seed: int) -> Judge:
    from postgrad.feedback.local_judge import LocalJudge
    from postgrad.models.pull import resolve
    from postgrad.run import sha256_tree
    from postgrad.serve.load import load_engine

    path = resolve(checkpoint)
    engine, renderer, context = load_engine(path)
    return LocalJudge(
        engine,
        renderer,
        context=context,
        model=path.name,
        checkpoint=sha256_tree(path),
        rubric=rubric,
        seed=seed,
    )


@contextmanager
def _watched(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the verdicts per second of this run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as live:
        task = live.add_task("", total=None, rate="")
        started: list[tuple[int, float]] = []

        def report(done: int, total: int) -> None:
            started.append((done, time.monotonic())) if not started else None
            before, since = started[0]
            seconds = time.monotonic() - since
            rate = f"{(done - before) / seconds:.1f}/s" if seconds and done > before else ""
            live.update(task, completed=done, total=total, rate=rate)

        yield report


def _judge_table(rater_id: str, summary: JudgeSummary, num: int, people: tuple[int, int]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("judge", Column(Text(rater_id), overflow="fold"))
    table.add_row("comparisons", f"{num}, each in both orders")
    table.add_row("judged", f"{summary.judged} of {2 * num} verdicts")
    table.add_row("abstained", str(sum(summary.abstained.values())))
    for reason, count in sorted(summary.abstained.items(), key=lambda item: -item[1])[:5]:
        table.add_row("", Text(f"{count}: {reason}"))
    table.add_row("flips", _share(summary.flips, len(summary.combined)))
    table.add_row("agrees with people", _share(*people))
    return table


def _share(part: int, whole: int) -> str:
    """With its 95% Wilson interval."""
    from postgrad.feedback.intervals import wilson_interval

    if whole == 0:
        return "nothing to compare"
    low, high = wilson_interval(part, whole)
    return f"{part} of {whole} ({part / whole:.1%}, 95% {low:.1%} to {high:.1%})"


def _console() -> Console:
    from rich.console import Console

    return Console()
