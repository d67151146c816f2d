"""Families of transformers, each with random weights, against its own forward pass before anything of it is changed."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from small import siblings_batch, tokens, uneven_batch
from transformers import AutoConfig, AutoModelForCausalLM

from postgrad.engine.local import LocalEngine
from postgrad.errors import DataError
from postgrad.models.policy import PolicyModel
from postgrad.types import GenerationRequest, SamplingParams

VOCABULARY, WINDOW = 96, 8
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SLIDING = {"sliding_window": WINDOW}
MIXED = {**SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
SQUASHED = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": SLIDING,
    "ministral3": SLIDING,
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {**MIXED, **SQUASHED},
    "gemma3_text": MIXED,
    "smollm3": {},
    "phi": {},
    "phi3": SLIDING,
    "granite": {"logits_scaling": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "cohere": {"logit_scale": 3.0},
    "cohere2": {"logit_scale": 3.0, **MIXED},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_bigcode": {},
    "starcoder2": SLIDING,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "glm4": {"head_dim": 8},
    "ernie4_5": {},
    "exaone4": MIXED,
    "nanochat": {"final_logit_softcapping": 2.0},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


def random_lm(family: str, **changes: Any) -> Any:
    """Random weights, norms and biases included."""
    default = AutoConfig.for_model(family)
    known = default.to_dict().keys() | default.attribute_map.keys()
    config = AutoConfig.for_model(family, **{k: v for k, v in SHAPE.items() if k in known}, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in lm.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return lm


@cache
def pair(family: str) -> tuple[Any, PolicyModel]:
    """The same weights in transformers' hands and in ours."""
    lm = random_lm(family, **FAMILIES[family])
    return copy.deepcopy(lm), PolicyModel(lm).eval()


def own_logprobs(lm: Any, batch: Any, temperature: float = 1.0) -> torch.Tensor:
    """[B, T] of right-padded sequences, zero outside the loss mask."""
    logp = (lm(input_ids=batch.input_ids, use_cache=False).logits / temperature).log_softmax(-1)
    following = logp[:, :-1].gather(2, batch.input_ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(following, (1, 0)) * batch.loss_mask


def our_logprobs(model: PolicyModel, batch: Any, temperature: float = 1.0) -> torch.Tensor:
    return model.token_outputs(batch.input_ids, batch.lengths, batch.loss_mask, temperature=temperature)[0]


def batches() -> tuple[Any, Any, Any]:
    """Within every window and beyond; with a shared prompt."""
    return (
        uneven_batch(((3, 5), (1, 4), (4, 2))),
        uneven_batch(((3, 5), (12, 20), (1, 9))),
        siblings_batch(prompt=10, answers=(3, 12, 1)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logprobs_are_those_of_its_own_forward_pass(family):
    lm, model = pair(family)
    for batch in batches():
        with torch.no_grad():
            expected = own_logprobs(lm, batch, 0.7)
            torch.testing.assert_close(our_logprobs(model, batch, 0.7), expected, atol=1e-5, rtol=1e-6)
        assert expected[batch.loss_mask].std() > 0.1, "next to a uniform distribution nothing would be tested"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_their_logprobs_are_those_of_a_loop_over_its_own_forward_pass(family):
    lm, model = pair(family)
    engine = LocalEngine(model, stop_ids=(), decode=str)
    requests = [
        GenerationRequest(tuple(tokens(num, seed=num)), SamplingParams(max_tokens=most, temperature=0.0), seed=0)
        for num, most in ((2, 10), (13, 4), (13, 6))
    ]
    for request, completion in zip(requests, engine.sample(requests), strict=True):
        ids = list(request.prompt_ids)
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            with torch.no_grad():
                best = lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1).max(0)
            assert token == int(best.indices)
            assert logprob == pytest.approx(float(best.values), abs=1e-5)
            ids.append(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_packed_sequences_is_that_of_padded_ones(family):
    lm, model = pair(family)
    for batch in batches():
        lm.zero_grad()
        model.zero_grad()
        own_logprobs(lm, batch).sum().backward()
        our_logprobs(model, batch).sum().backward()
        expected = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
        ours = {name: p.grad for name, p in model.lm.named_parameters() if p.grad is not None}
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.norm())
            assert float((ours[name] - gradient).norm()) <= 1e-5 * max(scale, 1.0), name


def refused(family: str, **changes: Any) -> str:
    with pytest.raises(DataError, match=f"^'{family}' models|^the attention of '{family}'") as e:
        LocalEngine(PolicyModel(random_lm(family, **changes)), stop_ids=(), decode=str)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("stablelm", {}, "its layers keep what a forward pass brings from their attention"),
        ("gpt_oss", {"num_local_experts": 4, **MIXED}, "its attention has 's_aux'"),
        ("phimoe", {"num_local_experts": 2, **SLIDING}, "its window is 8, but its layers say {None}"),
        ("llama4_text", {"num_local_experts": 2, "layer_types": ["chunked_attention"] * 2}, "layers of 'chunked_"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of 'conv'"),
        ("mimo_v2_flash", {"head_dim": 8, "v_head_dim": 4}, "RuntimeError"),
        ("mamba", {"state_size": 4}, "states no context length"),
        ("falcon", {}, "cannot be exchanged"),
        ("diffllama", {}, "logprobs of tokens sampled one by one differ by"),
        ("bert", {"is_decoder": False}, "logprobs of packed sequences differ by"),
    ],
)
def test_a_family_that_does_something_else_is_refused_with_the_reason(family, changes, said):
    assert said in refused(family, **changes)


def test_a_model_that_changes_its_logits_in_its_own_way_is_refused_with_the_difference():
    lm = random_lm("llama")
    lm.register_forward_hook(lambda _, __, out: setattr(out, "logits", out.logits * 1.01))
    with pytest.raises(DataError, match=r"^'llama' models .* packed sequences differ by 0\.\d+ .* explains 0\.00\d+$"):
        PolicyModel(lm)


@torch.no_grad()
def test_half_precision_is_rounding():
    batch = siblings_batch(prompt=10, answers=(3, 12, 1))
    whole = our_logprobs(PolicyModel(random_lm("gemma2", **FAMILIES["gemma2"])), batch, 1.0)
    rounded = our_logprobs(PolicyModel(random_lm("gemma2", **FAMILIES["gemma2"]).bfloat16()), batch, 1.0)
    assert 0 < float((whole - rounded)[batch.loss_mask].abs().mean()) < 0.05


def test_a_context_that_depends_on_the_neighbours_length_is_the_original_one():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    assert PolicyModel(random_lm("phi3", rope_parameters=rope, original_max_position_embeddings=32)).context == 32
