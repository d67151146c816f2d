"""The quality of labels is worked out once for all pages, and again only when labels have changed."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from workbench import A_BETTER, finish, queue_of

from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.store import LabelStore
from postgrad.web import shared_quality
from postgrad.web.shared_quality import SharedQuality


@pytest.fixture
def queue(url: str) -> Iterator[LabelQueue]:
    with LabelStore(url) as store:
        yield queue_of(store, 5)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread of each time that the quality was worked out."""
    found: list[str] = []
    real = shared_quality.quality

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(threading.current_thread().name)
        return real(*args, **kwargs)

    monkeypatch.setattr(shared_quality, "quality", counted)
    return found


def test_pages_share_one_and_it_follows_the_labels(
    queue: LabelQueue, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quality, "REST", 0.0)
    shared = SharedQuality(queue)

    async def three_pages() -> None:
        await asyncio.gather(*(shared.freshen() for _ in range(3)))

    def answers() -> int:
        asyncio.run(three_pages())
        assert shared.latest is not None
        return sum(shared.latest.found.labels.values())

    assert (answers(), answers(), len(runs)) == (0, 0, 1)
    finish(queue, "ada", A_BETTER)
    assert (answers(), answers(), len(runs)) == (1, 1, 2)
    queue.undo("ada")
    assert (answers(), len(runs)) == (0, 3)
    assert threading.main_thread().name not in runs


def test_it_rests_in_proportion_to_what_it_takes(
    queue: LabelQueue, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quality, "REST", 1e6)
    shared = SharedQuality(queue)
    asyncio.run(shared.freshen())
    finish(queue, "ada", A_BETTER)
    asyncio.run(shared.freshen())
    assert len(runs) == 1
