"""A model behind any OpenAI-compatible endpoint. Whatever it sends back is data, and may be hostile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from postgrad.errors import ConfigError, EngineError

LONGEST_WAIT_S: Final = 60.0
MAX_BYTES: Final = 4_000_000
"""Of a response, uncompressed."""

_QUOTED: Final = 300
"""Characters of a response in a reason."""
_REFUSED: Final = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
"""Statuses that every request would get."""
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request, safe to store."""

    said: str | None
    """None where there is no answer."""
    failed: str = ""
    """Why there is none."""
    raw: str | None = None
    """What came in place of one."""
    cut: bool = False
    """At the most tokens that were asked for."""


class Endpoint:
    """Asks `URL/chat/completions`.

    The key is in no record, and cut out of what comes back.

    Args:
        url: as OpenAI clients take it, mostly ending in /v1.
        model: as the endpoint calls it.
        who: what an error calls it.
        key_variable: environment variable that holds the key; None sends none.
        settings: what an error says to check, beside the key.
        timeout_s: for one attempt, from the request to the last byte.
        backoff_s: wait before the second attempt; doubled for each one after, unless the endpoint says how long.
        attempts: at most.

    Raises:
        ConfigError: a URL or a key that cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        who: str,
        key_variable: str | None,
        settings: str,
        timeout_s: float,
        backoff_s: float,
        attempts: int,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as e:
            raise ConfigError(f"the endpoint is no URL ({e}); give one such as http://127.0.0.1:8000/v1") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise ConfigError(
                "the endpoint must be a URL such as http://127.0.0.1:8000/v1, without a name or password: the key goes "
                f"into the environment variable {key_variable or 'that key_variable names'}"
            )
        self.host = parsed.netloc.decode("ascii")
        self.model = model
        self._key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if not self._key.isascii() or not self._key.isprintable():
            raise ConfigError(f"the key in {key_variable} holds characters that no header can carry; set it again")
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._who, self._check = who, f"{settings} and {key_variable}" if key_variable else settings
        self._timeout_s, self._backoff_s, self._attempts = timeout_s, backoff_s, attempts
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.AsyncClient(headers=headers, timeout=None)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def complete(self, body: Mapping[str, Any]) -> Reply:
        """The answer to a request of chat completions, whose `model` is added here.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the address.
            EngineError: nobody answers there.
        """
        # As ASCII, because half a surrogate pair in an old answer has no UTF-8.
        content = json.dumps({"model": self.model, **body}).encode("ascii")
        failed, wait_s = "", 0.0
        for attempt in range(self._attempts):
            await asyncio.sleep(wait_s)
            wait_s = self._backoff_s * 2**attempt * random.uniform(0.75, 1.25)
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, text, retry_after_s = await self._post(content)
            except TimeoutError:
                failed = f"no answer within {self._timeout_s:g} s"
                continue
            except httpx.ConnectError as e:
                if attempt == self._attempts - 1:
                    raise EngineError(
                        f"{self._who} at {self.host} cannot be reached ({e}); start it, or check"
                    ) from None
                continue
            except httpx.HTTPError as e:
                failed = f"the connection broke ({type(e).__name__})"
                continue
            if status == 200:
                return self._reply(text)
            failed = f"HTTP {status}: {_line(text)}"
            if status in _REFUSED:
                raise ConfigError(
                    f"{self._who} at {self.host} refuses model {self.model!r} ({failed}); check {self._check}"
                )
            if status not in (408, 429) and status < 500:
                return Reply(None, failed)
            wait_s = wait_s if retry_after_s is None else min(retry_after_s, LONGEST_WAIT_S)
        return Reply(None, f"{failed}, {self._attempts} times")

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

    def _reply(self, text: str) -> Reply:
        """The answer in a chat completion."""
        try:
            choice = json.loads(text)["choices"][0]
            said, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Reply(None, "what came back is no chat completion", _storable(text))
        if not isinstance(said, str):
            return Reply(None, f"{self._who} said nothing", _storable(text))
        return Reply(_storable(said), cut=ended == "length")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _line(text: str) -> str:
    """The beginning of a response, safe to print."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split())[:_QUOTED])


def _storable(text: str) -> str:
    """What no database takes (NUL, half a surrogate pair), shown as a replacement mark."""
    return _UNSTORABLE.sub("\ufffd", text)
