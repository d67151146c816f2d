"""What a reward model is least sure of, people are asked first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from sqlalchemy import select

from postgrad.db.tables import TaskRow
from postgrad.feedback.records import PURPOSES
from postgrad.feedback.store import LabelStore
from postgrad.types import Comparison


def waiting(store: LabelStore, *, round_id: str | None) -> Iterator[Comparison]:
    """Comparisons and rankings that still wait for somebody."""
    open_ = select(TaskRow.comparison_id).where(
        TaskRow.free > 0, TaskRow.state == "open", TaskRow.kind.in_(("compare", "rank"))
    )
    with store.reading() as session:
        wanted = set(session.scalars(open_))
    for purpose in PURPOSES:
        yield from (c for c in store.comparisons(purpose=purpose, round_id=round_id) if c.id in wanted)


def uncertainties(comparisons: Iterable[Comparison], rewards: Mapping[str, float]) -> dict[str, float]:
    """By comparison id; those of which an answer has no reward are left out.

    Args:
        comparisons: of any number of answers.
        rewards: by sample id.
    """
    known = (c for c in comparisons if all(source in rewards for source in c.sources))
    return {c.id: uncertainty([rewards[source] for source in c.sources]) for c in known}


def uncertainty(rewards: Sequence[float]) -> float:
    """4p(1-p), from 0 (sure) to 1 (a coin), where p = sigmoid(r_a - r_b); of a ranking, the mean over its pairs."""
    pairs = [1 / math.cosh((a - b) / 2) ** 2 for a, b in combinations(rewards, 2)]
    return sum(pairs) / len(pairs)
