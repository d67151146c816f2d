"""PolicyModel against plain transformers, one sequence at a time."""

import pytest
import torch
from small import (
    ARCHITECTURES,
    VOCABULARY,
    plain_batch_logprobs,
    random_model,
    siblings_batch,
    uneven_batch,
)

from postgrad.models.policy import PolicyModel


def outputs(model, batch, temperature=1.0):
    return model.token_outputs(batch.input_ids, batch.lengths, batch.loss_mask, temperature=temperature)


def last_states(model, batch):
    """[B, T, D] by transformers, every sequence alone."""
    states = torch.zeros(*batch.input_ids.shape, model.lm.config.hidden_size)
    for i, length in enumerate(batch.lengths.tolist()):
        states[i, :length] = model.lm.model(batch.input_ids[i : i + 1, :length]).last_hidden_state[0]
    return states


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logprobs_are_those_of_transformers_one_sequence_at_a_time(architecture, temperature):
    model = random_model(architecture)
    for batch in (uneven_batch(((3, 5), (7, 1), (1, 9), (12, 20))), siblings_batch(prompt=10, answers=(3, 12, 1))):
        with torch.no_grad():
            logprobs, entropy, values = outputs(model, batch, temperature)
        assert values is None
        expected = plain_batch_logprobs(model.lm, batch, temperature=temperature)
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
        assert not entropy[~batch.loss_mask].any()
        assert expected[batch.loss_mask].std() > 0.5, "next to a uniform distribution nothing would be tested"


def test_entropy_and_values_belong_to_the_state_before_the_token():
    model = random_model(heads=("value",))
    batch = siblings_batch()
    with torch.no_grad():
        _, entropy, values = outputs(model, batch)
        before = last_states(model, batch).roll(1, dims=1)
        logp = model.lm.lm_head(before).log_softmax(-1)
        expected_values = model.heads["value"](before)[..., 0]
    torch.testing.assert_close(values, expected_values * batch.loss_mask, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(logp.exp() * logp).sum(-1) * batch.loss_mask, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_sequences_in_the_row_have_no_influence_at_all(architecture):
    model = random_model(architecture)
    batch = uneven_batch()
    changed_ids = batch.input_ids.clone()
    changed_ids[0, : batch.lengths[0]] = (changed_ids[0, : batch.lengths[0]] + 7) % VOCABULARY
    with torch.no_grad():
        before, _, _ = outputs(model, batch)
        after, _, _ = outputs(model, batch.with_(input_ids=changed_ids))
    assert torch.equal(before[1:], after[1:])
    assert (before[0] - after[0]).abs().max() > 0.1


def test_a_sibling_has_no_influence_but_the_shared_prompt_has():
    model = random_model()
    batch = siblings_batch(groups=1)
    sibling, prompt = batch.input_ids.clone(), batch.input_ids.clone()
    sibling[0, int(batch.lengths[0]) - 2] += 1
    prompt[:, 0] += 1
    with torch.no_grad():
        before, _, _ = outputs(model, batch)
        after_sibling, _, _ = outputs(model, batch.with_(input_ids=sibling % VOCABULARY))
        after_prompt, _, _ = outputs(model, batch.with_(input_ids=prompt % VOCABULARY))
    assert torch.equal(before[1:], after_sibling[1:])
    assert bool(((before - after_prompt).abs().amax(1) > 1e-3).all())


def test_a_shared_prompt_receives_the_gradients_of_all_its_answers():
    batch = siblings_batch()

    def gradients(parts):
        model = random_model()
        for part in parts:
            outputs(model, part)[0].sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    together = gradients([batch])
    apart = gradients([batch.rows(torch.tensor([i])) for i in range(len(batch))])
    for name, gradient in together.items():
        scale = float(apart[name].abs().max())
        torch.testing.assert_close(gradient, apart[name], atol=1e-5 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_reward_is_the_head_on_the_last_real_token(architecture):
    model = random_model(architecture, heads=("reward",))
    batch = siblings_batch(prompt=5)
    prefixes = batch.loss_mask.int().argmax(1)
    with torch.no_grad():
        alone = model.sequence_rewards(batch.input_ids, batch.lengths)
        shared = model.sequence_rewards(batch.input_ids, batch.lengths, prefix_lengths_B=prefixes)
        last = last_states(model, batch)[torch.arange(len(batch)), batch.lengths - 1]
        expected = model.heads["reward"](last)[:, 0]
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_padding_holds_no_token_that_a_reward_could_depend_on():
    model = random_model(heads=("reward",))
    batch = uneven_batch()
    wider = torch.nn.functional.pad(batch.input_ids, (0, 5), value=VOCABULARY - 1)
    with torch.no_grad():
        rewards = model.sequence_rewards(batch.input_ids, batch.lengths)
        assert torch.equal(rewards, model.sequence_rewards(wider, batch.lengths))


def test_a_fresh_critic_says_zero_and_a_fresh_reward_head_has_deviation_one_over_the_root_of_width_plus_one():
    heads = PolicyModel(random_model(hidden_size=1024, head_dim=256).lm, heads=("value", "reward")).heads
    assert not heads["value"].weight.any()
    assert heads["reward"].weight.detach().std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert heads["value"].bias.item() == heads["reward"].bias.item() == 0
