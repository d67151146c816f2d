"""`postgrad label add` and `postgrad label guideline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from postgrad.errors import ConfigError
from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say

if TYPE_CHECKING:
    from postgrad.feedback.values import Kind


@label_app.command("add")
def add(
    round_: Annotated[
        str, typer.Argument(metavar="ROUND", help="Id of the round whose comparisons people are to judge.")
    ],
    purpose: Annotated[str, typer.Option(help="Of the comparisons: train, arena or exam.")] = "train",
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


@label_app.command("talks")
def talks(
    prompts: Annotated[
        Path | None,
        typer.Argument(help="File of prompts, each one a conversation to have; a last user message is suggested."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="converse, or redteam, which asks for severity and harms too.")
    ] = "converse",
    instruction: Annotated[str, typer.Option(help="What the labeler is to do, in Markdown.")] = "",
    system: Annotated[str, typer.Option(help="System message of the policies, where no file is named.")] = "",
    harms: Annotated[str, typer.Option(help="By commas, for redteam: what may be named.")] = "",
    times: Annotated[int, typer.Option(min=1, help="Conversations about each prompt, also with the same person.")] = 1,
    overlap: Annotated[int, typer.Option(min=1, help="Different people for each conversation.")] = 1,
    priority: Annotated[int, typer.Option(help="Higher ones are asked first.")] = 0,
    round_: Annotated[str, typer.Option("--round", help="Id; made where there is none.")] = "talks",
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Put conversations with live policies into the queue."""
    from postgrad.data.readers import read_examples
    from postgrad.feedback.intake import BadRow, identifier
    from postgrad.feedback.queue import LabelQueue
    from postgrad.feedback.records import content_id
    from postgrad.feedback.tasks import NewTask
    from postgrad.types import Conversation, Example, Message

    named = tuple(harm.strip() for harm in harms.split(",") if harm.strip())
    if kind not in ("converse", "redteam"):
        raise ConfigError(f"--kind {kind!r} is not one of converse, redteam")
    if (kind == "redteam") != bool(named):
        raise ConfigError("--harms names what redteam asks about, such as --harms medical,privacy; converse has none")
    if prompts is not None and system:
        raise ConfigError("--system is for conversations without a file; put system messages into the file's prompts")
    if prompts is None and not instruction and not system:
        raise ConfigError("say what the conversation is about: --instruction, --system or a file of prompts")
    examples = read_examples(prompts) if prompts is not None else []
    if prompts is None:
        messages = (Message("system", system),) if system else ()
        examples = [Example(content_id("talk", system), Conversation(messages))]
    details: dict[str, Any] = {"harms": list(named)} if named else {}
    details |= {"instruction": instruction} if instruction else {}
    tasks = [
        NewTask(
            cast("Kind", kind),
            example.id,
            {**details, "number": i} if i else details,
            overlap=overlap,
            priority=priority,
        )
        for example in examples
        for i in range(times)
    ]
    try:
        identifier(round_, "--round")
    except BadRow as e:
        raise ConfigError(str(e)) from None
    with open_store(workspace, db) as store:
        store.ensure_round(round_, made_by="label talks")
        store.add_prompts(examples)
        new = LabelQueue(store).add(tasks, round_id=round_)
    say(f"{new} of {len(tasks)} conversations are new in the queue; next: postgrad label serve --policy MODEL")
