"""`postgrad label stats`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store
from postgrad.label_cli.rewards import RewardModel, reward_model_directory, score_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from postgrad.evals.influence import Standing


@label_app.command()
def stats(
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    by: Annotated[str | None, typer.Option(help="Agreement by week, round or rater, too.")] = None,
    too_fast: Annotated[
        float, typer.Option(min=0, help="Seconds per hundred words shown, below which an answer is too fast.")
    ] = 0.0,
    reward_model: RewardModel = None,
    json_: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say how far raters agree, and how good and how biased each of them is."""
    from rich.console import Console

    from postgrad.evals.influence import influence
    from postgrad.feedback.quality import judgements, quality
    from postgrad.feedback.quality_tables import quality_tables, slice_table
    from postgrad.feedback.slices import BYS, slices

    wanted = next((known for known in BYS if known == by), None)
    if by is not None and wanted is None:
        raise ConfigError(f"--by {by!r} is not one of {', '.join(BYS)}")
    directory = None if reward_model is None else reward_model_directory(reward_model, workspace)
    with open_store(workspace, db, must_exist=True) as store:
        judged = judgements(store, round_id=round_)
        rewards = None
        if directory is not None:
            asked = {j.comparison.id: j.comparison for j in judged}
            rewards = score_answers(store, list(asked.values()), directory)
        found = quality(store, round_id=round_, rewards=rewards, too_fast_s=too_fast)
    sliced = slices(judged, wanted) if wanted else []
    standings = influence(j for j in judged if j.purpose == "arena")
    if json_:
        more = {"by": [asdict(one) for one in sliced], "influence": [asdict(one) for one in standings]}
        sys.stdout.write(json.dumps(asdict(found) | more, ensure_ascii=False) + "\n")
        return
    tables = [*quality_tables(found), *([slice_table(sliced, wanted)] if wanted else [])]
    for table in [*tables, *([_influence_table(standings)] if standings else [])]:
        Console().print(table)


def _influence_table(standings: Sequence[Standing]) -> Table:
    """The three raters whose absence changes a win rate most."""
    from rich.table import Table

    table = Table("round", "raters", "players", "win rate", "Elo", "most changed without", title="Influence of raters")
    for one in standings:
        most = sorted(one.without.items(), key=lambda item: -abs(item[1][0]))[:3]
        changes = "; ".join(f"{name} {win_rate:+.1%}, {elo:+.0f} Elo" for name, (win_rate, elo) in most)
        table.add_row(
            one.round_id, one.raters, f"{one.a} over {one.b}", f"{one.win_rate:.1%}", f"{one.elo:+.0f}", changes
        )
    return table
