"""A plain Python function as a grader, in a process of its own that is killed when it hangs or dies when it crashes."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from postgrad.errors import ConfigError, GraderError
from postgrad.types import Example, Group, Score

GradeAnswer = Callable[[Example, str], float | None]
"""(the example, an answer's text) to its score; None abstains."""


class FunctionGrader:
    """Asks the function about one answer after another; the process lives from call to call.

    Args:
        name: of its scores.
        function: defined at the top level of a module, or its process could not find it.
        weight: of its scores in the reward.
        timeout_s: longest that it may take over one group.

    Raises:
        ConfigError: the function cannot be found by name.
    """

    def __init__(self, name: str, function: GradeAnswer, *, weight: float = 1.0, timeout_s: float = 60.0) -> None:
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError):
            raise ConfigError(
                f"grader {name!r}: {function!r} cannot be handed to another process; define it with `def` at the top "
                "level of a module"
            ) from None
        self.name = name
        self._function = function
        self._weight = weight
        self._timeout_s = timeout_s
        self._child: tuple[BaseProcess, Connection] | None = None

    async def grade(self, group: Group) -> Sequence[Score]:
        """One score an answer.

        Raises:
            GraderError: the function raised, or its process ended.
            TimeoutError: it was killed after `timeout_s`.
        """
        fresh = self._child is None
        process, pipe = self._child = self._child or _start(self._function, self._timeout_s)
        try:
            if fresh:
                pipe.recv()  # what its module imports may take longer than the grading
            pipe.send((group.example, [t.turns[-1].completion.text for t in group.trajectories]))
            if not pipe.poll(self._timeout_s):
                self._forget(process, pipe)
                raise TimeoutError(f"no answer within {self._timeout_s:g} s; its process was killed")
            values: list[float | None] | str = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._forget(process, pipe)
            raise GraderError(f"its process ended with exit code {process.exitcode}") from None
        if isinstance(values, str):
            raise GraderError(values)
        return [Score(self.name, value, self._weight) for value in values]

    def _forget(self, process: BaseProcess, pipe: Connection) -> None:
        process.kill()
        process.join()
        pipe.close()
        self._child = None


def _start(function: GradeAnswer, timeout_s: float) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, timeout_s), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection, function: GradeAnswer, timeout_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends this process
    pipe.send("ready")
    while True:
        try:
            example, answers = pipe.recv()
        except EOFError:
            return
        # Nobody is left to kill this process if the run is killed meanwhile; the kernel then does.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s)
        try:
            pipe.send([function(example, answer) for answer in answers])
        except Exception as e:  # noqa: BLE001
            pipe.send(f"{type(e).__name__}: {e}")
        signal.setitimer(signal.ITIMER_REAL, 0)
