"""The real `openai` client against a real server with a tiny model."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import openai
import pytest
from listening import running
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tiny_server import CONTEXT, ObservedEngine, tiny_engine

from postgrad.errors import EngineError
from postgrad.serve.api import create_app
from postgrad.text import Renderer
from postgrad.types import Completion, Conversation, GenerationRequest, Message, SamplingParams

QUESTION = [{"role": "user", "content": "Why?"}]
WAIT_S = 60
"""For what comes in milliseconds unless something is broken."""


class Served(NamedTuple):
    client: OpenAI
    engine: ObservedEngine
    renderer: Renderer
    url: str

    def ask(self, **fields: object) -> ChatCompletion:
        answer = self.client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **fields})  # type: ignore
        assert isinstance(answer, ChatCompletion)
        return answer

    def stream(self, **fields: object) -> list[ChatCompletionChunk]:
        given = {"model": "tiny", "messages": QUESTION, "stream": True, **fields}
        return list(self.client.chat.completions.create(**given))  # type: ignore

    def directly(self, params: SamplingParams, seed: int) -> Completion:
        """What the engine itself says, no server between."""
        prompt_ids = self.renderer.render_prompt(Conversation((Message("user", "Why?"),)))
        return asyncio.run(self.engine.generate([GenerationRequest(prompt_ids, params, seed)]))[0]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine, renderer = tiny_engine()
    app = create_app(engine, renderer, model_name="tiny", context=CONTEXT)
    with running(app) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield Served(client, engine, renderer, url)


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def test_an_answer_is_what_the_engine_says_for_that_prompt_and_seed(served: Served) -> None:
    answer = served.ask(seed=3, max_completion_tokens=30, temperature=0.8)
    expected = served.directly(SamplingParams(max_tokens=30, temperature=0.8), seed=3)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == len("### User\nWhy?\n### Assistant\n") + 1, "one token a byte, and EOS"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint == "policy-0"
    assert answer.model == "tiny"


def test_streamed_pieces_add_up_to_the_whole_answer_for_thirty_seeds(served: Served) -> None:
    reasons = set()
    for seed in range(30):
        chunks = served.stream(seed=seed, max_tokens=24)
        expected = served.directly(SamplingParams(max_tokens=24), seed=seed)
        assert text_of(chunks) == expected.text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [
            expected.finish_reason
        ]
        reasons.add(expected.finish_reason)
    assert reasons == {"stop", "length"}


def test_no_piece_holds_half_a_character(served: Served) -> None:
    """Every byte is a token, so characters of two to four bytes are sampled in parts."""
    whole = ""
    for seed in range(20):
        pieces = [c.delta.content or "" for chunk in served.stream(seed=seed, max_tokens=40) for c in chunk.choices]
        assert not any("\ufffd" in piece for piece in pieces[:-1])
        whole += "".join(pieces)
    assert all(character in whole for character in "éä→🎓")


def test_two_choices_are_the_answers_to_two_following_seeds(served: Served) -> None:
    answer = served.ask(seed=11, max_tokens=20, n=2)
    alone = [served.ask(seed=seed, max_tokens=20).choices[0].message.content for seed in (11, 12)]
    assert [choice.message.content for choice in answer.choices] == alone
    assert alone[0] != alone[1]
    chunks = served.stream(seed=11, max_tokens=20, n=2)
    assert [text_of(chunks, index) for index in (0, 1)] == alone


def test_a_stop_string_ends_the_answer_and_is_not_shown(served: Served) -> None:
    whole = served.directly(SamplingParams(max_tokens=60), seed=5).text
    stop = whole[6:9]
    assert len(stop) == 3
    cut = whole[: whole.index(stop)]
    answer = served.ask(seed=5, max_tokens=60, stop=[stop, "never said"])
    assert answer.choices[0].message.content == cut
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 60
    chunks = served.stream(seed=5, max_tokens=60, stop=[stop, "never said"])
    assert text_of(chunks) == cut


def test_temperature_zero_is_greedy(served: Served) -> None:
    texts = {served.ask(seed=seed, temperature=0, max_tokens=16).choices[0].message.content for seed in range(3)}
    assert texts == {served.directly(SamplingParams(max_tokens=16, temperature=0), seed=0).text}


def test_usage_comes_last_when_it_is_asked_for_and_never_otherwise(served: Served) -> None:
    chunks = served.stream(seed=3, max_tokens=12, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(served.directly(SamplingParams(max_tokens=12), 3).token_ids)
    assert all(chunk.usage is None for chunk in served.stream(seed=3, max_tokens=12))


def test_logprobs_are_the_engines_streamed_or_not(served: Served) -> None:
    expected = served.directly(SamplingParams(max_tokens=12), seed=4)
    shown = [lp for token, lp in zip(expected.token_ids, expected.logprobs, strict=True) if token < 256]
    content = served.ask(seed=4, max_tokens=12, logprobs=True).choices[0].logprobs
    assert content is not None
    assert [entry.logprob for entry in content.content or ()] == shown
    streamed = [
        entry.logprob
        for chunk in served.stream(seed=4, max_tokens=12, logprobs=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content or ()
    ]
    assert streamed == shown
    assert served.ask(seed=4, max_tokens=12).choices[0].logprobs is None


def test_a_developer_message_and_text_parts_are_read_as_system_and_text(served: Served) -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    as_parts = served.ask(
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        seed=1,
        max_tokens=20,
    )
    as_text = served.ask(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        seed=1,
        max_tokens=20,
    )
    assert as_parts.choices == as_text.choices


def test_a_short_answer_is_given_while_a_long_one_that_came_before_goes_on() -> None:
    engine, renderer = tiny_engine(ends=False)
    joined, answered = threading.Event(), threading.Event()

    def on_step(seed: int, num: int) -> None:
        if seed == 1 and num in (3, 20):
            assert (joined if num == 3 else answered).wait(WAIT_S)

    engine.on_step = on_step
    app = create_app(engine, renderer, model_name="tiny", context=CONTEXT)
    with (
        running(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        served = Served(client, engine, renderer, url)
        long = pool.submit(served.ask, seed=1, max_tokens=60)
        assert engine.queued.acquire(timeout=WAIT_S)
        short = pool.submit(served.ask, seed=2, max_tokens=5)
        assert engine.queued.acquire(timeout=WAIT_S)
        joined.set()
        quick = short.result(WAIT_S).choices[0].message.content
        assert not long.done()
        answered.set()
        slow = long.result(WAIT_S).choices[0].message.content
        assert quick == served.directly(SamplingParams(max_tokens=5), seed=2).text
        assert slow == served.directly(SamplingParams(max_tokens=60), seed=1).text


def test_the_models_are_listed_by_their_name(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").owned_by == "postgrad"


def test_health_names_the_model_and_its_version(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/health") as response:
        health = json.load(response)
    assert health == {"status": "ok", "model": "tiny", "policy_version": 0, "waiting": 0}


def test_an_unknown_model_is_a_404_that_names_the_known_one(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as e:
        served.ask(model="gpt-4")
    assert e.value.code == "model_not_found"
    assert "'gpt-4'" in e.value.message
    assert "'tiny'" in e.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "?"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "say <eos> now"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "me first"}]}, "messages"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(served: Served, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        served.ask(**fields)
    assert e.value.param == param
    assert e.value.type == "invalid_request_error"


def test_fields_nobody_knows_and_fields_without_effect_are_ignored(served: Served) -> None:
    plain = served.ask(seed=2, max_tokens=8).choices
    assert served.ask(seed=2, max_tokens=8, user="me", extra_body={"frobnicate": 1}).choices == plain
    assert served.ask(seed=2, max_tokens=8, presence_penalty=0, response_format={"type": "text"}).choices == plain


@pytest.mark.parametrize(
    "fields", [{"max_tokens": CONTEXT}, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}]
)
def test_what_does_not_fit_the_context_is_a_400_with_its_own_code(served: Served, fields: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError, match=f"context of {CONTEXT}") as e:
        served.ask(**fields)
    assert e.value.code == "context_length_exceeded"


def test_a_body_that_is_not_json_and_a_path_that_is_not_there_use_the_same_envelope(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="not JSON"):
        served.client.post(
            "/chat/completions", cast_to=object, content=b"{", options={"headers": {"content-type": "application/json"}}
        )
    with pytest.raises(openai.NotFoundError, match="/v1/nowhere"):
        served.client.get("/nowhere", cast_to=object)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_stops_its_generation(streamed: bool) -> None:
    engine, renderer = tiny_engine(ends=False)

    begun = threading.Event()

    def on_step(seed: int, num: int) -> None:
        begun.set()
        if num == 30:
            assert engine.left.wait(WAIT_S)

    engine.on_step = on_step
    app = create_app(engine, renderer, model_name="tiny", context=CONTEXT)
    asked = json.dumps({"model": "tiny", "messages": QUESTION, "stream": streamed})
    with running(app) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/v1/chat/completions", asked, {"content-type": "application/json"})
        assert begun.wait(WAIT_S)
        connection.close()
        reason, num = engine.ends.get(timeout=WAIT_S)
        assert reason == "cancelled"
        assert num <= 30
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            after = Served(client, engine, renderer, url).ask(max_tokens=4)
            assert after.choices[0].finish_reason == "length"


def test_an_engine_that_fails_is_a_500_for_those_it_failed_and_the_server_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(seed: int, num: int) -> None:
        if seed == 13 and num == 3:
            raise EngineError("out of memory")

    monkeypatch.setattr(served.engine, "on_step", on_step)
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        served.ask(seed=13, n=2)
    with pytest.raises(openai.APIError, match="out of memory"):
        served.stream(seed=13)
    assert served.ask(seed=3, max_tokens=9).choices[0].message.content == (
        served.directly(SamplingParams(max_tokens=9), 3).text
    )
    with urllib.request.urlopen(f"{served.url}/health") as response:
        assert json.load(response)["waiting"] == 0
