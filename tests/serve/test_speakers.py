"""Policies that answer in conversations: a checkpoint here, and the same one behind our own server."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from judging import completion
from listening import running
from tiny_server import CONTEXT, tiny_engine

from postgrad.errors import ConfigError, DataError, EngineError
from postgrad.feedback.speakers import EndpointSpeaker, LocalSpeaker, Said
from postgrad.serve.api import create_app
from postgrad.types import Conversation, Message, SamplingParams

TALK = Conversation((Message("system", "Be brief."), Message("user", "Hello?")))
PARAMS = SamplingParams(max_tokens=24, temperature=0.7)


def ask(speaker: LocalSpeaker | EndpointSpeaker, conversation: Conversation = TALK, seed: int = 3) -> Said:
    async def once() -> Said:
        try:
            return await speaker.say(conversation, seed=seed)
        finally:
            await speaker.close()

    return asyncio.run(once())


def test_a_checkpoint_says_the_same_here_and_behind_our_own_server() -> None:
    engine, renderer = tiny_engine()
    local = LocalSpeaker(engine, renderer, context=CONTEXT, checkpoint="ab" * 32, params=PARAMS)
    here = ask(local)
    assert here.params == PARAMS
    assert here.token_ids
    assert ask(local, seed=4).text != here.text
    with running(create_app(engine, renderer, model_name="tiny", context=CONTEXT)) as url:
        speaker = EndpointSpeaker(f"{url}/v1", model="tiny", key_variable=None, params=PARAMS)
        there = ask(speaker)
        assert (there.text, there.finish_reason, there.token_ids) == (here.text, here.finish_reason, ())
        assert speaker.checkpoint == f"endpoint:tiny at {url.removeprefix('http://')}"
        wrong = EndpointSpeaker(f"{url}/v1", model="other", key_variable=None, params=PARAMS)
        with pytest.raises(ConfigError, match=r"the policy at .* refuses model 'other'"):
            ask(wrong)


def test_an_answer_takes_the_room_that_is_left_and_a_full_context_is_told() -> None:
    engine, renderer = tiny_engine(ends=False)
    room = CONTEXT - len(renderer.render_prompt(TALK))
    speaker = LocalSpeaker(engine, renderer, context=CONTEXT, checkpoint="", params=SamplingParams(max_tokens=CONTEXT))
    assert ask(speaker).params.max_tokens == room
    full = Conversation((Message("user", "x" * CONTEXT),))
    with pytest.raises(DataError, match=f"fills the model's context of {CONTEXT} tokens"):
        ask(speaker, full)


def test_a_key_is_sent_only_where_its_variable_is_named_and_cut_out_of_what_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_POLICY_KEY", "sk-secret")
    monkeypatch.setenv("POSTGRAD_JUDGE_KEY", "sk-of-the-judge")
    heard: list[tuple[dict[str, Any], str | None]] = []
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        heard.append((await request.json(), request.headers.get("authorization")))
        return Response(completion("Your key is sk-secret.\x00", "length"), media_type="application/json")

    with running(app) as url:
        with_key, without = (
            EndpointSpeaker(f"{url}/v1", model="m", key_variable=name, params=PARAMS)
            for name in ("MY_POLICY_KEY", None)
        )
        assert ask(with_key) == Said("Your key is [key].\ufffd", (), "length", PARAMS)
        ask(without)
    (body, first), (_, second) = heard
    assert (first, second) == ("Bearer sk-secret", None)
    assert body == {
        "model": "m", "temperature": 0.7, "top_p": 1.0, "max_tokens": 24, "seed": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "{}", "no chat completion"),
        (200, json.dumps({"choices": [{"message": {"content": None}}]}), "the policy said nothing"),
        (400, "too long", "HTTP 400: too long"),
        (503, "busy", "HTTP 503: busy, 2 times"),
    ],
)
def test_what_is_no_answer_is_an_error(status: int, body: str, said: str) -> None:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def complete() -> Response:
        return Response(body, status_code=status, headers={"Retry-After": "0"})

    with running(app) as url, pytest.raises(EngineError, match=said):
        ask(EndpointSpeaker(f"{url}/v1", model="m", key_variable=None, params=PARAMS))
