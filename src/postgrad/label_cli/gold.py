"""`postgrad label gold`."""

from __future__ import annotations

from typing import Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say, show

gold_app = typer.Typer(
    no_args_is_help=True,
    help="Tasks whose answers are known, to examine people by; those of a file come by `label import --gold`.",
)
label_app.add_typer(gold_app, name="gold")


@gold_app.command("make")
def gold_make(
    number: Annotated[int, typer.Argument(min=1, help="Most comparisons to turn into gold tasks.")],
    min_people: Annotated[int, typer.Option(min=1, help="Who named the winner, an adjudicator among them.")] = 3,
    round_: Annotated[str | None, typer.Option("--round", metavar="ID", help="All rounds, if left out.")] = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Turn comparisons on which people agree, or that were adjudicated, into gold tasks; they train nothing more."""
    from postgrad.feedback.gold import agreed, make_gold
    from postgrad.feedback.people import OPERATOR
    from postgrad.feedback.records import content_id

    with open_store(workspace, db, must_exist=True) as store:
        found = agreed(store, min_people=min_people, round_id=round_)
        by_hash = sorted(found, key=lambda one: content_id("gold", one.comparison_id))
        made = make_gold(store, by_hash[:number], by=OPERATOR)
    say(f"{made} of {len(found)} comparisons with a known answer are gold now, and no longer trained on")


@gold_app.command("list")
def gold_list(workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None) -> None:
    """List gold tasks with how people do on them, those with a doubtful answer first."""
    from postgrad.feedback.gold import gold_tasks
    from postgrad.feedback.quality_tables import percent

    with open_store(workspace, db, must_exist=True) as store:
        found = gold_tasks(store)
    rows = [
        (
            str(task.id), task.kind, task.round_id, "retired" if task.state == "closed" else task.state,
            " ".join(task.asked.split())[:60], percent(task.right), percent(task.competent_right),
            "most competent people get it wrong" if task.bad else "",
        )
        for task in found
    ]  # fmt: skip
    show(("task", "kind", "round", "state", "question", "right", "of the competent", "note"), rows)


@gold_app.command("retire")
def gold_retire(
    tasks: Annotated[list[int], typer.Argument(metavar="TASK...", help="Their numbers, as `list` shows them.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Ask gold tasks no more; what was answered on them pauses nobody from now on."""
    from postgrad.feedback.gold import retire
    from postgrad.feedback.people import OPERATOR

    with open_store(workspace, db, must_exist=True) as store:
        retire(store, tasks, by=OPERATOR)
    say(f"retired: {', '.join(map(str, sorted(set(tasks))))}")
