"""`postgrad label`: the labelling queue from the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

label_app = typer.Typer(no_args_is_help=True, help="Collect labels from people: serve, import, export, stats.")


@label_app.command()
def stats(
    workspace: Annotated[
        Path, typer.Option(envvar="POSTGRAD_WORKSPACE", help="Holds the labels, unless --db does.")
    ] = Path("workspace"),
    db: Annotated[str | None, typer.Option(help="URL of the label store: sqlite:///FILE or postgresql://...")] = None,
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    too_fast: Annotated[
        float, typer.Option(min=0, help="Seconds per hundred words shown, below which an answer is too fast.")
    ] = 0.0,
    json_: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say how far raters agree, and how good and how biased each of them is."""
    from rich.console import Console

    from postgrad.db.engine import sqlite_url
    from postgrad.errors import StoreError
    from postgrad.feedback.quality import quality
    from postgrad.feedback.quality_tables import quality_tables
    from postgrad.feedback.store import LabelStore

    path = workspace / "postgrad.db"
    if db is None and not path.is_file():
        raise StoreError(f"workspace {str(workspace)!r} holds no labels; name another, or a database with --db")
    with LabelStore(db or sqlite_url(path)) as store:
        found = quality(store, round_id=round_, too_fast_s=too_fast)
    if json_:
        sys.stdout.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
        return
    for table in quality_tables(found):
        Console().print(table)
