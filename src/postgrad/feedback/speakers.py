"""Who can answer in a conversation: a checkpoint in this process, or a model behind an endpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from postgrad.errors import DataError, EngineError
from postgrad.feedback.endpoint import Endpoint
from postgrad.types import Conversation, FinishReason, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from postgrad.protocols import RolloutEngine
    from postgrad.text import Renderer

ATTEMPTS = 2
"""At an endpoint, while a person waits."""
_LONGEST = 255
"""Characters of a checkpoint's name in the store."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, with all that another one like it needs."""

    text: str
    token_ids: tuple[int, ...]
    """Empty from an endpoint, which tells none."""
    finish_reason: FinishReason
    params: SamplingParams
    policy_version: int = 0


class Speaker(Protocol):
    name: str
    """For the server's log; labelers never see it."""
    checkpoint: str
    """SHA-256 of the weights; at an endpoint, the model's name and the host."""
    timeout_s: float

    async def say(self, conversation: Conversation, *, seed: int) -> Said:
        """The next answer.

        Raises:
            DataError: the conversation is too long for the model, or its template refuses it.
            EngineError: no answer.
            ConfigError: an endpoint that refuses everything.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class LocalSpeaker:
    """A checkpoint in this process; answers that are asked for at the same time share its forward passes.

    Args:
        engine: of the checkpoint; works in a thread of its own.
        renderer: of the same checkpoint.
        context: most tokens of a conversation and its answer together.
        checkpoint: SHA-256 of it.
        params: `max_tokens` is the most of one answer.
        name: for the log.
        timeout_s: for one answer.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        renderer: Renderer,
        *,
        context: int,
        checkpoint: str,
        params: SamplingParams,
        name: str = "",
        timeout_s: float = 120.0,
    ) -> None:
        self.name, self.checkpoint, self.timeout_s = name, checkpoint, timeout_s
        self._engine, self._renderer, self._context, self._params = engine, renderer, context, params

    async def say(self, conversation: Conversation, *, seed: int) -> Said:
        """As `Speaker`."""
        prompt_ids = self._renderer.render_prompt(conversation, name="the conversation")
        room = self._context - len(prompt_ids)
        if room < 1:
            raise DataError(f"the conversation fills the model's context of {self._context} tokens")
        params = replace(self._params, max_tokens=min(self._params.max_tokens, room))
        # A call that streams is one that others may overlap.
        (answer,) = await self._engine.generate(
            [GenerationRequest(prompt_ids, params, seed)], lambda index, token: True
        )
        return Said(answer.text, answer.token_ids, answer.finish_reason, params, answer.policy_version)

    async def close(self) -> None:
        """Nothing: the engine is its owner's."""


class EndpointSpeaker:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        url: as OpenAI clients take it, mostly ending in /v1.
        model: as the endpoint calls it.
        key_variable: environment variable that holds the key; None sends none.
        params: those that the API knows: temperature, top-p and the most tokens.
        timeout_s: for one answer.

    Raises:
        ConfigError: a URL or a key that cannot be sent.
    """

    def __init__(
        self, url: str, *, model: str, key_variable: str | None, params: SamplingParams, timeout_s: float = 120.0
    ) -> None:
        self._endpoint = Endpoint(
            url,
            model=model,
            who="the policy",
            key_variable=key_variable,
            settings="'endpoint', 'model'",
            timeout_s=timeout_s,
            backoff_s=0.5,
            attempts=ATTEMPTS,
        )
        self.name = f"{model} at {self._endpoint.host}"
        self.checkpoint = f"endpoint:{self.name}"[:_LONGEST]
        self.timeout_s = timeout_s
        self._params = params

    async def say(self, conversation: Conversation, *, seed: int) -> Said:
        """As `Speaker`."""
        reply = await self._endpoint.complete(
            {
                "messages": [{"role": m.role, "content": m.content} for m in conversation.messages],
                "temperature": self._params.temperature,
                "top_p": self._params.top_p,
                "max_tokens": self._params.max_tokens,
                "seed": seed,
            }
        )
        if reply.said is None:
            raise EngineError(reply.failed)
        return Said(reply.said, (), "length" if reply.cut else "stop", self._params)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._endpoint.close()
