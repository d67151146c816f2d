"""Counts by hand, and against torch's own counter of matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from small import CONFIGS, random_model, siblings_batch, tokens, uneven_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from postgrad.bench.child import bundles
from postgrad.bench.flops import Bundle, ModelShape, model_shape
from postgrad.models.load import load_policy

SHAPE = ModelShape(linear=10, adapter=0, vocabulary=7, layers=2, query_width=3, kv_width=1)
ADAPTED = ModelShape(linear=10, adapter=4, vocabulary=7, layers=2, query_width=3, kv_width=1)
SIBLINGS = Bundle(3, (2, 1))


def matrix_products(run: Any) -> int:
    """FLOPs of the two-dimensional products that torch sees while `run()` runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in found.items() if str(operation) in ("aten.mm", "aten.addmm"))


def test_forward_by_hand() -> None:
    assert SHAPE.forward(5, 2) == 2 * (10 * 5 + 7 * 2) == 128
    assert ADAPTED.forward(5, 2) == 2 * (14 * 5 + 7 * 2) == 168


def test_a_trained_matrix_costs_three_forward_passes_and_a_frozen_one_two() -> None:
    assert SHAPE.train(5, 2) == 3 * 128
    assert ADAPTED.train(5, 2) == 4 * (10 * 5 + 7 * 2) + 6 * 4 * 5 == 376


def test_a_shared_prefix_is_counted_once_and_seen_by_every_sibling() -> None:
    assert SIBLINGS.tokens == 6
    # The prefix sees 1 + 2 + 3 tokens; the first answer 4 + 5, the second 4.
    assert SIBLINGS.pairs == 6 + 9 + 4
    assert SHAPE.attention([SIBLINGS], backward=False) == 4 * 2 * 3 * 19
    assert SHAPE.attention([SIBLINGS], backward=True) == 3 * 4 * 2 * 3 * 19


def test_bytes_of_decoding_by_hand() -> None:
    # Three steps read 17 weights and two prompt tokens; the longer request reads 0, 1 and 2 tokens of its own besides.
    own = 0 + 1 + 2 + 0
    assert SHAPE.decode_bytes(2, [3, 1], width=4) == 4 * (17 * 3 + 2 * 2 * 1 * (2 * 3 + own))


@given(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_pairs_are_those_of_the_mask(prefix: int, owns: list[int]) -> None:
    seen = sum(t + 1 for t in range(prefix)) + sum(prefix + t + 1 for own in owns for t in range(own))
    assert Bundle(prefix, tuple(owns)).pairs == seen


def test_weights_of_the_default_model_by_hand() -> None:
    model = random_model("llama")
    # Queries and output 32 x 32, keys and values 32 x 16, three of 32 x 64, in two layers; 48 words of 32 numbers.
    assert model_shape(model) == ModelShape(2 * (2 * 1024 + 2 * 512 + 3 * 2048), 0, 48 * 32, 2, 32, 16)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_full_training_is_what_torch_counts(architecture: str) -> None:
    shape = model_shape(random_model(architecture))
    lm: Any = AutoModelForCausalLM.from_config(CONFIGS[architecture](), attn_implementation="eager")
    ids = torch.tensor([tokens(11, seed=1)])
    assert matrix_products(lambda: lm(ids)) == shape.forward(11, 11)
    assert matrix_products(lambda: lm(ids).logits.sum().backward()) == shape.train(11, 11)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks under the old name
def test_an_adapter_is_what_torch_counts_but_for_the_first_layer(tiny_model_directory: Path) -> None:
    """Nothing below the first layer learns, so the gradients of what it reads are never computed."""
    shape = model_shape(load_policy(tiny_model_directory, lora_rank=4))
    lm: Any = AutoModelForCausalLM.from_pretrained(tiny_model_directory, attn_implementation="eager")
    get_peft_model(lm, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.tensor([tokens(11, seed=1)])
    first = 32 * (32 + 16 + 16) + 3 * 4 * 32
    counted = matrix_products(lambda: lm(ids).logits.sum().backward())
    assert counted == shape.train(11, 11) - 2 * first * 11
    assert shape.adapter == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))


def test_groups_of_a_batch_become_bundles_and_lone_rows_do_not() -> None:
    siblings = siblings_batch(prompt=6, answers=(3, 5, 2), groups=2)
    assert bundles(siblings) == [Bundle(6, (3, 5, 2)), Bundle(7, (3, 5, 2))]
    lone = uneven_batch(((3, 5), (7, 1)))
    assert bundles(lone) == [Bundle(0, (8,)), Bundle(0, (8,))]
