"""A small store with questions and people, for tests of the queue."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import create_engine, inspect, select, text

from postgrad.config.queue import QueueConfig
from postgrad.db.tables import AssignmentRow, TaskRow
from postgrad.feedback import audit
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Purpose, Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask
from postgrad.types import Conversation, Example, Message, SamplingParams

ROUND = "0001-test"
PEOPLE = ("ada", "bob", "cyd", "dee")
A_BETTER = {"tiers": [[0], [1]], "strength": 2}
B_BETTER = {"tiers": [[1], [0]], "strength": 2}
TIE = {"tiers": [[0, 1]]}


def plain(**changes: object) -> QueueConfig:
    """No gold, no repeats, no examination, unless a test asks for them."""
    return QueueConfig.model_validate({"gold_frac": 0, "repeat_frac": 0, **changes})


def fill(store: LabelStore, num: int, *, purpose: Purpose = "train", first: int = 0) -> list[str]:
    """Prompts with two answers each; the ids of their comparisons."""
    store.add_round(ROUND, recipe="test")
    store.add_raters("human", {person: {} for person in PEOPLE})
    names = [f"p{i}" for i in range(first, first + num)]
    store.add_prompts(Example(name, Conversation((Message("user", f"Say {name}."),))) for name in names)
    pairs = [store.add_samples(answer(name, f"{side} {name}", i) for i, side in enumerate("xy")) for name in names]
    return store.ask(pairs, purpose=purpose, round_id=ROUND)


def answer(prompt_id: str, text: str, policy_version: int = 0) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        round_id=ROUND,
        stage="rl",
        checkpoint="cd" * 32,
        policy_version=policy_version,
        params=SamplingParams(max_tokens=8),
        seed=7,
        text=text,
        token_ids=(1, 2),
        finish_reason="stop",
    )


def queue_of(store: LabelStore, num: int, *, overlap: int = 1, config: QueueConfig | None = None) -> LabelQueue:
    queue = LabelQueue(store, config or plain())
    comparisons = fill(store, num)
    queue.add([NewTask("compare", c, overlap=overlap) for c in comparisons], round_id=ROUND)
    return queue


def claim(queue: LabelQueue, person: str) -> Assigned:
    got = queue.claim(person)
    assert isinstance(got, Assigned), got
    return got


def finish(queue: LabelQueue, person: str, value: dict[str, Any], key: str = "") -> Assigned:
    got = claim(queue, person)
    queue.submit(got.id, person, shown(got, value), client_key=key or got.id)
    return got


def shown(got: Assigned, value: dict[str, Any]) -> dict[str, Any]:
    """An opinion on answers as one on their places on this person's screen."""
    if "tiers" not in value:
        return value
    return value | {"tiers": [[got.order.index(answer) for answer in tier] for tier in value["tiers"]]}


def talked(store: LabelStore, got: Assigned, turns: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Put turns into a conversation, as if they had been had; how many there are, for its label."""
    had = [{"strength": None, **turn} for turn in turns]
    with store.writing() as session:
        row = session.get_one(AssignmentRow, got.id)
        row.draft = {**(row.draft or {}), "turns": had}
    return {"turns": len(had)}


def everything(url: str) -> str:
    """All rows of all tables of a database."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        rows = "".join(repr(connection.execute(text(f'SELECT * FROM "{t}"')).all()) for t in tables)
    engine.dispose()
    return rows


def assert_places_add_up(store: LabelStore) -> None:
    """Every place of every task is free, leased or done, and the audit chain holds."""
    with store.reading() as session:
        for task in session.scalars(select(TaskRow).where(~TaskRow.gold)):
            states = list(
                session.scalars(
                    select(AssignmentRow.state).where(AssignmentRow.task_id == task.id, ~AssignmentRow.repeat)
                )
            )
            assert task.done == states.count("submitted")
            assert task.free == task.overlap - task.done - states.count("leased")
        assert audit.first_broken(session) is None
