"""Questions that a program makes and checks: reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760) as examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from postgrad.config.questions import TaskConfig
from postgrad.data.mixture import normalise
from postgrad.errors import ConfigError
from postgrad.types import Conversation, Example, Message

SEEDS_PER_RECIPE_SEED = 10_000_000
"""Item i of a data set with seed s is made from s + i alone, so neighbouring seeds share nearly all their items."""
NUM_SEEDS = 400
DRAWS_PER_QUESTION = 50
"""After so many draws for each question that is wanted, the task is held to have no more different ones."""
REFUSALS = (TypeError, ValueError, AssertionError, AttributeError, LookupError)
"""How its data sets say that a configuration is wrong, some only when the first item is made."""


@dataclass(frozen=True)
class Task:
    """One data set's questions; no question is in two places, here or in another task made with it."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]


def make_tasks(tasks: Sequence[TaskConfig], *, system: str, seed: int) -> list[Task]:
    """The same arguments give the same questions, for one version of reasoning-gym.

    Args:
        tasks: which data sets, how configured, and how many questions of each.
        system: message put before every question; empty leaves it to the model's template.
        seed: of the recipe; half of its range of seeds is for held-out questions, the other for the rest.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such data set or configuration, or runs out of questions.
    """
    seen: set[str] = set()
    first = seed % NUM_SEEDS * SEEDS_PER_RECIPE_SEED
    head = (Message("system", system),) if system else ()
    heldout = [_distinct(task, first, task.num_heldout, seen) for task in tasks]
    made = []
    for task, rows in zip(tasks, heldout, strict=True):
        others = _distinct(task, first + SEEDS_PER_RECIPE_SEED // 2, task.shots + task.num_train, seen)
        shown = [
            message
            for entry in others[: task.shots]
            for message in (Message("user", entry["question"]), Message("assistant", entry["answer"]))
        ]
        before = (*head, *shown)
        made.append(
            Task(
                train=tuple(_example(task, "train", i, e, before) for i, e in enumerate(others[task.shots :])),
                heldout=tuple(_example(task, "heldout", i, e, before) for i, e in enumerate(rows)),
            )
        )
    return made


def task_dataset(name: str, config: dict[str, Any], *, seed: int, size: int) -> Any:
    """A reasoning-gym data set, which makes each of its items when it is asked for.

    Raises:
        ConfigError: reasoning-gym is not installed, or has no such data set or configuration.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError(
            "'data.tasks' needs reasoning-gym; install it with `pip install postgrad[reasoning]`"
        ) from None
    if name not in DATASETS:
        raise ConfigError(f"'data.tasks': reasoning-gym has no data set {name!r}; it has {', '.join(sorted(DATASETS))}")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **config)
    except REFUSALS as e:
        raise _refused(name, e) from None


def _refused(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"'data.tasks': reasoning-gym refuses the 'config' of {name!r}: {error}")


def _distinct(task: TaskConfig, first: int, wanted: int, seen: set[str]) -> list[dict[str, Any]]:
    """`wanted` entries whose questions are not in `seen`, to which they are added."""
    found: list[dict[str, Any]] = []
    for entry in _entries(task, first, wanted * DRAWS_PER_QUESTION):
        if len(found) == wanted:
            break
        key = normalise(entry["question"])
        if key not in seen:
            seen.add(key)
            found.append(entry)
    if len(found) < wanted:
        raise ConfigError(
            f"'data.tasks': {task.name!r} gave {len(found)} new questions of the {wanted} that were still wanted; "
            "lower 'num_train' or 'num_heldout', or widen its 'config'"
        )
    return found


def _entries(task: TaskConfig, first: int, size: int) -> Iterator[dict[str, Any]]:
    if size == 0:
        return
    dataset = task_dataset(task.name, task.config, seed=first, size=size)
    for i in range(size):
        try:
            entry = dataset[i]
        except REFUSALS as e:
            raise _refused(task.name, e) from None
        yield entry


def _example(task: TaskConfig, part: str, number: int, entry: dict[str, Any], before: tuple[Message, ...]) -> Example:
    return Example(
        id=f"{task.name}-{part}-{number}",
        prompt=Conversation((*before, Message("user", entry["question"]))),
        target=entry["answer"],
        metadata={"task": task.name, "config": json.dumps(task.config, sort_keys=True), "entry": entry},
    )
