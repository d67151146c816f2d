"""An export's chunks in order, all of one snapshot; those of many labels are made by several processes."""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack, suppress
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, Final, Self

from sqlalchemy import func, select

from postgrad.errors import PostgradError, StoreError
from postgrad.feedback.chunks import Chunk, Chunker, Plan
from postgrad.feedback.pages import PAGE, snapshot
from postgrad.feedback.store import LabelStore

HELPERS: Final = 2
"""Processes that read, where there are so many cores; each takes about 100 MB."""
MANY: Final = 20_000
"""Labels from which starting them pays."""
_AHEAD: Final = 2
"""Pages that a process is asked for before it has delivered the first."""
_STOP_S: Final = 5.0

Range = tuple[int, int]


def chunked(store: LabelStore, plan: Plan) -> Generator[tuple[Chunk, float]]:
    """Chunks in the order of submission, each with how much of the store lies behind it, from 0 to 1.

    Raises:
        StoreError: also when a process that reads was killed.
    """
    with store.reading() as session:
        connection, span = snapshot(session)
        # Ranges of ids, because a LIMIT would tempt a planner to start from another table and sort all for every page.
        url = _for_helpers(store, plan)
        if url is None or span[1] - span[0] < MANY:
            chunker = Chunker(connection, plan)
            for first, last in _ranges(span):
                yield chunker.chunk(first, last), _behind(last, span)
            return
    with ExitStack() as stack:
        helpers = [stack.enter_context(_Helper(url, plan)) for _ in range(HELPERS)]
        span = _begun(store, helpers)
        waiting: deque[tuple[_Helper, int]] = deque()
        for i, (first, last) in enumerate(_ranges(span)):
            if len(waiting) == _AHEAD * HELPERS:
                yield _next(waiting, span)
            helper = helpers[i % HELPERS]
            helper.send((first, last))
            waiting.append((helper, last))
        while waiting:
            yield _next(waiting, span)


def _for_helpers(store: LabelStore, plan: Plan) -> str | None:
    """What helpers are to read; None where they could not, or too few cores or too little memory are left for them."""
    if (os.cpu_count() or 1) < HELPERS or plan.format_name == "parquet":  # pyarrow alone takes 100 MB
        return None
    return store.url


def _ranges(span: Range) -> Iterable[Range]:
    return ((start, min(start + PAGE - 1, span[1])) for start in range(span[0], span[1] + 1, PAGE))


def _behind(last: int, span: Range) -> float:
    return (last + 1 - span[0]) / (span[1] + 1 - span[0])


def _next(waiting: deque[tuple[_Helper, int]], span: Range) -> tuple[Chunk, float]:
    helper, last = waiting.popleft()
    return helper.receive(), _behind(last, span)


def _begun(store: LabelStore, helpers: list[_Helper]) -> Range:
    """Have all begin to read at one moment in which nobody writes; the span of the labels that they see."""
    for helper in helpers:
        helper.receive()
    with store.writing() as session:
        is_postgresql = session.connection().dialect.name == "postgresql"  # from here on SQLite's writers wait
        name = session.scalar(select(func.pg_export_snapshot())) if is_postgresql else None
        for helper in helpers:
            helper.send(name)
        spans: list[Range] = [helper.receive() for helper in helpers]
    assert len(set(spans)) == 1
    return spans[0]


class _Helper:
    """A process that makes chunks; what it was asked for it delivers in that order.

    An interpreter of its own rather than one of `multiprocessing`, which would run a caller's script a second time.
    """

    def __init__(self, url: str, plan: Plan) -> None:
        command = [sys.executable, "-P", "-c", "from postgrad.feedback.chunked import serve; serve()"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # A session of its own, because Ctrl-C is for the export, which then closes the pipes.
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, env=env, start_new_session=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._given = self._process.stdin, self._process.stdout
        self.send((url, plan))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in (self._asked, self._given):
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_STOP_S)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send(self, asked: Any) -> None:
        try:
            pickle.dump(asked, self._asked)
            self._asked.flush()
        except OSError:
            raise self._ended() from None

    def receive(self) -> Any:
        try:
            found = pickle.load(self._given)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._ended() from None
        if isinstance(found, PostgradError):
            raise found
        return found

    def _ended(self) -> StoreError:
        self._process.kill()
        return StoreError(
            f"a process that read labels for the export ended with exit code {self._process.wait()}; "
            "no file was written, run the same command again"
        )


def serve() -> None:
    """What a helper does until its input ends."""
    asked, given = sys.stdin.buffer, sys.stdout.buffer

    def send(found: Any) -> None:
        pickle.dump(found, given)
        given.flush()

    try:
        url, plan = pickle.load(asked)
        with LabelStore(url) as store, store.reading() as session:
            send("connected")
            connection, span = snapshot(session, pickle.load(asked))
            send(span)
            chunker = Chunker(connection, plan)
            while True:
                send(chunker.chunk(*pickle.load(asked)))
    except PostgradError as e:
        send(e)
    except (EOFError, BrokenPipeError):
        return
