"""`postgrad label stats`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store


@label_app.command()
def stats(
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    too_fast: Annotated[
        float, typer.Option(min=0, help="Seconds per hundred words shown, below which an answer is too fast.")
    ] = 0.0,
    json_: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say how far raters agree, and how good and how biased each of them is."""
    from rich.console import Console

    from postgrad.feedback.quality import quality
    from postgrad.feedback.quality_tables import quality_tables

    with open_store(workspace, db, must_exist=True) as store:
        found = quality(store, round_id=round_, too_fast_s=too_fast)
    if json_:
        sys.stdout.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
        return
    for table in quality_tables(found):
        Console().print(table)
