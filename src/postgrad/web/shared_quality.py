"""The quality of all labels, worked out once for all pages that show it: it takes seconds, and soon minutes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from nicegui import run
from sqlalchemy import func, select

from postgrad.db.tables import LabelRow
from postgrad.errors import PostgradError
from postgrad.feedback.quality import Quality, quality
from postgrad.feedback.queue import LabelQueue

REST: Final = 9.0
"""Times as long as it took, until it is worked out again: a tenth of the time at most goes into it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    found: Quality
    at: datetime
    seconds: float
    version: tuple[int, int]
    """Newest label and number of undone ones, before it was begun."""


class SharedQuality:
    """One for each server; used from its event loop alone."""

    def __init__(self, queue: LabelQueue) -> None:
        self._queue = queue
        self._running = False
        self._rest_until = 0.0
        self.latest: Measured | None = None

    async def freshen(self) -> None:
        """Work it out again if labels have changed; no more than one at a time, and not all the time."""
        if self._running or time.monotonic() < self._rest_until:
            return
        self._running = True
        try:
            self.latest = await run.io_bound(self._measure) or self.latest
        except PostgradError as e:
            _log.warning("the quality of labels is not known at the moment: %s", e)
        finally:
            self._running = False

    def _measure(self) -> Measured:
        version = self._version()
        if self.latest is not None and self.latest.version == version:
            return self.latest
        began = time.monotonic()
        found = quality(self._queue.store, too_fast_s=self._queue.config.too_fast_s)
        seconds = time.monotonic() - began
        self._rest_until = time.monotonic() + REST * seconds
        return Measured(found, datetime.now(UTC), seconds, version)

    def _version(self) -> tuple[int, int]:
        with self._queue.store.reading() as session:
            last = session.scalar(select(func.max(LabelRow.id))) or 0
            undone = select(func.count()).select_from(LabelRow).where(LabelRow.undone_at.is_not(None))
            return last, session.scalar(undone) or 0
