"""Which prompts a method without a round learns from, and which it only asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from postgrad.config.questions import QuestionsConfig
from postgrad.data.mixture import split_of
from postgrad.data.readers import read_examples, with_system
from postgrad.data.tasks import Task, make_tasks
from postgrad.errors import DataError
from postgrad.rounds.context import check_constraints, write_lines
from postgrad.text.template import Renderer, check_fits
from postgrad.types import Example


def read_questions(cfg: QuestionsConfig, source: Path | None, *, seed: int) -> list[Task]:
    """Generated, or the rows of a file, a task in itself.

    A row whose `split` is "heldout" is held out, one of "heldout_unseen" is left to the rounds that know what to do
    with it, and one of another split is learned from; a row without a split goes by a hash of its text.

    Raises:
        DataError: the file cannot be read, or one part of it is empty.
        ConfigError: the tasks cannot be made.
    """
    if source is None:
        return make_tasks(cfg.tasks, system=cfg.system, seed=seed)
    parts: dict[str, list[Example]] = {"train": [], "heldout": [], "heldout_unseen": []}
    shares = {"train": 1 - cfg.heldout_share, "heldout": cfg.heldout_share}
    for example in read_examples(source):
        text = "\n".join(m.content for m in example.prompt.messages)
        split = example.metadata.get("split")
        part = split_of(text, shares, "heldout") if split is None else split if split in parts else "train"
        parts[part].append(with_system(example, cfg.system))
    for part in ("train", "heldout"):
        if not parts[part]:
            raise DataError(f"{source}: no row fell into the {part!r} part; add rows or change 'data.heldout_share'")
    return [Task(tuple(parts["train"]), tuple(parts["heldout"]))]


def check_judgeable(tasks: Sequence[Task]) -> None:
    """Refuse questions that the simulated raters could not judge answers to.

    Raises:
        DataError: names the first one.
    """
    for example in (e for task in tasks for e in (*task.heldout, *task.train)):
        try:
            check_constraints(example)
        except DataError as e:
            raise DataError(f"row {example.id!r}: {e}") from None


def write_questions(tasks: Sequence[Task], path: Path, renderer: Renderer, limit: int) -> None:
    """Keep which question is in which part; held-out ones must all fit, since all are counted.

    Raises:
        DataError: a question has more than `limit` tokens.
    """
    for task in tasks:
        for example in (*task.heldout, *task.train):
            check_fits(renderer.render_prompt(example.prompt, name=example.id), limit, f"question {example.id!r}")
    write_lines(
        path,
        (
            {"id": e.id, "part": part, "question": e.prompt.messages[-1].content, "target": e.target}
            for task in tasks
            for part, rows in (("train", task.train), ("heldout", task.heldout))
            for e in rows
        ),
    )
