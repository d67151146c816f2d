"""Calls that overlap: who joins when, who ends when, and who shares whose fate."""

import asyncio
import threading

import pytest
from small import CONTEXT, random_model, tokens

from postgrad.engine.local import LocalEngine
from postgrad.errors import EngineError
from postgrad.types import GenerationRequest, SamplingParams

WAIT_S = 60
"""For what comes in milliseconds unless something is broken."""


class WatchedEngine(LocalEngine):
    """Calls `watch(seed, number of tokens)` before it takes a token in."""

    def __init__(self, watch=lambda seed, num: None, *, max_batch=64):
        self.watch = lambda seed, num: None
        self.order = []
        super().__init__(random_model(), stop_ids=[], decode=str, max_batch=max_batch)
        self.watch = watch
        self.order = []

    def advance(self, sequence, token, logprob):
        self.order.append(sequence.request.seed)
        self.watch(sequence.request.seed, len(sequence.ids) + 1)
        super().advance(sequence, token, logprob)


def request(seed, max_tokens, *, prompt=5):
    return GenerationRequest(tuple(tokens(prompt, seed=seed)), SamplingParams(max_tokens=max_tokens), seed)


def alone(request):
    return WatchedEngine().sample([request])[0]


async def start(engine, *requests):
    """A call whose requests lie in the engine's queue."""
    call = asyncio.create_task(engine.generate(requests, lambda index, token: True))
    await asyncio.sleep(0)
    return call


async def reach(engine, order):
    while engine.order != order:
        await asyncio.sleep(0.001)


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def assert_same(found, expected):
    assert found.token_ids == expected.token_ids
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_a_late_short_request_joins_at_the_next_token_and_is_answered_before_the_early_long_one():
    queued, answered = threading.Event(), threading.Event()

    def watch(seed, num):
        if seed == 1 and num in (3, 20):
            assert (queued if num == 3 else answered).wait(WAIT_S)

    engine = WatchedEngine(watch)
    early, late = request(1, 30), request(2, 5)

    async def scenario():
        long = await start(engine, early)
        await reach(engine, [1, 1, 1])
        short = await start(engine, late)
        queued.set()
        (quick,) = await short
        assert not long.done()
        answered.set()
        return quick, (await long)[0]

    quick, slow = run(scenario)
    assert engine.order == [1] * 3 + [1, 2] * 5 + [1] * 22
    assert_same(quick, alone(late))
    assert_same(slow, alone(early))


def test_a_cancelled_call_stops_at_its_token_and_its_row_goes_to_the_next_that_still_waits():
    queued, cancelled = threading.Event(), threading.Event()

    def watch(seed, num):
        if seed == 1 and num in (1, 3):
            assert (queued if num == 1 else cancelled).wait(WAIT_S)

    engine = WatchedEngine(watch, max_batch=2)

    async def scenario():
        running = await start(engine, request(1, 20))
        await reach(engine, [1])
        neighbour, waiting, patient = [await start(engine, request(seed, 20)) for seed in (2, 3, 4)]
        queued.set()
        await reach(engine, [1, 1, 2, 1])
        for call in (running, waiting):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        cancelled.set()
        return *await neighbour, *await patient

    for found, seed in zip(run(scenario), (2, 4), strict=True):
        assert_same(found, alone(request(seed, 20)))
    assert engine.order == [1, 1, 2, 1, 2] + [2, 4] * 18 + [4] * 2


def test_a_forward_pass_that_fails_is_the_failure_of_those_in_it_alone():
    queued, failed_thrice, failures = threading.Event(), threading.Event(), []
    good, bad = [request(2, 4), request(3, 9)], request(13, 9)
    engine = WatchedEngine(lambda seed, num: queued.wait(WAIT_S), max_batch=3)

    def fail(body, args, kwargs):
        if set(bad.prompt_ids) <= set(kwargs["input_ids"][0].tolist()):
            failures.append(bad)
            if len(failures) == 3:
                failed_thrice.set()
            raise RuntimeError("out of memory")

    engine.model.body.register_forward_pre_hook(fail, with_kwargs=True)

    async def scenario():
        early = await start(engine, request(1, 20))
        await reach(engine, [1])
        failing, late = [await start(engine, *requests) for requests in ([bad] * 8, good)]
        queued.set()
        # The loop stands still, so nobody has yet cancelled those of the failing call that wait.
        assert failed_thrice.wait(WAIT_S)
        for call in (early, failing):
            with pytest.raises(RuntimeError, match="out of memory"):
                await call
        answers = await late
        await engine.generate([request(4, 2)], lambda index, token: True)
        return answers

    for found, expected in zip(run(scenario), good, strict=True):
        assert_same(found, alone(expected))


def test_what_is_left_of_a_call_that_failed_is_not_sampled():
    raised = threading.Event()

    def watch(seed, num):
        if engine.order == [13]:
            raise RuntimeError("out of memory")
        assert raised.wait(WAIT_S)

    engine = WatchedEngine(watch, max_batch=1)

    async def scenario():
        failing = await start(engine, *[request(13, 9)] * 3)
        with pytest.raises(RuntimeError, match="out of memory"):
            await failing
        raised.set()
        await engine.generate([request(4, 1)], lambda index, token: True)

    run(scenario)
    assert engine.order.count(13) <= 2, "the second had begun"


def test_a_request_that_does_not_fit_is_refused_at_once_and_alone():
    refused = threading.Event()
    engine = WatchedEngine(lambda seed, num: refused.wait(WAIT_S))

    async def scenario():
        running = await start(engine, request(1, 8))
        with pytest.raises(EngineError, match=f"a prompt of 5 tokens plus {CONTEXT} .* context of {CONTEXT}"):
            await (await start(engine, request(2, CONTEXT)))
        refused.set()
        return (await running)[0]

    assert_same(run(scenario), alone(request(1, 8)))
    assert engine.order == [1] * 8
