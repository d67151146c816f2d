"""A judge behind any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from postgrad.feedback.endpoint import Endpoint
from postgrad.feedback.judge_prompt import MAX_TOKENS, Verdict, question, read_verdict
from postgrad.types import Conversation

KEY_VARIABLE: Final = "POSTGRAD_JUDGE_KEY"
"""Of this name alone, so that no other service's key is sent to an endpoint by mistake."""
ATTEMPTS: Final = 4


class EndpointJudge:
    """Asks at temperature 0.

    Args:
        url: as OpenAI clients take it, mostly ending in /v1.
        model: as the endpoint calls it.
        rubric: what makes an answer better.
        seed: sent with every question.
        timeout_s: for one attempt.
        backoff_s: wait before the second attempt.

    Raises:
        ConfigError: a URL, or a key in `KEY_VARIABLE`, that cannot be sent.
    """

    def __init__(
        self, url: str, *, model: str, rubric: str, seed: int = 0, timeout_s: float = 120.0, backoff_s: float = 1.0
    ) -> None:
        self._endpoint = Endpoint(
            url,
            model=model,
            who="the judge",
            key_variable=KEY_VARIABLE,
            settings="--endpoint, --model",
            timeout_s=timeout_s,
            backoff_s=backoff_s,
            attempts=ATTEMPTS,
        )
        self._rubric, self._seed = rubric, seed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; from the event loop on which questions were asked."""
        await self._endpoint.close()

    @property
    def params(self) -> Mapping[str, Any]:
        return {
            "model": self._endpoint.model,
            "host": self._endpoint.host,
            "rubric": self._rubric,
            "seed": self._seed,
        }

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        """A verdict; an abstention where the endpoint fails on this question.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the address.
            EngineError: nobody answers there.
        """
        reply = await self._endpoint.complete(
            {
                "messages": [{"role": "user", "content": question(prompt, first, second, rubric=self._rubric)}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
                "seed": self._seed,
            }
        )
        if reply.said is None:
            return Verdict(None, reply.raw, reply.failed)
        return read_verdict(reply.said, whole=not reply.cut)
