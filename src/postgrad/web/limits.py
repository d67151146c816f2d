"""So many requests in so many seconds, counted in this process."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import Final

_SWEEP_ABOVE: Final = 10_000
"""Keys at which those that nobody has used for a whole window are dropped."""


class SlidingWindow:
    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._taken: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Count a request; 0 where it may go on, else the seconds until one may, and it is not counted."""
        now = monotonic()
        with self._lock:
            if len(self._taken) > _SWEEP_ABOVE:
                self._taken = {k: t for k, t in self._taken.items() if t and t[-1] > now - self._seconds}
            taken = self._taken.setdefault(key, deque())
            while taken and taken[0] <= now - self._seconds:
                taken.popleft()
            if len(taken) >= self._limit:
                return taken[0] + self._seconds - now
            taken.append(now)
            return 0.0

    def give_back(self, key: str) -> None:
        """Forget the last request of `key`, which turned out to be harmless."""
        with self._lock:
            if self._taken.get(key):
                self._taken[key].pop()
