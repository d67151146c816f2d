"""PPO and GRPO on one tiny batch by hand: two answers, of two tokens (cut off) and of one (ended)."""

from dataclasses import dataclass

import pytest
import torch
from small import random_model

from postgrad.data.batch import Batch, make_batch
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.protocols import PolicyOutput
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn

OLD = [[0, -1.0, -2.0], [0, -1.0, 0]]
REF = [[0, -1.5, -2.0], [0, -2.0, 0]]
VALUES = [[0, 0.2, 0.3], [0, 0.4, 0]]


@dataclass(frozen=True)
class Given:
    """A policy that says what it is told to."""

    logprobs: list[list[float]]
    values: list[list[float]] | None = None

    def evaluate(self, batch: Batch) -> PolicyOutput:
        logprobs = torch.tensor(self.logprobs)
        values = None if self.values is None else torch.tensor(self.values)
        return PolicyOutput(logprobs, torch.full_like(logprobs, 0.5) * batch.loss_mask, values)


def trajectory(sampled, reward, finish, prompt=(9,)):
    turn = Turn(prompt, Completion(tuple(sampled), (-1.25,) * len(sampled), finish, 0, ""))
    status = "truncated" if finish == "length" else "completed"
    return Trajectory("t", (turn,), status, scores=(Score("g", reward),))


def group(*trajectories):
    return Group(Example("e", Conversation((Message("user", "?"),))), trajectories)


def two_answers():
    return make_batch([group(trajectory([1, 2], 1.0, "length"), trajectory([3], 2.0, "stop"))])


def test_ppo_pays_kl_at_every_token_and_score_and_penalty_at_the_last():
    ppo = PPO(kl_coef=0.1, gamma=1.0, gae_lambda=0.5, missing_end_penalty=0.5)
    batch, metrics = ppo.prepare(two_answers(), Given(OLD, VALUES), Given(REF))
    # Rewards: -0.1 * 0.5 and 1 - 0.5; -0.1 * 1 + 2. Advantages before whitening: 0.05 + 0.5 * 0.2, 0.2; 1.5.
    torch.testing.assert_close(batch.returns, torch.tensor([[0, 0.35, 0.5], [0, 1.9, 0]]))
    whitened = torch.tensor([[0, -0.609704, -0.544378], [0, 1.154083, 0]])
    torch.testing.assert_close(batch.advantages, whitened, atol=1e-5, rtol=0)
    assert batch.old_logprobs.tolist() == OLD
    assert torch.equal(batch.old_values, torch.tensor(VALUES))
    assert metrics["policy/kl_ref"] == pytest.approx(0.75)
    assert metrics["policy/entropy"] == pytest.approx(0.5)
    assert metrics["sampler/logprob_diff_max"] == pytest.approx(0.75)
    assert metrics["value/explained_variance"] == pytest.approx(0.198403, abs=1e-5)


def test_ppo_loss_by_hand():
    # Ratios 2, 1 and 1/2 with clip 0.2; values 0.5, 0.3 and 0.4 of which the first may only move to 0.25.
    batch = two_answers().with_(
        old_logprobs=torch.tensor(OLD),
        advantages=torch.tensor([[0, 1.0, -2.0], [0, 3.0, 0]]),
        returns=torch.tensor([[0, 1.0, 0.3], [0, 1.4, 0]]),
        old_values=torch.tensor(VALUES),
    )
    now = torch.tensor(OLD) + torch.tensor([[0, 2.0, 1.0], [0, 0.5, 0]]).log().nan_to_num(neginf=0)
    values = torch.tensor([[0, 0.5, 0.3], [0, 0.4, 0]])
    loss = PPO(value_coef=0.1, value_clip=0.05).loss(batch, PolicyOutput(now, now, values))
    assert loss.count == 3
    policy, value = -1.2 + 2.0 - 1.5, (0.75**2 + 0 + 1.0) / 2
    assert float(loss.total) == pytest.approx(policy + 0.1 * value, abs=1e-6)
    assert loss.metrics["loss/policy"] == pytest.approx(policy, abs=1e-6)
    assert loss.metrics["loss/value"] == pytest.approx(value, abs=1e-6)
    assert loss.metrics["policy/clip_frac"] == 1
    assert loss.metrics["value/clip_frac"] == 1


@pytest.mark.parametrize(("kind", "advantage"), [("dr_grpo", 0.75), ("grpo", 0.707106)])
def test_grpo_compares_siblings_after_the_penalty(kind, advantage):
    grpo = GRPO(kind=kind, kl_coef=0.1, missing_end_penalty=0.5)
    batch, metrics = grpo.prepare(two_answers(), Given(OLD), Given(REF))
    expected = torch.tensor([[0, -advantage, -advantage], [0, advantage, 0]])
    torch.testing.assert_close(batch.advantages, expected, atol=1e-5, rtol=0)
    assert metrics["policy/kl_ref"] == pytest.approx(0.75)
    loss = grpo.loss(batch, PolicyOutput(torch.tensor(OLD), torch.zeros(2, 3)))
    assert loss.count == 3
    assert float(loss.total) == pytest.approx(advantage + 0.1 * (0.5**2 + 1) / 2, abs=1e-5)


def test_a_score_of_zero_is_a_score():
    batch, _ = GRPO(missing_end_penalty=0.0).prepare(
        make_batch([group(trajectory([1], 0.0, "stop"), trajectory([2], -1.0, "stop"))]),
        Given([[0, -1.0], [0, -1.0]]),
        Given([[0, -1.0], [0, -1.0]]),
    )
    assert batch.advantages[:, 1].tolist() == pytest.approx([0.707106, -0.707106], abs=1e-5)


def test_grpo_leaves_out_groups_without_signal_and_ppo_does_not():
    equal = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.0, "stop"))
    unequal = group(trajectory([1], 1.0, "stop"), trajectory([2], 0.0, "stop"))
    cut_off = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.0, "length"))
    abstained = group(trajectory([1], 1.0, "stop"), trajectory([2], None, "stop"))
    groups = [equal, unequal, cut_off, abstained]
    assert GRPO(missing_end_penalty=0.5).select(groups) == [unequal, cut_off]
    assert GRPO(missing_end_penalty=0.0).select(groups) == [unequal]
    made_up = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.5, "length"))
    assert GRPO(missing_end_penalty=0.5).select([made_up]) == []
    assert PPO().select(groups) == [equal, unequal, cut_off]


@pytest.mark.parametrize("algorithm", [PPO(), GRPO()])
def test_before_the_first_update_every_ratio_is_one_and_the_gradient_is_reinforce(algorithm):
    batch = make_batch(
        [
            group(trajectory([1, 2], 1.0, "length", (9, 8, 7)), trajectory([3], 2.0, "stop", (9, 8, 7))),
            group(trajectory([4, 5, 6], 0.0, "stop", (5,)), trajectory([7, 1], 2.5, "stop", (5,))),
        ]
    )

    def trainer():
        return LocalTrainer(random_model(heads=("value",)), batch_tokens=8)

    ours = trainer()
    prepared, _ = algorithm.prepare(batch, ours, FrozenPolicy(random_model(seed=1), batch_tokens=100))
    metrics = ours.forward_backward(prepared, algorithm.loss)
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/kl_old"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/clip_frac"] == 0

    plain = trainer()
    out = plain.model.token_outputs(prepared.input_ids, prepared.lengths, prepared.loss_mask, temperature=1.0)
    logprobs, _, values = out
    loss = -(prepared.advantages * logprobs).sum()
    if isinstance(algorithm, PPO):
        loss = loss + algorithm.value_coef * (values - prepared.returns)[prepared.loss_mask].square().sum() / 2
    else:
        loss = loss + algorithm.kl_coef * (logprobs - prepared.ref_logprobs)[prepared.loss_mask].square().sum() / 2
    loss.backward()
    for (name, p), q in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * float(q.grad.abs().max()), rtol=1e-4, msg=name)
