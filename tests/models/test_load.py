"""Model directories in and out."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from postgrad.data.batch import collate
from postgrad.errors import DataError
from postgrad.models.load import (
    context_length,
    load_policy,
    load_reward_model,
    save_policy,
    save_reward_model,
)
from postgrad.protocols import Loss
from postgrad.testing import tiny_model
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import LocalTrainer

ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 40, 41], [90, 91, 92, 93]]


def batch():
    return collate(ROWS, [[False, False, True, True, True, True][: len(row)] for row in ROWS])


def gradients(directory, **options):
    model = load_policy(directory, **options)
    trainer = LocalTrainer(model, batch_tokens=1000)
    trainer.forward_backward(batch(), lambda part, out: Loss(-out.logprobs.sum(), part.num_loss_tokens, {}))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_memory_not_gradients(tmp_path):
    directory = tiny_model(tmp_path / "model")
    plain, checkpointed = gradients(directory), gradients(directory, gradient_checkpointing=True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


def test_gradient_checkpointing_reruns_the_layers(tmp_path):
    model = load_policy(tiny_model(tmp_path / "model"), gradient_checkpointing=True)
    runs = []
    # On the way in: the second pass ends as soon as it has what the backward pass needs.
    model.body.layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    trainer = LocalTrainer(model, batch_tokens=1000)
    trainer.forward_backward(batch(), lambda part, out: Loss(-out.logprobs.sum(), part.num_loss_tokens, {}))
    assert len(runs) == 2


def test_the_context_is_read_without_the_weights(tmp_path):
    directory = tiny_model(tmp_path / "model")
    expected = json.loads((directory / "config.json").read_text())["max_position_embeddings"]
    (directory / "model.safetensors").unlink()
    assert context_length(directory) == expected


def test_a_saved_policy_is_the_policy_with_its_template(tmp_path):
    directory = tiny_model(tmp_path / "model")
    model = load_policy(directory)
    save_policy(model, tmp_path / "saved", tokenizer_from=directory)
    again = load_policy(tmp_path / "saved")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    before, after = (Renderer(load_tokenizer(d)) for d in (directory, tmp_path / "saved"))
    assert after.fingerprint == before.fingerprint


def reward_model(tmp_path):
    directory = tiny_model(tmp_path / "model")
    torch.manual_seed(1)
    model = load_policy(directory, heads=("reward",))
    save_reward_model(model, tmp_path / "reward", tokenizer_from=directory, canaries=ROWS)
    return tmp_path / "reward"


def test_a_reward_model_comes_back_with_its_head(tmp_path):
    directory = reward_model(tmp_path)
    rows = json.loads((directory / "canaries.json").read_text())
    assert len({round(row["reward"], 4) for row in rows}) == len(ROWS)
    assert all(math.isfinite(row["reward"]) for row in rows)
    load_reward_model(directory)


def test_a_reward_model_with_another_head_is_refused(tmp_path):
    directory = reward_model(tmp_path)
    head = load_file(directory / "heads.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in head.items()}, directory / "heads.safetensors")
    with pytest.raises(DataError, match="when it was saved"):
        load_reward_model(directory)


def test_a_policy_is_not_taken_for_a_reward_model(tmp_path):
    with pytest.raises(DataError, match="is not a reward model"):
        load_reward_model(tiny_model(tmp_path / "model"))
