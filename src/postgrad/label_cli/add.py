"""`postgrad label add` and `postgrad label guideline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say


@label_app.command("add")
def add(
    round_: Annotated[
        str, typer.Argument(metavar="ROUND", help="Id of the round whose comparisons people are to judge.")
    ],
    purpose: Annotated[str, typer.Option(help="Of the comparisons: train or arena.")] = "train",
    overlap: Annotated[int, typer.Option(min=1, help="Different people for each question.")] = 1,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the questions that so many answer; the rest, one.")
    ] = 1.0,
    priority: Annotated[int, typer.Option(help="Higher ones are asked first.")] = 0,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Put a round's comparisons into the queue."""
    from postgrad.feedback.queue import LabelQueue
    from postgrad.feedback.records import PURPOSES
    from postgrad.feedback.tasks import coverage

    if purpose not in PURPOSES:
        raise ConfigError(f"--purpose {purpose!r} is not one of {', '.join(PURPOSES)}")
    with open_store(workspace, db, must_exist=True) as store:
        asked = [c.id for c in store.comparisons(purpose=purpose, round_id=round_) if len(c.answers) == 2]
        if not asked:
            raise ConfigError(
                f"round {round_!r} has no comparisons of two answers for {purpose}; see `postgrad rounds`"
            )
        tasks = coverage(asked, overlap=overlap, share=share, priority=priority)
        new = LabelQueue(store).add(tasks, round_id=round_)
    say(f"{new} of {len(asked)} questions are new in the queue; next: postgrad label serve")


@label_app.command("guideline")
def guideline(
    file: Annotated[Path, typer.Argument(help="Markdown; becomes the next version, which labels name from now on.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Tell people what a good answer is."""
    from postgrad.feedback.people import People
    from postgrad.feedback.queue import LabelQueue

    text = file.read_text(encoding="utf-8")
    with open_store(workspace, db) as store:
        version = LabelQueue(store).add_guideline(text, author_id=People(store).local().id)
    say(f"version {version} is what people see now")
