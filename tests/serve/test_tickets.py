"""The application without a network, in the test's own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import httpx
from fastapi import FastAPI
from tiny_server import CONTEXT, tiny_engine

from postgrad.serve.api import create_app
from postgrad.testing import byte_tokenizer
from postgrad.text import Renderer
from postgrad.types import Completion, GenerationRequest, SamplingParams

WAIT_S = 60
"""For what comes in milliseconds unless something is broken."""


class SlowEngine:
    """Gives everybody a token and an answer when told to, and nothing before."""

    version = 0

    def __init__(self) -> None:
        self.num_calls = 0
        self.tokens, self.answers = asyncio.Event(), asyncio.Event()

    async def generate(
        self, requests: Sequence[GenerationRequest], on_token: Callable[[int, int], bool] | None = None
    ) -> list[Completion]:
        self.num_calls += 1
        await self.tokens.wait()
        assert on_token is not None
        on_token(0, 65)
        await self.answers.wait()
        return [Completion((65,), (0.0,), "length", 0, "A")]

    async def load_weights(self, weights: object, *, version: int) -> None:
        raise AssertionError("a server loads no weights")


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny", timeout=None)


async def ask(client: httpx.AsyncClient, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], **fields}
    return await client.post("/v1/chat/completions", json=body)


def test_a_257th_that_would_wait_is_a_429_and_who_has_a_token_waits_no_more() -> None:
    async def scenario() -> None:
        engine = SlowEngine()
        async with client_of(
            create_app(engine, Renderer(byte_tokenizer()), model_name="tiny", context=CONTEXT)
        ) as client:
            calls = [asyncio.create_task(ask(client)) for _ in range(256)]
            while engine.num_calls < 256:
                await asyncio.sleep(0.001)
            assert (await client.get("/health")).json()["waiting"] == 256
            refused = await ask(client)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert refused.headers["retry-after"] == "1"
            engine.tokens.set()
            while (await client.get("/health")).json()["waiting"]:
                await asyncio.sleep(0.001)
            calls.append(asyncio.create_task(ask(client)))
            engine.answers.set()
            assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_a_shutdown_ends_a_run_at_its_token_and_tells_those_who_wait_for_it() -> None:
    engine, renderer = tiny_engine(ends=False)
    running, closed, steps = threading.Event(), threading.Event(), []

    def on_step(seed: int, num: int) -> None:
        steps.append((seed, num))
        if num == 3:
            running.set()
            assert closed.wait(WAIT_S)

    engine.on_step = on_step
    app = create_app(engine, renderer, model_name="tiny", context=CONTEXT)

    async def scenario() -> None:
        async with client_of(app) as client:
            async with app.router.lifespan_context(app):
                whole = asyncio.create_task(ask(client, seed=1))
                assert await asyncio.to_thread(running.wait, WAIT_S)
                streamed = asyncio.create_task(ask(client, seed=2, stream=True))
                for _ in range(2):
                    assert await asyncio.to_thread(engine.queued.acquire, timeout=WAIT_S)
            assert (await whole).status_code == 500
            assert (await whole).json()["error"]["message"] == "the server is stopping"
            assert "the server is stopping" in (await streamed).text
        closed.set()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
    assert engine.ends.get(timeout=WAIT_S) == ("cancelled", 3)
    last = GenerationRequest((65,), SamplingParams(max_tokens=1), seed=3)
    asyncio.run(asyncio.wait_for(engine.generate([last], lambda index, token: True), WAIT_S))
    assert steps == [(1, 1), (1, 2), (1, 3), (3, 1)]
