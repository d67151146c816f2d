"""`postgrad label route`."""

from __future__ import annotations

from typing import Annotated

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say, show
from postgrad.label_cli.rewards import REWARD_MODEL_HELP, reward_model_directory, score_answers

BINS = 5


@label_app.command("route")
def route(
    reward_model: Annotated[str, typer.Option(metavar="MODEL", help=REWARD_MODEL_HELP)],
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Have people compare first what a reward model is least sure of."""
    from postgrad.feedback.queue import LabelQueue
    from postgrad.feedback.routing import uncertainties, waiting

    directory = reward_model_directory(reward_model, workspace)
    with open_store(workspace, db, must_exist=True) as store:
        asked = list(waiting(store, round_id=round_))
        if not asked:
            raise ConfigError("no comparison waits in the queue; fill it with `postgrad label add ROUND`")
        found = uncertainties(asked, score_answers(store, asked, directory))
        changed = LabelQueue(store).prioritise(found)
    binned = [min(BINS - 1, int(BINS * value)) for value in found.values()]
    rows = [(f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}", str(binned.count(i))) for i in reversed(range(BINS))]
    show(("uncertainty", "comparisons"), rows)
    say(f"{changed} tasks have a new priority, from 100 (as unsure as a coin) to 0")
    if left := len(asked) - len(found):
        say(f"left as they were: {left} comparisons with an answer that does not fit the model's context")
