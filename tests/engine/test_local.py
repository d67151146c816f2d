"""The engine against plain transformers, which reads the sampled tokens back."""

import asyncio
from collections import Counter

import pytest
import torch
from small import ARCHITECTURES, CONTEXT, VOCABULARY, plain_logprobs, random_model, state, tokens

from postgrad.engine.local import LocalEngine
from postgrad.errors import EngineError
from postgrad.models.load import load_policy
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import GenerationRequest, SamplingParams


def spell(ids):
    return "".join(chr(ord("A") + i) for i in ids)


def engine_of(model, *, stop_ids=(), max_batch=64):
    return LocalEngine(model, stop_ids=stop_ids, decode=spell, max_batch=max_batch)


def request(prompt, seed, max_tokens=12, **params):
    return GenerationRequest(tuple(prompt), SamplingParams(max_tokens=max_tokens, **params), seed)


def mixed_requests(**params):
    """Ragged prompts, some of them shared, with different numbers of tokens."""
    prompts = [tokens(n, seed=n) for n in (3, 11, 1, 11, 3, 6)]
    return [request(p, 50 + i, max_tokens=(5, 12, 9)[i % 3], **params) for i, p in enumerate(prompts)]


def generate(engine, requests, on_token=None):
    return asyncio.run(engine.generate(requests, on_token))


def next_token_probabilities(model, prompt):
    with torch.no_grad():
        return model.lm(torch.tensor([list(prompt)])).logits[0, -1].softmax(-1)


def assert_logprobs_are_teacher_forced(model, requests, completions, temperature=1.0):
    for r, c in zip(requests, completions, strict=True):
        expected = plain_logprobs(model.lm, (*r.prompt_ids, *c.token_ids), temperature=temperature)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected[len(r.prompt_ids) :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_those_that_transformers_reads_back(architecture):
    model = random_model(architecture)
    requests = mixed_requests()
    completions = generate(engine_of(model), requests)
    assert [len(c.token_ids) for c in completions] == [5, 12, 9, 5, 12, 9]
    assert {c.finish_reason for c in completions} == {"length"}
    assert_logprobs_are_teacher_forced(model, requests, completions)


def test_a_temperature_divides_the_logits_of_its_own_request_alone():
    model = random_model()
    cold, warm = mixed_requests(temperature=0.5), mixed_requests()
    completions = generate(engine_of(model), cold + warm)
    assert_logprobs_are_teacher_forced(model, cold, completions[:6], temperature=0.5)
    assert_logprobs_are_teacher_forced(model, warm, completions[6:])


def test_a_request_knows_nothing_of_its_neighbours_its_place_or_the_batch_size():
    model = random_model()
    requests = mixed_requests()
    together = generate(engine_of(model), requests)
    alone = [generate(engine_of(model), [r])[0] for r in requests]
    backwards = generate(engine_of(model), requests[::-1])[::-1]
    in_twos = generate(engine_of(model, max_batch=2), requests)
    for other in (alone, backwards, in_twos):
        for a, b in zip(together, other, strict=True):
            assert a.token_ids == b.token_ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_seed_is_an_answer_and_another_seed_another():
    engine = engine_of(random_model())
    prompt = tokens(4, seed=1)
    first, again, other = generate(engine, [request(prompt, 7), request(prompt, 7), request(prompt, 8)])
    assert first == again
    assert generate(engine, [request(prompt, 7), request(prompt, 7), request(prompt, 8)]) == [first, again, other]
    assert first.token_ids != other.token_ids


def test_greedy_takes_the_argmax_and_says_its_probability_at_temperature_one():
    model = random_model()
    requests = mixed_requests(temperature=0.0)
    completions = generate(engine_of(model), requests)
    for r, c in zip(requests, completions, strict=True):
        ids = list(r.prompt_ids)
        for token in c.token_ids:
            assert token == int(next_token_probabilities(model, ids).argmax())
            ids.append(token)
    assert_logprobs_are_teacher_forced(model, requests, completions)


def test_a_stop_token_ends_the_answer_and_belongs_to_it():
    model = random_model()
    free = generate(engine_of(model), [request([1, 2], 3)])[0]
    at = next(i for i in range(3, 12) if free.token_ids[i] not in free.token_ids[:i])
    end = free.token_ids[at]
    others = [request([5], 4), request(tokens(9, seed=2), 5)]
    of_engine = generate(engine_of(model, stop_ids=[end]), [*others, request([1, 2], 3)])[2]
    of_request = generate(engine_of(model), [request([1, 2], 3, stop_ids=(end,)), *others])
    for stopped in (of_engine, of_request[0]):
        assert stopped.token_ids == free.token_ids[: at + 1]
        assert stopped.logprobs == pytest.approx(free.logprobs[: at + 1], abs=1e-5)
        assert stopped.finish_reason == "stop"
        assert stopped.text == spell(free.token_ids[:at])
    assert {c.finish_reason for c in of_request[1:]} == {"length"}


def test_a_stop_string_is_cut_from_the_text_and_its_tokens_are_kept():
    model = random_model()
    free = generate(engine_of(model), [request([1, 2], 3)])[0]
    stop = free.text[4:6]
    at = free.text.index(stop)
    stopped = generate(engine_of(model), [request([1, 2], 3, stop=("never", stop))])[0]
    assert stopped.text == free.text[:at]
    assert stopped.token_ids == free.token_ids[: at + 2]
    assert stopped.finish_reason == "stop"


def test_the_last_token_allowed_may_still_be_a_stop():
    model = random_model()
    free = generate(engine_of(model), [request([1, 2], 3, max_tokens=1)])[0]
    assert free.finish_reason == "length"
    stopped = generate(engine_of(model, stop_ids=free.token_ids), [request([1, 2], 3, max_tokens=1)])[0]
    assert stopped.finish_reason == "stop"


def test_text_is_decoded_without_the_end_token(tiny_model_directory):
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    model = load_policy(tiny_model_directory)
    with torch.no_grad():
        model.vocabulary_VD[renderer.end_id] *= 3
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
    completions = generate(engine, [request(b"hello", seed, max_tokens=30) for seed in range(40)])
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert len(stopped) > 5
    for c in stopped:
        assert c.token_ids[-1] == renderer.end_id
        assert c.text == renderer.decode(c.token_ids[:-1])
        assert renderer.end_id not in c.token_ids[:-1]


def first_tokens(model, prompt, num, **params):
    requests = [request(prompt, seed, max_tokens=1, **params) for seed in range(num)]
    completions = generate(engine_of(model, max_batch=1024), requests)
    return Counter(c.token_ids[0] for c in completions), completions


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_samples_are_distributed_as_the_softmax(temperature):
    model, prompt, num = random_model(), [3, 1, 4], 6000
    counts, _ = first_tokens(model, prompt, num, temperature=temperature)
    expected = next_token_probabilities(model, prompt).double().pow(1 / temperature)
    expected = num * expected / expected.sum()
    often = expected >= 5
    seen = torch.tensor([counts[t] for t in range(VOCABULARY)], dtype=torch.float64)
    cells = torch.cat([seen[often], seen[~often].sum()[None]])
    means = torch.cat([expected[often], expected[~often].sum()[None]])
    cells, means = cells[means > 0], means[means > 0]
    statistic = float(((cells - means).square() / means).sum())
    freedom = len(means) - 1
    assert freedom > 20
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5, "four deviations above the mean of chi squared"


def test_top_k_samples_the_k_likeliest_in_proportion_and_reports_the_whole_distribution():
    model, prompt, num = random_model(), [3, 1, 4], 1500
    probabilities = next_token_probabilities(model, prompt)
    best = probabilities.topk(3)
    counts, completions = first_tokens(model, prompt, num, top_k=3)
    assert counts.keys() == set(best.indices.tolist())
    for token, share in zip(best.indices.tolist(), (best.values / best.values.sum()).tolist(), strict=True):
        assert counts[token] / num == pytest.approx(share, abs=4 * (share * (1 - share) / num) ** 0.5)
    for c in completions[:20]:
        assert c.logprobs[0] == pytest.approx(float(probabilities[c.token_ids[0]].log()), abs=1e-5)


def test_top_p_samples_the_smallest_set_that_holds_p():
    model, prompt, num = random_model(), [3, 1, 4], 1500
    ordered = next_token_probabilities(model, prompt).sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.6).sum()) + 1
    assert 2 < size < VOCABULARY // 2
    counts, _ = first_tokens(model, prompt, num, top_p=0.6)
    assert counts.keys() == set(ordered.indices[:size].tolist())
    share = float(ordered.values[0] / ordered.values[:size].sum())
    assert counts[int(ordered.indices[0])] / num == pytest.approx(share, abs=4 * (share * (1 - share) / num) ** 0.5)


def test_top_p_of_almost_nothing_is_greedy_and_of_a_neighbour_changes_nothing():
    model = random_model()
    sharp, free = request([3, 1, 4], 5, top_p=1e-6), request([3, 1, 4], 5)
    together = generate(engine_of(model), [sharp, free])
    greedy = generate(engine_of(model), [request([3, 1, 4], 5, temperature=0.0)])[0]
    assert together[0].token_ids == greedy.token_ids
    assert together[1].token_ids == generate(engine_of(model), [free])[0].token_ids


def test_a_reader_sees_every_token_and_cancels_its_own_request_alone():
    model = random_model()
    requests = mixed_requests()
    whole = generate(engine_of(model), requests)
    seen = {i: [] for i in range(6)}

    def on_token(index, token):
        seen[index].append(token)
        return not (index == 1 and len(seen[1]) == 3)

    completions = generate(engine_of(model), requests, on_token)
    assert [tuple(ids) for ids in seen.values()] == [c.token_ids for c in completions]
    assert completions[1].finish_reason == "cancelled"
    assert completions[1].token_ids == whole[1].token_ids[:3]
    for i in (0, 2, 3, 4, 5):
        assert completions[i].token_ids == whole[i].token_ids
        assert completions[i].finish_reason == "length"


def test_a_prompt_that_leaves_no_room_is_refused_and_one_that_just_fits_is_not():
    engine = engine_of(random_model())
    fits = request(tokens(CONTEXT - 5, seed=0), 1, max_tokens=5)
    assert len(generate(engine, [fits])[0].token_ids) == 5
    with pytest.raises(EngineError, match=f"a prompt of {CONTEXT - 5} tokens plus 6 .* context of {CONTEXT}"):
        generate(engine, [request([1], 2), request(fits.prompt_ids, 1, max_tokens=6)])
    with pytest.raises(EngineError, match="a prompt of 0 tokens"):
        generate(engine, [request([], 2)])


def test_new_weights_are_sampled_from_and_their_version_is_on_every_answer():
    trained = random_model(seed=1, heads=("value",))
    engine = engine_of(random_model(seed=0))
    requests = mixed_requests()
    old = generate(engine, requests)
    asyncio.run(engine.load_weights(trained.state_dict(), version=7))
    new = generate(engine, requests)
    assert {c.policy_version for c in old} == {0}
    assert {c.policy_version for c in new} == {7}
    assert [c.token_ids for c in new] == [c.token_ids for c in generate(engine_of(trained), requests)]
    assert [c.token_ids for c in new] != [c.token_ids for c in old]
    assert_logprobs_are_teacher_forced(trained, requests, new)


def test_weights_shared_with_the_trainer_are_published_by_their_version():
    model = random_model()
    engine = engine_of(model)
    before = state(model)
    asyncio.run(engine.load_weights(model.state_dict(), version=3))
    assert engine.version == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_requests_are_no_completions():
    assert generate(engine_of(random_model()), []) == []
