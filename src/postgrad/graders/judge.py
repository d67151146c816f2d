"""A generative judge with a rubric as a grader: an answer is worth what it wins against its siblings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from itertools import permutations
from typing import Any, Protocol

from postgrad.types import Conversation, Group, Score

WON = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Opinion(Protocol):
    @property
    def winner(self) -> str | None:
        """One of `WON`, or None where the judge abstained."""
        ...


class PairJudge(Protocol):
    def judge(self, prompt: Conversation, first: str, second: str) -> Coroutine[Any, Any, Opinion]:
        """An opinion on two answers in the order in which they are shown; see `feedback.judges.Judge`."""
        ...


class JudgeGrader:
    """The mean over all siblings, each met in both orders, of 1 for a win, 1/2 for a tie and 0 for a loss.

    Both orders, so that a judge who likes what comes first gives nobody anything for it. Whom it abstained on in every
    meeting gets no score. All questions are asked from one event loop, so that those of several groups overlap.

    Args:
        judge: is asked n (n - 1) questions about a group of n.
        name: of its scores.
        weight: of its scores in the reward.
        aclose: closes what the judge holds open.
    """

    def __init__(
        self,
        judge: PairJudge,
        *,
        name: str = "judge",
        weight: float = 1.0,
        aclose: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.name = name
        self._judge = judge
        self._weight = weight
        self._loop = asyncio.new_event_loop()
        self._aclose = aclose
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"judge {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No question can be asked afterwards."""
        if self._aclose is not None:
            asyncio.run_coroutine_threadsafe(self._aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def grade(self, group: Group) -> Sequence[Score]:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._grade(group), self._loop))

    async def _grade(self, group: Group) -> list[Score]:
        texts = [t.turns[-1].completion.text for t in group.trajectories]
        meetings = list(permutations(range(len(texts)), 2))
        opinions = await asyncio.gather(
            *(self._judge.judge(group.example.prompt, texts[i], texts[j]) for i, j in meetings)
        )
        won: list[list[float]] = [[] for _ in texts]
        for (i, j), opinion in zip(meetings, opinions, strict=True):
            if opinion.winner is not None:
                won[i].append(WON[opinion.winner])
                won[j].append(1 - WON[opinion.winner])
        asked = 2 * (len(texts) - 1)
        return [
            Score(self.name, sum(w) / len(w) if w else None, self._weight, f"judged in {len(w)} of {asked} meetings")
            for w in won
        ]
