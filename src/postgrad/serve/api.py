"""The OpenAI chat API over one model: `/v1/models`, `/v1/chat/completions` (streamed or not) and `/health`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from postgrad.errors import ConfigError, DataError, PostgradError
from postgrad.protocols import RolloutEngine
from postgrad.serve.stream import TextStream
from postgrad.serve.tickets import Ticket, Tickets
from postgrad.serve.wire import ApiError, ChatRequest
from postgrad.text import Renderer
from postgrad.types import Completion, GenerationRequest, SamplingParams

DEFAULT_MAX_TOKENS = 512
_log = logging.getLogger(__name__)


def create_app(engine: RolloutEngine, renderer: Renderer, *, model_name: str, context: int) -> FastAPI:
    """An ASGI application.

    Args:
        engine: generates; its `version` is the responses' `system_fingerprint`.
        renderer: of the same model.
        model_name: what callers put into `model`.
        context: most tokens of a prompt and its answer together.
    """
    chat = _Chat(Tickets(engine), renderer, model_name, context)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await chat.tickets.close()

    app = FastAPI(title="postgrad", lifespan=lifespan)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    model = {"id": model_name, "object": "model", "created": int(time.time()), "owned_by": "postgrad"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": model_name,
            "policy_version": engine.version,
            "waiting": chat.tickets.num_waiting,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        chat.check_model(name)
        return model

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatRequest) -> JSONResponse | StreamingResponse:
        ticket = chat.ticket(body)
        if body.stream:
            return StreamingResponse(chat.stream(body, ticket), media_type="text/event-stream")
        return JSONResponse(await chat.answer(body, ticket, request))

    return app


def serve(app: FastAPI, *, host: str, port: int) -> None:
    """Run until interrupted.

    Raises:
        ConfigError: the address cannot be had.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as e:
            raise ConfigError(f"cannot listen on {host}:{port} ({e.strerror or e}); choose another --port") from None
        config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listener])


@dataclass(frozen=True, slots=True)
class _Chat:
    tickets: Tickets
    renderer: Renderer
    model_name: str
    context: int

    def check_model(self, name: str) -> None:
        if name != self.model_name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )

    def ticket(self, body: ChatRequest) -> Ticket:
        """Check a request and give it to the engine. Choice i is seeded with seed + i."""
        self.check_model(body.model)
        body.refuse_unsupported()
        try:
            prompt_ids = self.renderer.render_prompt(body.conversation(), name="messages")
        except DataError as e:
            raise ApiError(400, str(e), param="messages") from None
        params = SamplingParams(
            max_tokens=self._max_tokens(body, len(prompt_ids)),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k,
            stop=body.stops,
        )
        seed = secrets.randbits(62) if body.seed is None else body.seed
        seeds = ((seed + i) % 2**63 for i in range(body.n or 1))
        ticket = self.tickets.open([GenerationRequest(prompt_ids, params, s) for s in seeds])
        if ticket is None:
            raise ApiError(429, "too many requests are waiting; try again in a moment", code="rate_limit_exceeded")
        return ticket

    def _max_tokens(self, body: ChatRequest, num_prompt: int) -> int:
        asked = body.max_completion_tokens or body.max_tokens
        room = self.context - num_prompt
        if room < 1 or (asked is not None and asked > room):
            and_more = "" if asked is None else f" and the {asked} tokens asked for"
            raise ApiError(
                400,
                f"the messages of {num_prompt} tokens{and_more} do not fit the model's context of {self.context}",
                param="messages",
                code="context_length_exceeded",
            )
        return asked or min(room, DEFAULT_MAX_TOKENS)

    async def answer(self, body: ChatRequest, ticket: Ticket, request: Request) -> dict[str, Any]:
        work = asyncio.ensure_future(ticket.completions())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ApiError(499, "the client has gone", code="client_closed_request")
            error = work.exception()
            if error is not None:
                raise _engine_error(error)
            completions = work.result()
        finally:
            ticket.cancel()
            work.cancel()
            gone.cancel()
        return {
            **self._head("chat.completion", completions[0].policy_version),
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": completion.text, "refusal": None},
                    "finish_reason": completion.finish_reason,
                    "logprobs": self._logprobs(body, completion),
                }
                for i, completion in enumerate(completions)
            ],
            "usage": _usage(ticket, completions),
        }

    async def stream(self, body: ChatRequest, ticket: Ticket) -> AsyncIterator[str]:
        """Server-sent events; logprobs, which the engine gives at the end, come with the last piece of a choice."""
        head = self._head("chat.completion.chunk", self.tickets.engine.version)
        usage: dict[str, Any] = {"usage": None} if body.include_usage else {}

        def chunk(index: int, delta: dict[str, Any], **rest: Any) -> str:
            choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **rest}
            return _event({**head, "choices": [choice], **usage})

        streams = [
            TextStream(self.renderer.decode, stop=body.stops, hidden=self.renderer.stop_ids) for _ in ticket.requests
        ]
        done: list[Completion] = []
        try:
            for i in range(len(streams)):
                yield chunk(i, {"role": "assistant", "content": ""})
            while len(done) < len(streams):
                i, event = await ticket.events.get()
                if isinstance(event, BaseException):
                    yield _event(_engine_error(event).body)
                    return
                if isinstance(event, int):
                    piece = streams[i].push(event)
                    if piece:
                        yield chunk(i, {"content": piece})
                    continue
                done.append(event)
                rest = streams[i].finish(event.text)
                yield chunk(
                    i,
                    {"content": rest} if rest else {},
                    finish_reason=event.finish_reason,
                    logprobs=self._logprobs(body, event),
                )
            if body.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(ticket, done)})
            yield "data: [DONE]\n\n"
        finally:
            ticket.cancel()

    def _head(self, kind: str, version: int) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model_name,
            "system_fingerprint": f"policy-{version}",
        }

    def _logprobs(self, body: ChatRequest, completion: Completion) -> dict[str, Any] | None:
        """Of the tokens of the text, at the sampling temperature; `bytes` is null where a token is no whole text."""
        if not body.logprobs:
            return None
        content = []
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            if token in self.renderer.stop_ids:
                continue
            text = self.renderer.decode([token])
            raw = None if "\ufffd" in text else list(text.encode())
            content.append({"token": text, "logprob": logprob, "bytes": raw, "top_logprobs": []})
        return {"content": content, "refusal": None}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(ticket: Ticket, completions: Sequence[Completion]) -> dict[str, int]:
    prompt = len(ticket.requests[0].prompt_ids)
    sampled = sum(len(completion.token_ids) for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _engine_error(error: BaseException) -> ApiError:
    if isinstance(error, PostgradError):
        return ApiError(500, str(error))
    _log.error("the engine failed", exc_info=error)
    return ApiError(500, "the engine failed; the server's log has the details")


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "1"} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await _on_api_error(request, ApiError(400, "the request body is not JSON"))
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    message = first["msg"].removeprefix("Value error, ")
    return await _on_api_error(request, ApiError(400, f"{param or 'body'}: {message}", param=param))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _on_api_error(request, ApiError(error.status_code, message, code="unknown_url"))
