"""Training weights that are bfloat16."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from small import differing, state, tokens

from postgrad.data.batch import collate, make_batch
from postgrad.engine.local import LocalEngine
from postgrad.models.load import load_policy, save_policy
from postgrad.models.placement import place
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Loss
from postgrad.trainer.local import LocalTrainer
from postgrad.types import (
    Conversation,
    Example,
    GenerationRequest,
    Group,
    Message,
    SamplingParams,
    Score,
    Trajectory,
    Turn,
)

SHAPES = ((3, 5), (7, 1), (1, 9), (4, 20))


def batch(seed=0):
    ids = [tokens(prompt + answer, seed=10 * seed + prompt, vocabulary=256) for prompt, answer in SHAPES]
    return collate(ids, [[False] * prompt + [True] * answer for prompt, answer in SHAPES])


def nll(part, output):
    total, count, metrics = nll_loss(output.logprobs, part.loss_mask)
    if output.values is not None:
        total = total + (output.values[part.loss_mask] - 1).square().sum()
    return Loss(total, count, metrics)


def trainer_of(directory, dtype="bfloat16", **options):
    torch.manual_seed(0)
    return LocalTrainer(load_policy(directory, placement=place("cpu", dtype), **options), batch_tokens=1000)


def learn(trainer, steps, learning_rate):
    losses = []
    for step in steps:
        losses.append(trainer.forward_backward(batch(step % 2), nll)["loss/nll"])
        trainer.optim_step(learning_rate)
    return losses


def test_updates_too_small_for_bfloat16_add_up(tiny_model_directory):
    # The norms are about 1, where neighbours in bfloat16 lie 0.004 and 0.008 apart: 2e-4 changes none of them.
    name = "lm.model.norm.weight"
    trainer = trainer_of(tiny_model_directory)
    exact = trainer_of(tiny_model_directory, "float32")
    before = state(trainer.model)[name]
    assert before.dtype == torch.bfloat16
    learn(trainer, [0], 2e-4)
    assert torch.equal(state(trainer.model)[name], before)
    assert (trainer._masters[name] != before.float()).all()
    learn(trainer, [0] * 39, 2e-4)
    learn(exact, [0] * 40, 2e-4)
    moved = state(trainer.model)[name].float() - before.float()
    wanted = state(exact.model)[name] - before.float()
    assert wanted.abs().max() > 0.006
    assert (moved - wanted).abs().max() < 0.005, "half a step of bfloat16 above 1, and the gradients' own rounding"
    assert torch.equal(state(trainer.model)[name], trainer._masters[name].bfloat16())


def test_gradients_are_summed_in_float32(tiny_model_directory):
    def scaled(part, output, scale):
        loss = nll(part, output)
        return Loss(loss.total * scale, loss.count, loss.metrics)

    def gradients(scales):
        trainer = trainer_of(tiny_model_directory)
        for scale in scales:
            trainer.forward_backward(batch(), partial(scaled, scale=scale))
        return {name: p.grad for name, p in trainer._trainable.items()}

    once = gradients([1.0])
    # A thousandth of a bfloat16 number is lost on it, however often it is added.
    often = gradients([1.0, *[2.0**-10] * 128])
    for name, gradient in once.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(often[name], 1.125 * gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_loss_falls_as_in_float32(tiny_model_directory):
    losses = {
        dtype: learn(trainer_of(tiny_model_directory, dtype), range(60), 5e-3) for dtype in ("bfloat16", "float32")
    }
    assert losses["float32"][0] > 5
    assert losses["float32"][-1] < 1
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.15)


@pytest.mark.parametrize("options", [{"heads": ("value",)}, {"lora_rank": 4}], ids=["all weights", "adapter"])
def test_a_resumed_run_takes_the_same_steps_to_the_last_bit(tiny_model_directory, tmp_path, options):
    whole, killed = (trainer_of(tiny_model_directory, **options) for _ in range(2))
    learn(whole, range(4), 1e-3)
    learn(killed, range(2), 1e-3)
    killed.save(tmp_path)
    saved = {k: v for k, v in load_file(tmp_path / "trainer.safetensors").items() if k.startswith("model.")}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    resumed = trainer_of(tiny_model_directory, **options)
    resumed.load(tmp_path)
    assert differing(state(resumed.model), state(killed.model)) == []
    learn(resumed, range(2, 4), 1e-3)
    assert differing(state(resumed.model), state(whole.model)) == []
    assert differing(resumed._masters, whole._masters) == []
    assert differing(whole._masters, {k.removeprefix("model."): v for k, v in saved.items()}) == list(whole._masters)


def test_heads_and_adapters_are_their_own_masters(tiny_model_directory, tmp_path):
    trainer = trainer_of(tiny_model_directory, heads=("value",), lora_rank=4)
    learn(trainer, range(3), 1e-2)
    for name, p in trainer._trainable.items():
        assert p.dtype == torch.float32
        assert trainer._masters[name] is p
    assert {p.dtype for p in trainer.model.lm.parameters() if not p.requires_grad} == {torch.bfloat16}
    save_policy(trainer.model, tmp_path, tokenizer_from=tiny_model_directory)
    merged = LocalTrainer(load_policy(tmp_path, heads=("value",)), batch_tokens=1000).evaluate(batch())
    kept = trainer.evaluate(batch())
    torch.testing.assert_close(merged.logprobs, kept.logprobs, atol=0.1, rtol=0)
    torch.testing.assert_close(merged.values, kept.values, atol=0.05, rtol=0)


def test_logprobs_of_rounded_weights_are_not_rounded_themselves(tiny_model_directory):
    model = load_policy(tiny_model_directory, placement=place("cpu", "bfloat16"))
    rows = batch()
    states, places = model.states(rows.input_ids, rows.lengths, None)
    logits = states.double() @ model.vocabulary_VD.double().T
    before = places.roll(1, dims=1)[rows.loss_mask]
    expected = logits[before].log_softmax(-1).gather(1, rows.input_ids[rows.loss_mask][:, None])[:, 0]
    found = LocalTrainer(model, batch_tokens=1000).evaluate(rows).logprobs[rows.loss_mask]
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_the_engine_says_nearly_the_same(tiny_model_directory, record_property):
    trainer = trainer_of(tiny_model_directory)
    learn(trainer, range(20), 5e-3)
    engine = LocalEngine(trainer.model, stop_ids=(), decode=str)
    prompts = [tuple(tokens(n, seed=n, vocabulary=256)) for n in (4, 9, 9, 30)]
    found = engine.sample([GenerationRequest(p, SamplingParams(24), seed=i) for i, p in enumerate(prompts)])
    example = Example("", Conversation((Message("user", ""),)))
    trajectories = (
        Trajectory("", (Turn(p, c),), "completed", scores=(Score("", 0.0),))
        for p, c in zip(prompts, found, strict=True)
    )
    sampled = make_batch([Group(example, (t,)) for t in trajectories])
    difference = ((trainer.evaluate(sampled).logprobs - sampled.sampler_logprobs) * sampled.loss_mask).abs()
    record_property("greatest", float(difference.max()))
    record_property("mean", float(difference.sum() / sampled.num_loss_tokens))
    assert 1e-5 < difference.max() < 0.1, "bfloat16 rounds states, so more than in float32"
