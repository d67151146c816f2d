"""A request's answer is a function of its prompt, its parameters, its seed and the weights, and of nothing else."""

import asyncio
import random
from functools import cache

import pytest
from small import ARCHITECTURES, CONTEXT, random_model, tokens

from postgrad.engine.local import LocalEngine
from postgrad.types import GenerationRequest, SamplingParams

STOP = 5
TEMPERATURES = (1.0, 0.5, 1.5, 0.0)
WAYS = (
    {},
    {"top_p": 0.8},
    {"top_k": 5},
    {"stop_ids": (7, 8)},
    {"stop": ("QA", "B")},
)


def spell(ids):
    return "".join(chr(ord("A") + i % 26) for i in ids)


@cache
def sixty_four():
    """Ragged prompts of 1 to 70 tokens, every third shared by four; 1 to 40 tokens to sample; every temperature."""
    draw = random.Random(8)
    requests = []
    while len(requests) < 64:
        prompt = tuple(tokens(draw.choice((1, 2, 3, 7, 12, 30, 70)), seed=len(requests)))
        for _ in range(4 if len(requests) % 3 == 0 else 1):
            params = SamplingParams(
                max_tokens=draw.randint(1, 40),
                temperature=TEMPERATURES[len(requests) % 4],
                **WAYS[draw.randrange(len(WAYS))],
            )
            requests.append(GenerationRequest(prompt, params, seed=draw.randrange(2**62)))
    return requests[:64]


@cache
def engine(architecture):
    return LocalEngine(random_model(architecture), stop_ids=[STOP], decode=spell)


@cache
def together(architecture):
    return engine(architecture).sample(sixty_four())


def assert_same(found, expected):
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.token_ids == b.token_ids, number
        assert a.finish_reason == b.finish_reason
        assert a.text == b.text
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_the_sixty_four_differ_in_every_way_that_could_matter():
    requests = sixty_four()
    assert {len(r.prompt_ids) for r in requests} == {1, 2, 3, 7, 12, 30, 70}
    assert len({r.prompt_ids for r in requests}) < 50
    assert {r.params.temperature for r in requests} == set(TEMPERATURES)
    assert len({r.params.max_tokens for r in requests}) > 20
    assert all(len(r.prompt_ids) + r.params.max_tokens <= CONTEXT for r in requests)
    answers = together("llama")
    assert {a.finish_reason for a in answers} == {"stop", "length"}
    assert len({len(a.token_ids) for a in answers}) > 15


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_one_is_a_batch_of_sixty_four(architecture):
    alone = [engine(architecture).sample([request])[0] for request in sixty_four()]
    assert_same(alone, together(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_place_among_the_neighbours_does_not_matter(architecture):
    order = list(range(64))
    random.Random(3).shuffle(order)
    shuffled = engine(architecture).sample([sixty_four()[i] for i in order])
    assert_same(shuffled, [together(architecture)[i] for i in order])


@pytest.mark.parametrize("size", [7, 64])
def test_other_neighbours_do_not_matter(size):
    first = sixty_four()[:size]
    strangers = [
        GenerationRequest(tuple(tokens(1 + i, seed=900 + i)), SamplingParams(max_tokens=50), seed=i) for i in range(20)
    ]
    assert_same(engine("llama").sample([*strangers, *first, *strangers])[20 : 20 + size], together("llama")[:size])


def test_siblings_share_a_prompt_and_nothing_else():
    prompt = tuple(tokens(20, seed=1))
    siblings = [GenerationRequest(prompt, SamplingParams(max_tokens=12), seed=i) for i in range(64)]
    answers = engine("qwen3").sample(siblings)
    assert len({a.token_ids for a in answers}) > 60
    assert_same([engine("qwen3").sample([s])[0] for s in siblings], answers)
    repeated = engine("qwen3").sample([siblings[9]] * 3)
    assert_same(repeated, [answers[9]] * 3)


def test_a_neighbour_that_is_cancelled_changes_nothing():
    seen = [0] * 64

    def on_token(index, token):
        seen[index] += 1
        return index % 2 == 0 or seen[index] < 3

    answers = asyncio.run(engine("llama").generate(sixty_four(), on_token))
    whole = together("llama")
    assert_same(answers[::2], whole[::2])
    for a, b in zip(answers[1::2], whole[1::2], strict=True):
        assert a.token_ids == b.token_ids[:3]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_time_of_coming_does_not_matter(architecture):
    async def one_by_one():
        """Whenever anyone has a token, the next request comes before there is another token."""
        loop = asyncio.get_running_loop()
        calls = []

        async def come():
            request = sixty_four()[len(calls)]
            calls.append(asyncio.create_task(engine(architecture).generate([request], on_token)))
            await asyncio.sleep(0)

        def on_token(index, token):
            if len(calls) < 64:
                asyncio.run_coroutine_threadsafe(come(), loop).result(60)
            return True

        await come()
        return [(await calls[i])[0] for i in range(64)]

    assert_same(asyncio.run(one_by_one()), together(architecture))
