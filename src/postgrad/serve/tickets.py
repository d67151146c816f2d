"""What callers want from the engine, which takes every request into the forward passes under way.

Here: how many may wait, whom a token belongs to, and an end to what nobody reads any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from postgrad.errors import EngineError
from postgrad.protocols import RolloutEngine
from postgrad.types import Completion, GenerationRequest

Event = int | Completion | BaseException


class Ticket:
    """What one caller wants: one prompt or several."""

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self.requests = tuple(requests)
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        """(index of the request, a token, or its completion, or why there is none)."""
        self.tasks: list[asyncio.Task[list[Completion]]] = []

    def cancel(self) -> None:
        """Stop paying for it."""
        for task in self.tasks:
            task.cancel()

    async def completions(self) -> list[Completion]:
        """All of them, in the order of the requests.

        Raises:
            BaseException: whatever the engine raised.
        """
        done: dict[int, Completion] = {}
        while len(done) < len(self.requests):
            index, event = await self.events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Completion):
                done[index] = event
        return [done[i] for i in range(len(self.requests))]


class Tickets:
    """The engine's only caller.

    Args:
        engine: answers calls that overlap, one for each request.
        max_waiting: most tickets that may wait for their first token.
    """

    def __init__(self, engine: RolloutEngine, *, max_waiting: int = 256) -> None:
        self.engine = engine
        self._max_waiting = max_waiting
        self._waiting: set[Ticket] = set()
        self._tasks: set[asyncio.Task[list[Completion]]] = set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def open(self, requests: Sequence[GenerationRequest]) -> Ticket | None:
        """A ticket whose requests are on their way; None if too many wait already."""
        if self.num_waiting >= self._max_waiting:
            return None
        ticket = Ticket(requests)
        self._waiting.add(ticket)
        for i, request in enumerate(ticket.requests):
            task = asyncio.create_task(self._generate(ticket, i, request))
            task.add_done_callback(partial(self._end, ticket, i))
            ticket.tasks.append(task)
        self._tasks.update(ticket.tasks)
        return ticket

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _generate(self, ticket: Ticket, index: int, request: GenerationRequest) -> list[Completion]:
        loop = asyncio.get_running_loop()

        def on_token(_: int, token: int) -> bool:
            loop.call_soon_threadsafe(self._put, ticket, index, token)
            return True

        return await self.engine.generate([request], on_token)

    def _end(self, ticket: Ticket, index: int, task: asyncio.Task[list[Completion]]) -> None:
        self._tasks.remove(task)
        error = EngineError("the server is stopping") if task.cancelled() else task.exception()
        self._put(ticket, index, error or task.result()[0])

    def _put(self, ticket: Ticket, index: int, event: Event) -> None:
        self._waiting.discard(ticket)
        ticket.events.put_nowait((index, event))
