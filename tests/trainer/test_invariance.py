"""One gradient, however its batch is split, packed, padded, shared or ordered.

Differences are relative to the gradient's norm. In float32 they are the rounding of sums in another order: 7e-7 at most
over the cases below.
"""

from functools import cache

import pytest
import torch
from small import ARCHITECTURES, random_model, siblings_batch, tokens, uneven_batch

from postgrad.data.batch import Batch, collate
from postgrad.ops.losses import nll_loss, policy_loss, value_loss
from postgrad.protocols import Loss
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

RELATIVE = 1e-6


def model_of(architecture):
    """Weights of a usual size: ten times as wide, the same sums cancel and lose a digit more."""
    return random_model(architecture, heads=("value",), initializer_range=0.05)


def nll(batch, output):
    return Loss(*nll_loss(output.logprobs, batch.loss_mask))


def actor_critic(batch, output):
    mask = batch.loss_mask
    total, count, _ = policy_loss(output.logprobs, batch.old_logprobs, batch.advantages, mask, clip_eps=0.2)
    value_total, _, _ = value_loss(output.values, batch.old_values, batch.returns, mask, value_clip=0.2)
    return Loss(total + 0.5 * value_total, count, {})


LOSSES = {"nll": nll, "policy and values": actor_critic}


@cache
def batch_of(architecture):
    """Four prompts with four answers each; old logprobs near the policy's, so that some ratios are clipped."""
    batch = siblings_batch(prompt=6, answers=(3, 5, 2, 7), groups=4)
    now = FrozenPolicy(model_of(architecture), batch_tokens=10_000).evaluate(batch)
    generator = torch.Generator().manual_seed(1)

    def noise():
        return torch.randn(batch.input_ids.shape, generator=generator)

    batch = batch.with_(
        old_logprobs=now.logprobs + 0.2 * noise(),
        old_values=now.values + 0.2 * noise(),
        advantages=noise(),
        returns=noise(),
    )
    clipped = ((now.logprobs - batch.old_logprobs).exp() - 1).abs()[batch.loss_mask] > 0.2
    assert 0.1 < clipped.float().mean() < 0.9
    return batch


def gradient(architecture, loss, parts, batch_tokens):
    model = model_of(architecture)
    trainer = LocalTrainer(model, batch_tokens=batch_tokens)
    for part in parts:
        trainer.forward_backward(part, loss)
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@cache
def whole_gradient(architecture, name):
    return gradient(architecture, LOSSES[name], [batch_of(architecture)], 10_000)


def rows_of(batch, *indices):
    return [batch.rows(torch.tensor(index)) for index in indices]


def widened(batch, extra=13):
    """More padding, with a token in it, and nothing but NaN wherever a number has nothing to say."""
    num, width = batch.input_ids.shape
    fields = {"input_ids": 7, "loss_mask": False} | dict.fromkeys(
        ("old_logprobs", "old_values", "advantages", "returns"), float("nan")
    )
    wide = {
        name: torch.cat([getattr(batch, name), getattr(batch, name).new_full((num, extra), fill)], 1)
        for name, fill in fields.items()
    }
    past = torch.arange(width + extra) >= batch.lengths[:, None]
    wide["input_ids"] = wide["input_ids"].masked_fill(past, 7)
    for name in list(fields)[2:]:
        wide[name] = wide[name].masked_fill(~wide["loss_mask"], float("nan"))
    return batch.with_(**wide)


def shuffled(batch, seed):
    return batch.rows(torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)))


CHANGES = {
    "a group at a time": lambda b: ([b], 1),
    "micro-batches of two groups": lambda b: ([b], 60),
    "every sequence by itself": lambda b: (rows_of(b, *([i] for i in range(16))), 10_000),
    "uneven calls": lambda b: (rows_of(b, [0, 1, 2, 3, 4], [5], list(range(6, 16))), 40),
    "more padding": lambda b: ([widened(b)], 10_000),
    "padding and micro-batches": lambda b: ([widened(b)], 60),
    "siblings that do not know each other": lambda b: ([b.with_(group_ids=None)], 10_000),
    "prompts computed for every sibling": lambda b: ([b.with_(group_ids=None)], 1),
    "another order": lambda b: ([shuffled(b, 4)], 10_000),
    "another order, micro-batches": lambda b: ([shuffled(b, 5)], 60),
}


def relative_difference(found, expected):
    assert found.keys() == expected.keys()
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (apart / sum(float(g.square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_is_that_of_the_whole_batch(architecture, name, change):
    expected = whole_gradient(architecture, name)
    assert bool(expected["heads.value.weight"].any()) == (name != "nll")
    parts, batch_tokens = CHANGES[change](batch_of(architecture))
    found = gradient(architecture, LOSSES[name], parts, batch_tokens)
    assert relative_difference(found, expected) < RELATIVE


def test_a_gradient_that_misses_one_token_of_one_answer_is_found_out():
    batch = batch_of("llama")
    mask = batch.loss_mask.clone()
    mask[3, int(batch.lengths[3]) - 1] = False
    found = gradient("llama", nll, [batch.with_(loss_mask=mask)], 10_000)
    assert relative_difference(found, whole_gradient("llama", "nll")) > 1e-3


def outputs(policy, batch, rows):
    out = policy.evaluate(batch)
    return [x[rows] for x in (out.logprobs, out.entropy, out.values)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_neighbour_in_a_packed_row_is_not_seen(architecture):
    policy = FrozenPolicy(random_model(architecture, heads=("value",)), batch_tokens=10_000)
    batch = uneven_batch(((3, 5), (7, 1), (1, 9), (4, 4), (2, 11)))
    for changed in range(len(batch)):
        others = [i for i in range(len(batch)) if i != changed]
        ids = batch.input_ids.clone()
        length = int(batch.lengths[changed])
        ids[changed, :length] = torch.tensor(tokens(length, seed=77 + changed))
        perturbed = batch.with_(input_ids=ids)
        for before, after in zip(outputs(policy, batch, others), outputs(policy, perturbed, others), strict=True):
            torch.testing.assert_close(after, before, atol=1e-7, rtol=1e-7)
        before, after = (outputs(policy, b, [changed])[0] for b in (batch, perturbed))
        assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sibling_after_the_shared_prompt_is_not_seen(architecture):
    policy = FrozenPolicy(random_model(architecture, heads=("value",)), batch_tokens=10_000)
    batch = siblings_batch(prompt=6, answers=(3, 5, 2), groups=2)
    for changed in range(len(batch)):
        others = [i for i in range(len(batch)) if i != changed]
        ids = batch.input_ids.clone()
        ids[changed][batch.loss_mask[changed]] = (ids[changed][batch.loss_mask[changed]] + 5) % 48
        perturbed = batch.with_(input_ids=ids)
        for before, after in zip(outputs(policy, batch, others), outputs(policy, perturbed, others), strict=True):
            torch.testing.assert_close(after, before, atol=1e-7, rtol=1e-7)
        before, after = (outputs(policy, b, [changed])[0] for b in (batch, perturbed))
        assert (after - before).abs().max() > 0.1


def test_a_packed_neighbour_has_no_part_in_the_gradient_either():
    """The gradient of a batch in which one sequence is not trained on is that of the others alone."""
    architecture = "gemma3"
    batch = batch_of(architecture)
    others = batch.rows(torch.arange(1, 16))
    weights = torch.ones(16, 1)
    weights[0] = 0.0

    def without_first(part: Batch, output):
        kept = part.advantages * part.loss_mask
        return Loss((kept * output.logprobs).sum(), part.num_loss_tokens, {})

    zeroed = batch.with_(advantages=weights * batch.advantages)
    found = gradient(architecture, without_first, [zeroed], 10_000)
    expected = gradient(architecture, without_first, [others], 10_000)
    assert relative_difference(found, expected) < RELATIVE


def test_a_long_row_among_short_ones_changes_nothing():
    short = [([*tokens(4, seed=i)], [False, False, True, True]) for i in range(6)]
    long = (tokens(100, seed=50), [False] * 60 + [True] * 40)
    rows = [*short[:3], long, *short[3:]]
    batch = collate([ids for ids, _ in rows], [mask for _, mask in rows])
    whole = gradient("llama", nll, [batch], 10_000)
    apart = gradient("llama", nll, rows_of(batch, [3], [0, 1, 2, 4, 5, 6]), 10_000)
    assert relative_difference(apart, whole) < RELATIVE
