"""The part of the OpenAI chat API that is spoken here: what is read, and what is refused rather than ignored.

Names and shapes: the OpenAI API reference, "Chat completions". Fields nobody here knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from postgrad.types import Conversation, Message, Role, ToolCall

MAX_CHOICES = 16
_ROLES: Mapping[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class ApiError(Exception):
    """An answer in OpenAI's error envelope.

    Args:
        status: HTTP status.
        message: one sentence for the caller.
        param: the field at fault.
        code: machine-readable reason.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = {429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    name: str
    arguments: str


class WireToolCall(BaseModel):
    id: str
    function: FunctionCall


class WireMessage(BaseModel):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None

    def to_message(self) -> Message:
        content = self.content or ""
        return Message(
            role=_ROLES[self.role],
            content=content if isinstance(content, str) else "".join(part.text for part in content),
            tool_calls=tuple(
                ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model: str
    messages: Annotated[list[WireMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    """Not OpenAI's; vLLM's name."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(gt=0, le=MAX_CHOICES)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    logit_bias: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        strings = [stop] if isinstance(stop, str) else stop or []
        if len(strings) > 4 or not all(strings):
            raise ValueError("takes one to four strings, none of them empty")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def conversation(self) -> Conversation:
        return Conversation(tuple(message.to_message() for message in self.messages))

    def refuse_unsupported(self) -> None:
        """Raise for known fields that would change the answer and cannot be honoured.

        Raises:
            ApiError: 400, naming the first such field.
        """
        plain_format = self.response_format in (None, {"type": "text"})
        given = {
            "tools": self.tools,
            "functions": self.functions,
            "response_format": not plain_format,
            "logit_bias": self.logit_bias,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "top_logprobs": self.top_logprobs,
        }
        for name, value in given.items():
            if value:
                message = f"{name} is not supported by this server; leave it out"
                raise ApiError(400, message, param=name, code="unsupported_parameter")
