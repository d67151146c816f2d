"""A model from a few lines of a recipe."""

from typing import Any

import pytest
import torch

from postgrad.config.load import load_recipe
from postgrad.config.pretrain import PretrainRecipe
from postgrad.errors import ConfigError
from postgrad.models.fresh import fresh_policy
from postgrad.recipes import recipe_path

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def size(config):
    return sum(p.numel() for p in fresh_policy(config, vocab_size=300, eos_id=0).parameters())


def test_its_parameters_are_those_that_a_count_by_hand_gives():
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    tied = size({"model_type": "llama", "tie_word_embeddings": True, **SHAPE})
    assert tied == 300 * 16 + 2 * layer + 16
    assert size({"model_type": "llama", "tie_word_embeddings": False, **SHAPE}) == tied + 300 * 16


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "mistral", "olmo2", "smollm3"])
def test_any_decoder_that_a_policy_runs_can_be_made(model_type):
    torch.manual_seed(1)
    model = fresh_policy({"model_type": model_type, **SHAPE}, vocab_size=300, eos_id=7)
    assert (model.lm.config.model_type, model.lm.config.eos_token_id, model.context) == (model_type, 7, 32)
    assert len(model.layers) == 2
    assert model.vocabulary_VD.shape == (300, 16)
    torch.manual_seed(1)
    again = fresh_policy({"model_type": model_type, **SHAPE}, vocab_size=300, eos_id=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hiden_size": 3}, r"unknown key 'model.config.hiden_size'; 'llama' has .*hidden_size"),
        ({"vocab_size": 9}, r"'model.config.vocab_size' comes from the tokenizer; remove it"),
        ({"eos_token_id": 9}, r"'model.config.eos_token_id' comes from the tokenizer"),
        ({"model_type": "abacus"}, r"'model.config.model_type' = 'abacus' is no architecture"),
        ({"model_type": None}, r"missing key 'model.config.model_type'"),
        ({"hidden_size": 17}, r"'llama' cannot be built from these values .*17.* is not a multiple"),
        ({"hidden_size": "16"}, r"'llama' cannot be built from these values .*expected int"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, r"'llama' cannot be built from these values"),
        ({"num_hidden_layers": 0}, r"'llama' cannot be built from these values .*it has no layers"),
        ({"max_position_embeddings": 1}, r"its context is shorter than two tokens"),
        ({"hidden_act": "abacus"}, r"'llama' cannot be built from these values"),
    ],
)
def test_a_key_or_value_that_does_not_fit_is_one_sentence(changes, said):
    with pytest.raises(ConfigError, match=said) as e:
        fresh_policy({"model_type": "llama", **SHAPE, **changes}, vocab_size=300, eos_id=0)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8},
        {"model_type": "stablelm", **SHAPE},
    ],
)
def test_an_architecture_that_a_policy_cannot_run_is_refused(config):
    with pytest.raises(ConfigError, match=f"'{config['model_type']}' cannot be built"):
        fresh_policy(config, vocab_size=300, eos_id=0)


def test_the_packaged_recipe_is_a_model_of_ten_million_parameters():
    recipe = load_recipe(recipe_path("pretrain-10m"))
    assert isinstance(recipe, PretrainRecipe)
    model = fresh_policy(recipe.model.config, vocab_size=recipe.tokenizer.vocab_size, eos_id=0)
    layer = 4 * 384 * 384 + 3 * 384 * 960 + 2 * 384
    assert sum(p.numel() for p in model.parameters()) == 4096 * 384 + 5 * layer + 384 == 10_055_808
