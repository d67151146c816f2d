"""The algorithms on one tiny batch by hand: two answers, of two tokens (cut off) and of one (ended)."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from small import random_model

from postgrad.data.batch import Batch, make_batch
from postgrad.errors import DataError, TrainingDiverged
from postgrad.methods.algorithms import GROUP_RELATIVE
from postgrad.methods.credit import Correction
from postgrad.methods.grpo import CISPO, DAPO, DR_GRPO, GRPO, GSPO, MAXRL, RLOO
from postgrad.methods.ppo import PPO
from postgrad.methods.reinforce import Reinforce
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


def trajectory(sampled, reward, finish, prompt=(9,), logprobs=(-1.0, -2.0, -1.0)):
    turn = Turn(prompt, Completion(tuple(sampled), logprobs[: len(sampled)], finish, 0, ""))
    status = "truncated" if finish == "length" else "completed"
    return Trajectory(f"t{sampled}", (turn,), status, scores=(Score("g", reward),))


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
    assert metrics["policy/kl_coef"] == 0.1
    assert metrics["reward/penalised_mean"] == pytest.approx((0.45 + 1.9) / 2)
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


@dataclass(frozen=True)
class Relative:
    """What a member of the family makes of the two answers: rewards 1 - 0.5 and 2 after the penalty of 0.5."""

    algorithm: GRPO
    advantage: float
    loss: float
    count: int


# k2 at the three tokens: 1/8, 0 and 1/2. By sequence, (1/8 + 0) / 2 + 1/2; by a budget of 4, (1/8 + 0 + 1/2) / 4.
STD = 0.707106
FAMILY = {
    "grpo": Relative(GRPO(), STD, -STD + STD + 0.1 * (1 / 16 + 1 / 2), 2),
    "dr_grpo": Relative(DR_GRPO, 0.75, (2 * 0.75 - 0.75) / 4 + 0.1 * (5 / 8) / 4, 2),
    # rewards 0.5 - 0.05 and 2 - 0.1, each against the other; no KL in the loss
    "rloo": Relative(RLOO, 1.45, 1.45 / 4, 2),
    "dapo": Relative(replace(DAPO, overlong_share=0.0), STD, STD + 0.1 * 5 / 8, 3),
    "gspo": Relative(GSPO, STD, 0.1 * (1 / 16 + 1 / 2), 2),
    # -A log p: logprobs -1 and -2 of the worse answer, -1 of the better
    "cispo": Relative(CISPO, STD, STD * (-3 + 1) + 0.1 * 5 / 8, 3),
    "maxrl": Relative(MAXRL, 0.6, 0.6 + 0.1 * 5 / 8, 3),
}


@pytest.mark.parametrize("name", FAMILY)
def test_each_relative_algorithm_by_hand(name):
    case = FAMILY[name]
    algorithm = replace(case.algorithm, kl_coef=0.1, missing_end_penalty=0.5, max_tokens=4)
    batch, metrics = algorithm.prepare(two_answers(), Given(OLD), Given(REF))
    expected = torch.tensor([[0, -1.0, -1.0], [0, 1.0, 0]]) * case.advantage
    torch.testing.assert_close(batch.advantages, expected, atol=1e-5, rtol=0)
    assert metrics["policy/kl_ref"] == pytest.approx(0.75)
    loss = algorithm.loss(batch, PolicyOutput(torch.tensor(OLD), torch.zeros(2, 3)))
    assert loss.count == case.count
    assert float(loss.total) == pytest.approx(case.loss, abs=1e-5)
    assert loss.metrics["policy/ratio_mean"] == loss.count


def test_every_relative_algorithm_is_checked_by_hand():
    assert FAMILY.keys() == GROUP_RELATIVE.keys()


def test_reinforce_whitens_the_reward_to_come_over_the_whole_batch():
    algorithm = Reinforce(kl_coef=0.1, missing_end_penalty=0.5)
    batch, _ = algorithm.prepare(two_answers(), Given(OLD), Given(REF))
    to_come = torch.tensor([0.45, 0.5, 1.9])
    whitened = (to_come - to_come.mean()) / to_come.std()
    torch.testing.assert_close(batch.advantages[batch.loss_mask], whitened, atol=1e-6, rtol=0)
    loss = algorithm.loss(batch, PolicyOutput(torch.tensor(OLD), torch.zeros(2, 3)))
    assert loss.count == 3
    assert float(loss.total) == pytest.approx(0, abs=1e-6)


def test_ppo_may_whiten_the_rewards_and_keeps_their_mean():
    ppo = PPO(kl_coef=0.1, gamma=1.0, gae_lambda=1.0, missing_end_penalty=0.5, whiten_rewards=True)
    batch, metrics = ppo.prepare(two_answers(), Given(OLD, VALUES), Given(REF))
    rewards = torch.tensor([-0.05, 0.5, 1.9])
    scaled = (rewards - rewards.mean()) / rewards.std() + rewards.mean()
    expected = torch.stack([scaled[0] + scaled[1], scaled[1], scaled[2]])
    torch.testing.assert_close(batch.returns[batch.loss_mask], expected, atol=1e-6, rtol=0)
    assert metrics["reward/penalised_mean"] == pytest.approx((0.45 + 1.9) / 2)


def test_ppo_bounds_what_a_bad_answer_that_became_likelier_can_do():
    batch = two_answers().with_(
        old_logprobs=torch.tensor(OLD),
        advantages=torch.tensor([[0, -1.0, -1.0], [0, -1.0, 0]]),
        returns=torch.zeros(2, 3),
        old_values=torch.zeros(2, 3),
    )
    now = PolicyOutput(torch.tensor(OLD) + torch.tensor([[0, 2.0, 0], [0, 0, 0]]), torch.zeros(2, 3), torch.zeros(2, 3))
    assert float(PPO().loss(batch, now).total) == pytest.approx(math.exp(2) + 2)
    assert float(PPO(dual_clip=3.0).loss(batch, now).total) == pytest.approx(3 + 2)


def test_the_kl_coefficient_follows_the_metrics_alone_so_a_resumed_run_finds_it():
    rows = [{"policy/kl_ref": kl, "policy/kl_coef": 0.0} for kl in (30.0, 6.0, 5.4, 0.0)]
    ppo = PPO(kl_coef=0.1, kl_target=6.0)
    history = []
    for row in rows:
        history.append(row | {"policy/kl_coef": ppo.kl_coef})
        ppo = ppo.after(history[-1])
        history.append({"reward/mean": 1.0})  # a step without an update says nothing of KL
    assert ppo.kl_coef == pytest.approx(0.1 * 1.02 * 1 * 0.99 * 0.98)
    resumed = PPO(kl_coef=0.1, kl_target=6.0)
    for row in json.loads(json.dumps(history)):
        resumed = resumed.after(row)
    assert resumed == ppo
    fixed = PPO(kl_coef=0.1)
    assert fixed.after(history[0]) is fixed


def test_dapo_takes_a_penalty_that_grows_over_the_last_fifth_of_the_budget():
    answers = [trajectory([1] * n, 1.0, "stop", logprobs=(-1.0,) * n) for n in (8, 9, 10)]
    algorithm = replace(DAPO, max_tokens=10)
    logprobs = [[0.0] + [-1.0] * n + [0.0] * (10 - n) for n in (8, 9, 10)]
    batch, metrics = algorithm.prepare(make_batch([group(*answers)]), Given(logprobs), Given(logprobs))
    assert metrics["reward/penalised_mean"] == pytest.approx(0.5)
    assert batch.advantages[:, 1].tolist() == pytest.approx([1, 0, -1], abs=1e-4)
    equal = group(*answers)
    assert algorithm.select([equal]) == [equal]
    assert GRPO().select([equal]) == []


def test_maxrl_refuses_a_negative_reward_and_names_the_answer():
    groups = [group(trajectory([1], 1.0, "stop"), trajectory([2], -0.25, "stop"))]
    with pytest.raises(DataError, match=r"trajectory 't\[2\]' has the reward -0.25: maxrl .* rewards >= 0"):
        MAXRL.select(groups)
    assert GRPO().select(groups) == groups


@pytest.mark.parametrize("reward", [math.nan, math.inf])
@pytest.mark.parametrize("algorithm", [PPO(), Reinforce(), GRPO()])
def test_a_reward_that_is_not_finite_never_becomes_an_advantage(algorithm, reward):
    batch = two_answers().with_(rewards=torch.tensor([1.0, reward]))
    with pytest.raises(AssertionError, match="not finite"):
        algorithm.prepare(batch, Given(OLD, VALUES), Given(REF))


def test_a_score_of_zero_is_a_score():
    batch, _ = GRPO(missing_end_penalty=0.0).prepare(
        make_batch([group(trajectory([1], 0.0, "stop"), trajectory([2], -1.0, "stop"))]),
        Given([[0, -1.0], [0, -1.0]]),
        Given([[0, -1.0], [0, -1.0]]),
    )
    assert batch.advantages[:, 1].tolist() == pytest.approx([0.707106, -0.707106], abs=1e-5)


def test_relative_algorithms_leave_out_groups_without_signal_and_the_others_do_not():
    equal = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.0, "stop"))
    unequal = group(trajectory([1], 1.0, "stop"), trajectory([2], 0.0, "stop"))
    cut_off = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.0, "length"))
    alone = group(trajectory([1], 1.0, "stop"))
    groups = [equal, unequal, cut_off, alone]
    assert GRPO(missing_end_penalty=0.5).select(groups) == [unequal, cut_off]
    assert GRPO(missing_end_penalty=0.0).select(groups) == [unequal]
    made_up = group(trajectory([1], 1.0, "stop"), trajectory([2], 1.5, "length"))
    assert GRPO(missing_end_penalty=0.5).select([made_up]) == []
    assert RLOO.select(groups) == [equal, unequal, cut_off]  # the KL penalty tells equal answers apart
    assert replace(RLOO, kl_coef=0.0).select(groups) == [unequal, cut_off]
    assert PPO().select(groups) == groups
    assert Reinforce().select(groups) == groups


@pytest.mark.parametrize("algorithm", [PPO(), Reinforce(), GRPO()])
def test_an_answer_that_nobody_scored_is_left_out_and_its_siblings_stay(algorithm):
    good, bad, abstained = (trajectory([i], r, "stop") for i, r in enumerate((1.0, 0.0, None)))
    assert algorithm.select([group(good, abstained, bad), group(abstained)]) == [group(good, bad)]


def test_grpo_has_nothing_to_learn_from_a_group_of_which_one_score_is_left():
    assert GRPO().select([group(trajectory([1], 1.0, "stop"), trajectory([2], None, "stop"))]) == []


def from_engine(*answers):
    """One group; an answer is given by the log-ratios of its tokens, trainer to engine."""
    trainer = [[0.0] + [-2.0] * len(a) + [0.0] * (max(map(len, answers)) - len(a)) for a in answers]
    trajectories = [
        trajectory([1] * len(a), float(i), "stop", logprobs=tuple(-2.0 - x for x in a)) for i, a in enumerate(answers)
    ]
    return make_batch([group(*trajectories)]), Given(trainer)


def test_tokens_that_the_engine_thought_less_of_weigh_more_up_to_the_cap():
    up = math.log(1.2)
    batch, policy = from_engine((up, -up), (1.0, -0.9), (0.0,))
    plain, _ = GRPO(correction=Correction(cap=1e9, low=0, high=1e9)).prepare(batch, policy, policy)
    advantages = (torch.arange(3.0) - 1)[:, None] * batch.loss_mask
    weights = torch.tensor([[0, 1.2, 1 / 1.2], [0, math.e, math.exp(-0.9)], [0, 1, 0]])
    torch.testing.assert_close(plain.advantages, advantages * weights, atol=1e-5, rtol=0)
    capped, metrics = GRPO(advantage="dr_grpo", correction=Correction(cap=1.1)).prepare(batch, policy, policy)
    weights = weights.clamp_max(1.1)
    torch.testing.assert_close(capped.advantages, advantages * weights, atol=1e-5, rtol=0)
    assert metrics["sampler/ratio_mean"] == pytest.approx(float(weights.sum()) / 5)
    assert metrics["sampler/truncated_frac"] == pytest.approx(2 / 5)
    assert metrics["sampler/dropped_frac"] == 0
    assert not any(key.startswith("sampler/dropped_frac_") for key in metrics)
    assert metrics["sampler/logprob_diff_max"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("algorithm", [PPO(), Reinforce(), GRPO()])
def test_an_answer_of_another_policy_is_dropped_by_its_mean_whatever_its_length(algorithm):
    drift = 0.012  # a token; over 100 tokens the product is 3.3, the geometric mean still 1.012
    batch, policy = from_engine((drift,) * 100, (0.5, 0.0, 0.0), (0.5, 0.4), (-0.3,))
    policy = replace(policy, values=(torch.tensor(policy.logprobs) * 0).tolist())
    prepared, metrics = algorithm.prepare(batch, policy, policy)
    assert prepared.lengths.tolist() == [101, 4]
    assert prepared.input_ids.shape == prepared.advantages.shape == (2, 101)
    assert metrics["sampler/dropped_frac"] == 0.5
    by_length = {key: value for key, value in metrics.items() if key.startswith("sampler/dropped_frac_")}
    assert list(by_length.values()) == [1, 1, 0, 0]  # the two shortest


def test_a_thousand_answers_report_their_drops_by_tenths_of_length():
    lengths = [1 + i % 20 for i in range(100)]
    batch, policy = from_engine(*[(0.5 if n > 18 else 0.0,) * n for n in lengths])
    _, metrics = GRPO().prepare(batch, policy, policy)
    assert [metrics[f"sampler/dropped_frac_{i}"] for i in range(1, 11)] == [0] * 9 + [1]
    assert metrics["sampler/dropped_frac"] == pytest.approx(0.1)


def test_an_engine_that_has_other_weights_altogether_stops_the_run():
    batch, policy = from_engine((0.5, 0.4), (-0.3,))
    with pytest.raises(TrainingDiverged, match="all 2 answers differ by more than a factor"):
        GRPO().prepare(batch, policy, policy)


ALGORITHMS = [PPO(), Reinforce(), *(replace(case.algorithm, max_tokens=5) for case in FAMILY.values())]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_before_the_first_update_every_ratio_is_one_and_the_gradient_is_reinforce(algorithm):
    batch = make_batch(
        [
            group(trajectory([1, 2], 1.0, "length", (9, 8, 7)), trajectory([3], 2.0, "stop", (9, 8, 7))),
            group(trajectory([4, 5, 6], 1.5, "stop", (5,)), trajectory([7, 1], 2.5, "stop", (5,))),
        ]
    )

    def trainer():
        return LocalTrainer(random_model(heads=("value",)), batch_tokens=8)

    ours = trainer()
    batch = batch.with_(sampler_logprobs=ours.evaluate(batch).logprobs)
    prepared, _ = algorithm.prepare(batch, ours, FrozenPolicy(random_model(seed=1), batch_tokens=100))
    metrics = ours.forward_backward(prepared, algorithm.loss)
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/kl_old"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/clip_frac"] == 0

    plain = trainer()
    out = plain.model.token_outputs(prepared.input_ids, prepared.lengths, prepared.loss_mask, temperature=1.0)
    logprobs, _, values = out
    per_token = -prepared.advantages * logprobs
    if isinstance(algorithm, PPO):
        per_token = per_token + algorithm.value_coef * (values - prepared.returns).square() / 2
    elif isinstance(algorithm, GRPO) and not algorithm.kl_in_reward:
        per_token = per_token + algorithm.kl_coef * (logprobs - prepared.ref_logprobs).square() / 2
    reduction = getattr(algorithm, "reduction", "token")
    lengths = prepared.loss_mask.sum(1, keepdim=True)
    divisor = {"token": torch.ones_like(lengths), "sequence": lengths, "budget": torch.full_like(lengths, 5)}[reduction]
    (per_token.masked_fill(~prepared.loss_mask, 0) / divisor).sum().backward()
    for (name, p), q in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * float(q.grad.abs().max()), rtol=1e-4, msg=name)
