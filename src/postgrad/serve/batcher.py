"""Requests that wait together are generated together.

A request that comes while a batch runs waits for the batch to end; there is no continuous batching here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from postgrad.protocols import RolloutEngine
from postgrad.types import Completion, GenerationRequest

Event = int | Completion | BaseException


class Ticket:
    """What one caller wants: one prompt or several. Set `cancelled` to stop paying for it."""

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self.requests = tuple(requests)
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        """(index of the request, a token, or its completion, or why there is none)."""
        self.cancelled = False

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


class Batcher:
    """The engine's only caller.

    Args:
        engine: called from one task, never twice at a time.
        window_s: how long the first of a batch waits for company.
        max_batch: most requests of a batch, except that a ticket is never split.
        max_waiting: most tickets that may wait.
    """

    def __init__(
        self, engine: RolloutEngine, *, window_s: float = 0.005, max_batch: int = 32, max_waiting: int = 256
    ) -> None:
        self.engine = engine
        self._window_s = window_s
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[Ticket] = asyncio.Queue(max_waiting)
        self._running: list[Ticket] = []

    @property
    def num_waiting(self) -> int:
        return self._waiting.qsize()

    def submit(self, ticket: Ticket) -> bool:
        """Queue a ticket; False if too many wait already."""
        if self._waiting.full():
            return False
        self._waiting.put_nowait(ticket)
        return True

    async def run(self) -> None:
        """Serve tickets until cancelled; then the running batch is told to stop."""
        try:
            while True:
                first = await self._waiting.get()
                await asyncio.sleep(self._window_s)
                self._running = self._gather(first)
                if self._running:
                    await self._generate(self._running)
        finally:
            for ticket in self._running:
                ticket.cancelled = True

    def _gather(self, first: Ticket) -> list[Ticket]:
        tickets = [first]
        while not self._waiting.empty() and sum(len(t.requests) for t in tickets) < self._max_batch:
            tickets.append(self._waiting.get_nowait())
        return [ticket for ticket in tickets if not ticket.cancelled]

    async def _generate(self, tickets: Sequence[Ticket]) -> None:
        loop = asyncio.get_running_loop()
        places = [(ticket, i) for ticket in tickets for i in range(len(ticket.requests))]

        def on_token(index: int, token: int) -> bool:
            ticket, i = places[index]
            loop.call_soon_threadsafe(ticket.events.put_nowait, (i, token))
            return not ticket.cancelled

        work = asyncio.ensure_future(self.engine.generate([t.requests[i] for t, i in places], on_token))
        await asyncio.wait({work})
        error = work.exception()
        for index, (ticket, i) in enumerate(places):
            ticket.events.put_nowait((i, error or work.result()[index]))
