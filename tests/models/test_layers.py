"""Layers that are exchanged for leaner ones, and weights that are packed for a while."""

import asyncio

import pytest
import torch
from small import random_model
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from postgrad.engine.local import LocalEngine
from postgrad.models.layers import use_lean_layers
from postgrad.models.linear import Linear, packed_weights, use_fast_products
from postgrad.types import GenerationRequest, SamplingParams


def kept_numbers(module, x):
    """Numbers that autograd keeps of a forward pass, parameters aside, and its output."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()} | {x.untyped_storage().data_ptr()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    return sum(kept.values()), out


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaRMSNorm(32, eps=0.1),
        lambda: LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=64, mlp_bias=True)),
    ],
)
def test_a_leaner_layer_says_the_same_learns_the_same_and_keeps_less(make):
    plain = make()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.3 * torch.randn_like(p))
    lean = make()
    lean.load_state_dict(plain.state_dict())
    model = torch.nn.Sequential(lean)
    use_fast_products(model)
    use_lean_layers(model)
    assert type(lean) is not type(plain)
    assert type(lean).__name__ == type(plain).__name__
    given = torch.randn(5, 32)
    before, expected = kept_numbers(plain, one := given.clone().requires_grad_())
    after, found = kept_numbers(lean, two := given.clone().requires_grad_())
    torch.testing.assert_close(found, expected)
    assert after < before
    upstream = torch.randn_like(found)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
    for mine, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


class OnePlus(LlamaRMSNorm):
    """As Gemma has it, under a name that Llama's norm has."""

    def forward(self, x):
        return super().forward(x) + x


def test_a_layer_that_does_something_else_stays():
    norm = OnePlus(16)
    gelu = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=8, num_attention_heads=2, hidden_act="gelu"))
    model = torch.nn.Sequential(norm, gelu)
    use_fast_products(model)
    use_lean_layers(model)
    assert type(norm) is OnePlus
    assert type(gelu) is LlamaMLP


def layers(model):
    return [m for m in model.lm.modules() if isinstance(m, Linear)]


def answer(engine):
    return engine.sample([GenerationRequest((1, 2, 3), SamplingParams(max_tokens=8, temperature=0), seed=0)])[0]


def test_a_trained_models_copies_go_and_a_frozen_ones_stay_until_its_weights_change():
    model = random_model()
    with packed_weights(model.lm, keep=False):
        assert all(layer.packed is not None for layer in layers(model))
    assert all(layer.packed is None for layer in layers(model))
    with packed_weights(model.lm, keep=True):
        pass
    first = [layer.packed for layer in layers(model)]
    with torch.no_grad():
        layers(model)[0].weight.mul_(2)
    with packed_weights(model.lm, keep=True):
        again = [layer.packed for layer in layers(model)]
    assert again[0] is not first[0]
    assert again[1:] == first[1:]


def test_a_frozen_engine_answers_by_the_weights_that_it_is_given():
    engine = LocalEngine(random_model().requires_grad_(False), stop_ids=(), decode=str)
    other = random_model(seed=1)
    before, expected = answer(engine), answer(LocalEngine(other, stop_ids=(), decode=str))
    asyncio.run(engine.load_weights(other.state_dict(), version=1))
    found = answer(engine)
    assert found.token_ids == expected.token_ids != before.token_ids
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
