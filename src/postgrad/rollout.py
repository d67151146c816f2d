"""Examples and an engine to trajectories, and opinions on them. A failed rollout or grader is data, not a crash."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from postgrad.errors import EngineError, GraderError
from postgrad.protocols import Grader, RolloutEngine
from postgrad.text.template import Renderer
from postgrad.types import (
    Completion,
    Example,
    GenerationRequest,
    Group,
    SamplingParams,
    Score,
    Status,
    Trajectory,
    Turn,
)

GRADER_TIMEOUT_S = 300.0
"""Longest that a grader may take over one group."""
MAX_HUNG = 4
"""Grader calls that may hang at one time before the run ends: their threads cannot be killed and keep a core busy."""
FAILED = "failed: "
"""Begins the explanation of a score that a grader should have given and did not."""
_LARGEST = 3.4e38
"""Rewards become float32."""


async def rollout_groups(
    examples: Sequence[Example],
    engine: RolloutEngine,
    renderer: Renderer,
    params: SamplingParams,
    *,
    group_size: int,
    seed: int,
) -> list[Group]:
    """`group_size` single-turn answers to each example's prompt; a prompt that the engine refuses gives errored ones.

    An answer depends on its example, its place in the group and `seed`, not on the other examples. An example that
    comes twice is answered anew, as by further siblings.
    """
    prompts = [renderer.render_prompt(e.prompt) for e in examples]
    seen: Counter[str] = Counter()
    places: list[list[int]] = []
    for example in examples:
        first = group_size * seen[example.id]
        places.append(list(range(first, first + group_size)))
        seen[example.id] += 1
    requests = [
        [GenerationRequest(prompt, params, request_seed(seed, example.id, i)) for i in siblings]
        for example, prompt, siblings in zip(examples, prompts, places, strict=True)
    ]
    return [
        Group(
            example,
            tuple(
                _trajectory(f"{example.id}/{seed}/{i}", prompt, outcome)
                for i, outcome in zip(siblings, outcomes, strict=True)
            ),
        )
        for example, prompt, siblings, outcomes in zip(
            examples, prompts, places, await _sample(engine, requests), strict=True
        )
    ]


async def _sample(
    engine: RolloutEngine, requests: Sequence[Sequence[GenerationRequest]]
) -> list[Sequence[Completion | EngineError]]:
    """Completions by prompt, or the engine's complaint: halved until the prompts that it complains of are alone.

    Sampling again what stood beside them changes nothing, since a request's output depends on its seed alone.
    """
    flat = [request for siblings in requests for request in siblings]
    try:
        completions = iter(await engine.generate(flat))
    except EngineError as e:
        if len(requests) == 1:
            return [[e] * len(flat)]
        half = len(requests) // 2
        return [*await _sample(engine, requests[:half]), *await _sample(engine, requests[half:])]
    return [[next(completions) for _ in siblings] for siblings in requests]


def _trajectory(name: str, prompt: tuple[int, ...], outcome: Completion | EngineError) -> Trajectory:
    if isinstance(outcome, EngineError):
        return Trajectory(name, (), "errored", error=str(outcome))
    status: Status = "truncated" if outcome.finish_reason == "length" else "completed"
    return Trajectory(name, (Turn(prompt, outcome),), status)


async def grade_groups(groups: Sequence[Group], graders: Sequence[Grader]) -> list[Group]:
    """Every grader's scores added to every trajectory that did not fail.

    A grader that raises, or is silent for `GRADER_TIMEOUT_S`, has abstained from the whole group; a score that is not
    finite is an abstention too, never a number.

    Raises:
        GraderError: a grader did not return one score for each answer, or `MAX_HUNG` calls hang.
    """
    graded = []
    for group in groups:
        answered = [i for i, t in enumerate(group.trajectories) if t.status != "errored"]
        scores: dict[int, tuple[Score, ...]] = dict.fromkeys(answered, ())
        if answered:
            asked = replace(group, trajectories=tuple(group.trajectories[i] for i in answered))
            for grader in graders:
                for i, score in zip(answered, await _grade(grader, asked), strict=True):
                    scores[i] += (score,)
        trajectories = (replace(t, scores=t.scores + scores.get(i, ())) for i, t in enumerate(group.trajectories))
        graded.append(replace(group, trajectories=tuple(trajectories)))
    return graded


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str


async def _grade(grader: Grader, group: Group) -> list[Score]:
    """The grader runs in a thread with an event loop of its own, so that even one that never awaits can be left behind.

    A call that holds the interpreter's lock while it hangs (a regular expression that backtracks for ever) stops the
    timeout too: such functions belong in a `FunctionGrader`, whose process can be killed.
    """
    outcome: Future[Sequence[Score] | _Failure] = Future()
    timeout_s = GRADER_TIMEOUT_S
    name = f"grader {grader.name}"

    def work() -> None:
        try:
            outcome.set_result(asyncio.run(asyncio.wait_for(grader.grade(group), timeout_s)))
        except (Exception, SystemExit) as e:  # noqa: BLE001
            silent = isinstance(e, TimeoutError) and not str(e)
            outcome.set_result(_Failure(_silence(timeout_s) if silent else f"{type(e).__name__}: {e}"))

    outcome.set_running_or_notify_cancel()
    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        given = await asyncio.wait_for(asyncio.wrap_future(outcome), 1.1 * timeout_s)
    except TimeoutError:
        given = _Failure(_silence(timeout_s))
        if sum(thread.name == name for thread in threading.enumerate()) >= MAX_HUNG:
            raise GraderError(
                f"{MAX_HUNG} calls of grader {grader.name!r} hang, each for more than {timeout_s:g} s; give what it "
                "waits for a time limit and run the same command again"
            ) from None
    if isinstance(given, _Failure):
        return [Score(grader.name, None, explanation=FAILED + given.reason)] * len(group.trajectories)
    if not isinstance(given, Sequence) or not all(isinstance(s, Score) for s in given):
        raise GraderError(
            f"grader {grader.name!r} returned {given!r}, which is not a list of Score; return one an answer"
        )
    if len(given) != len(group.trajectories):
        raise GraderError(
            f"grader {grader.name!r} returned {len(given)} scores for {len(group.trajectories)} answers; "
            "return one for each, in their order"
        )
    return [_finite(score) for score in given]


def _silence(timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s"


def _finite(score: Score) -> Score:
    """The score, or an abstention where it would not be a number in float32."""
    if score.value is None:
        return score
    try:
        value, weight = float(score.value), float(score.weight)
    except (TypeError, ValueError):
        return Score(score.grader, None, explanation=f"{FAILED}the score {score.value!r} is not a number")
    if abs(value * weight) <= _LARGEST:
        return replace(score, value=value, weight=weight)
    return Score(score.grader, None, explanation=f"{FAILED}the score {value:g} with weight {weight:g} is not finite")


def request_seed(seed: int, example_id: str, sibling: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{example_id}\0{sibling}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
