"""`postgrad label export` and `postgrad label import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store


@label_app.command("export")
def export(
    target: Annotated[
        Path, typer.Argument(help="A directory, or a file with the format's suffix; .jsonl.gz is compressed.")
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="native, trl-preference, trl-unpaired, trl-prompt-completion, trl-stepwise, openai-sft, openai-dpo, "
            "hh, arena, csv or parquet.",
        ),
    ] = "native",
    db: Database = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    round_: Annotated[str | None, typer.Option("--round", help="Only this round's labels.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="train, arena or gold; train if left out, where the format is for training.")
    ] = None,
    rater_kind: Annotated[
        list[str] | None,
        typer.Option(help="human, simulated or model. Repeatable; human if left out, native and tables take all."),
    ] = None,
    valid_share: Annotated[float, typer.Option(min=0, max=1, help="Of the prompts, held out in valid.")] = 0.05,
) -> None:
    """Write labels to files, with a manifest beside them."""
    from rich.console import Console
    from rich.progress import Progress

    from postgrad.feedback.exports import export_labels
    from postgrad.feedback.pages import Filters
    from postgrad.feedback.records import PURPOSES, RATER_KINDS

    for option, given, known in (("--purpose", [purpose] if purpose else [], PURPOSES),
                                 ("--rater-kind", rater_kind or [], RATER_KINDS)):  # fmt: skip
        if odd := [name for name in given if name not in known]:
            raise ConfigError(f"{option} {odd[0]!r} is not one of {', '.join(known)}")
    wanted: Any = (round_, purpose, tuple(rater_kind or ()))
    console = Console()
    with open_store(workspace, db, must_exist=True) as store, Progress(console=console, transient=True) as bar:
        task = bar.add_task("exporting", total=1.0)
        manifest = export_labels(
            store,
            target,
            format_,
            filters=Filters(*wanted),
            valid_share=valid_share,
            on_page=lambda done: bar.update(task, completed=done),
        )
    for file in manifest.files:
        console.print(f"{file['name']}: {file['rows']} rows", markup=False, highlight=False)
    console.print(
        f"{manifest.labels} labels, {manifest.without_rows} of which {format_} can say nothing",
        markup=False,
        highlight=False,
    )


@label_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines or one JSON list, perhaps gzipped.")],
    format_: Annotated[
        str, typer.Option("--format", help="native, prompts, questions, hh, webgpt, label-studio or argilla.")
    ] = "native",
    db: Database = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    round_: Annotated[str, typer.Option("--round", help="To put questions in; native files name their own.")] = (
        "imported"
    ),
    kind: Annotated[
        str | None,
        typer.Option(help="Of the tasks that questions without judgement become: compare, edit, write or converse."),
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, help="Different people who are to answer each task.")] = 1,
    rater_kind: Annotated[str, typer.Option(help="Who judged: human, simulated or model.")] = "human",
    gold: Annotated[
        bool, typer.Option("--gold", help="Judged questions become gold tasks, on which nothing is ever trained.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the good rows where some are bad, and end with exit code 1.")
    ] = False,
    max_mb: Annotated[int, typer.Option(min=1, help="Refuse a file that is longer once it is uncompressed.")] = 4096,
) -> None:
    """Read labels, or questions for the queue, from a file."""
    from rich.console import Console

    from postgrad.feedback.imports import Settings, import_labels
    from postgrad.feedback.records import RATER_KINDS

    if rater_kind not in RATER_KINDS:
        raise ConfigError(f"--rater-kind {rater_kind!r} is not one of {', '.join(RATER_KINDS)}")
    wanted: Any = (round_, kind, overlap, rater_kind, max_mb, gold, skip_bad)
    console = Console()
    with open_store(workspace, db) as store, console.status("importing"):
        found = import_labels(store, source, format_, Settings(*wanted))
    console.print(f"{found.rows} rows: {found.labels} labels, {found.tasks} new tasks", markup=False, highlight=False)
    if found.skipped:
        sys.stderr.write("".join(f"{line}\n" for line in (f"{found.skipped} rows were left out:", *found.bad)))
        raise typer.Exit(1)
