"""An OpenAI-compatible endpoint that plays judges, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from listening import running

Reply = str | tuple[int, str] | float
"""What the judge says; or a status and a body; or seconds during which nothing comes."""
Play = Callable[[str, str, int], Reply]
"""From answer A, answer B and how often the very same request has come."""


class Endpoint:
    def __init__(self, play: Play) -> None:
        self.play = play
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.under_way = self.most_under_way = 0
        self.answered = threading.Semaphore(0)
        """Released for every response."""


def answers_in(question: str) -> tuple[str, str]:
    """The two answers, found as a careful reader finds them: by the mark."""
    found = re.search(
        r"^\[(\w+) answer A\]\n(.*)\n\[\1 answer B\]\n(.*)\n\[\1 end\]$", question, re.DOTALL | re.MULTILINE
    )
    assert found, question
    return found.group(2), found.group(3)


@contextlib.contextmanager
def playing(play: Play) -> Iterator[Endpoint]:
    endpoint = Endpoint(play)
    app = FastAPI()
    seen: Counter[str] = Counter()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        endpoint.bodies.append(body)
        endpoint.headers.append(dict(request.headers))
        endpoint.under_way += 1
        endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
        content = body["messages"][-1]["content"]
        reply = endpoint.play(*answers_in(content), seen[content])
        seen[content] += 1
        await asyncio.sleep(reply if isinstance(reply, float) else 0.005)
        endpoint.under_way -= 1
        endpoint.answered.release()
        if isinstance(reply, tuple):
            return Response(reply[1], status_code=reply[0], headers={"Retry-After": "0"})
        return Response(completion(str(reply)), media_type="application/json")

    with running(app) as url:
        endpoint.url = f"{url}/v1"
        yield endpoint


def completion(said: str, finish_reason: str = "stop") -> str:
    message = {"role": "assistant", "content": said}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


def prefers_x(a: str, b: str, times: int) -> Reply:
    """A good judge of `workbench.fill`: answer 0 of each question begins with x."""
    return f"One of them says {a!r}, the other {b!r}.\nVerdict: {'A' if a.startswith('x') else 'B'}"


def always_a(a: str, b: str, times: int) -> Reply:
    return "The first.\n\n**Verdict: A**"
