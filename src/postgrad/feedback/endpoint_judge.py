"""A judge behind any OpenAI-compatible endpoint. Whatever it sends back is data, and may be hostile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx

from postgrad.errors import ConfigError, EngineError
from postgrad.feedback.judge_prompt import MAX_TOKENS, Verdict, question, read_verdict
from postgrad.types import Conversation

KEY_VARIABLE: Final = "POSTGRAD_JUDGE_KEY"
"""Of this name alone, so that no other service's key is sent to an endpoint by mistake."""
ATTEMPTS: Final = 4
LONGEST_WAIT_S: Final = 60.0
MAX_BYTES: Final = 4_000_000
"""Of a response, uncompressed."""

_QUOTED: Final = 300
"""Characters of a response in a reason."""
_REFUSED: Final = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
"""Statuses that every question would get."""
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


class EndpointJudge:
    """Asks `URL/chat/completions` at temperature 0.

    The key comes from the environment variable `KEY_VARIABLE`; it is in no record, and cut out of what comes back.

    Args:
        url: as OpenAI clients take it, mostly ending in /v1.
        model: as the endpoint calls it.
        rubric: what makes an answer better.
        seed: sent with every question.
        timeout_s: for one attempt, from the request to the last byte.
        backoff_s: wait before the second attempt; doubled for each one after, unless the endpoint says how long.

    Raises:
        ConfigError: a URL or a key that cannot be sent.
    """

    def __init__(
        self, url: str, *, model: str, rubric: str, seed: int = 0, timeout_s: float = 120.0, backoff_s: float = 1.0
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as e:
            raise ConfigError(f"the endpoint is no URL ({e}); give one such as http://127.0.0.1:8000/v1") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise ConfigError(
                "the endpoint must be a URL such as http://127.0.0.1:8000/v1, without a name or password: the key goes "
                f"into the environment variable {KEY_VARIABLE}"
            )
        self.host = parsed.netloc.decode("ascii")
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise ConfigError(f"the key in {KEY_VARIABLE} holds characters that no header can carry; set it again")
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model, self._rubric, self._seed = model, rubric, seed
        self._timeout_s, self._backoff_s = timeout_s, backoff_s
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.AsyncClient(headers=headers, timeout=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; from the event loop on which questions were asked."""
        await self._client.aclose()

    @property
    def params(self) -> Mapping[str, Any]:
        return {"model": self._model, "host": self.host, "rubric": self._rubric, "seed": self._seed}

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        """A verdict; an abstention where the endpoint fails on this question.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the address.
            EngineError: nobody answers there.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question(prompt, first, second, rubric=self._rubric)}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "seed": self._seed,
        }
        # As ASCII, because half a surrogate pair in an old answer has no UTF-8.
        content = json.dumps(body).encode("ascii")
        failed, wait_s = "", 0.0
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(wait_s)
            wait_s = self._backoff_s * 2**attempt * random.uniform(0.75, 1.25)
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, text, retry_after_s = await self._post(content)
            except TimeoutError:
                failed = f"no answer within {self._timeout_s:g} s"
                continue
            except httpx.ConnectError as e:
                if attempt == ATTEMPTS - 1:
                    raise EngineError(f"the judge at {self.host} cannot be reached ({e}); start it, or check") from None
                continue
            except httpx.HTTPError as e:
                failed = f"the connection broke ({type(e).__name__})"
                continue
            if status == 200:
                return _verdict(text)
            failed = f"HTTP {status}: {_line(text)}"
            if status in _REFUSED:
                raise ConfigError(
                    f"the judge at {self.host} refuses model {self._model!r} ({failed}); check --endpoint, --model "
                    f"and {KEY_VARIABLE}"
                )
            if status not in (408, 429) and status < 500:
                return Verdict(None, None, failed)
            wait_s = wait_s if retry_after_s is None else min(retry_after_s, LONGEST_WAIT_S)
        return Verdict(None, None, f"{failed}, {ATTEMPTS} times")

    async def _post(self, content: bytes) -> tuple[int, str, float | None]:
        """Status, text and the wait that the endpoint asks for."""
        received = bytearray()
        async with self._client.stream("POST", self._url, content=content) as response:
            async for part in response.aiter_bytes():
                received += part
                if len(received) > MAX_BYTES:
                    break
        text = received[:MAX_BYTES].decode("utf-8", errors="replace")
        asked = response.headers.get("Retry-After", "")
        return response.status_code, self._without_key(text), float(asked) if asked.isdecimal() else None

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _verdict(text: str) -> Verdict:
    """The verdict in a chat completion."""
    try:
        choice = json.loads(text)["choices"][0]
        said, ended = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Verdict(None, _storable(text), "what came back is no chat completion")
    if not isinstance(said, str):
        return Verdict(None, _storable(text), "the judge said nothing")
    return read_verdict(_storable(said), whole=ended != "length")


def _line(text: str) -> str:
    """The beginning of a response, safe to print."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split())[:_QUOTED])


def _storable(text: str) -> str:
    """What no database takes (NUL, half a surrogate pair), shown as a replacement mark."""
    return _UNSTORABLE.sub("\ufffd", text)
