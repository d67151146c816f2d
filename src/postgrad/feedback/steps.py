"""Solutions in steps with a verdict on each: the store's reviews, and TRL's stepwise rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from sqlalchemy import select

from postgrad.db.tables import LabelRow, PromptRow, RaterRow, TaskRow
from postgrad.feedback.codec import conversation_from_json
from postgrad.feedback.intake import MAX_MB, BadRow, BadRows, items, read_rows, text
from postgrad.feedback.pairs import prompt_id_of
from postgrad.feedback.store import LabelStore
from postgrad.types import Conversation, Message

StepVerdict = Literal["good", "neutral", "bad"]
_VERDICTS: Final[dict[bool, StepVerdict]] = {True: "good", False: "bad"}


@dataclass(frozen=True, slots=True)
class Solution:
    prompt_id: str
    prompt: Conversation
    steps: tuple[str, ...]
    verdicts: tuple[StepVerdict, ...]
    """Of the first steps; a reviewer stops where the rest was not read."""

    @property
    def right(self) -> bool:
        return "bad" not in self.verdicts


class Solutions(NamedTuple):
    found: list[Solution]
    empty: int
    """Left out, since a step has no text."""


def read_step_file(path: Path) -> Solutions:
    """TRL's stepwise supervision: `prompt`, `completions` (steps), `labels` (booleans).

    Raises:
        DataError: the file cannot be read, or holds rows in another form: all of them, by line.
    """
    bad, found, total, empty = BadRows(path), [], 0, 0
    for line, row in read_rows(path, max_mb=MAX_MB):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise row
            steps, labels = items(row, "completions", str), items(row, "labels", bool)
            if not steps or len(steps) != len(labels):
                raise BadRow(f"{len(steps)} 'completions' and {len(labels)} 'labels'")
            prompt = Conversation((Message("user", text(row, "prompt")),))
            verdicts = tuple(_VERDICTS[label] for label in labels)
        except BadRow as e:
            bad.add(line, e)
            continue
        if all(step.strip() for step in steps):
            found.append(Solution(prompt_id_of(prompt), prompt, tuple(steps), verdicts))
        else:
            empty += 1
    bad.check(total, skip=False)
    return Solutions(found, empty)


def read_reviews(store: LabelStore) -> Solutions:
    """Standing reviews by people and simulated raters; gold ones, whose verdicts are known, are not for training.

    Raises:
        StoreError: the store cannot be read.
    """
    query = (
        select(LabelRow.value, TaskRow.details, PromptRow)
        .join(TaskRow, TaskRow.id == LabelRow.task_id)
        .join(PromptRow, PromptRow.id == LabelRow.prompt_id)
        .join(RaterRow, RaterRow.id == LabelRow.rater_id)
        .where(LabelRow.kind == "review", LabelRow.undone_at.is_(None), RaterRow.kind != "model", ~TaskRow.gold)
        .order_by(LabelRow.id)
    )
    found, empty = [], 0
    with store.reading() as session:
        for value, details, prompt in session.execute(query):
            steps = tuple(details["steps"])
            if all(step.strip() for step in steps):
                conversation = conversation_from_json(prompt.conversation)
                found.append(Solution(prompt.id, conversation, steps, tuple(value["steps"])))
            else:
                empty += 1
    return Solutions(found, empty)
