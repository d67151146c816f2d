"""`postgrad label stats`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store
from postgrad.label_cli.rewards import RewardModel, reward_model_directory, score_answers


@label_app.command()
def stats(
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    too_fast: Annotated[
        float, typer.Option(min=0, help="Seconds per hundred words shown, below which an answer is too fast.")
    ] = 0.0,
    reward_model: RewardModel = None,
    json_: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say how far raters agree, and how good and how biased each of them is."""
    from rich.console import Console

    from postgrad.feedback.quality import answered, quality
    from postgrad.feedback.quality_tables import quality_tables

    directory = None if reward_model is None else reward_model_directory(reward_model, workspace)
    with open_store(workspace, db, must_exist=True) as store:
        rewards = None
        if directory is not None:
            rewards = score_answers(store, answered(store, round_id=round_), directory)
        found = quality(store, round_id=round_, rewards=rewards, too_fast_s=too_fast)
    if json_:
        sys.stdout.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
        return
    for table in quality_tables(found):
        Console().print(table)
