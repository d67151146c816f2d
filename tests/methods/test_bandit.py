"""One token, known rewards: every algorithm must find the optimum that can be computed, not merely a higher reward.

Maximising E r - beta KL(pi || pi_ref) over distributions gives pi* ~ pi_ref exp(r / beta).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.data.batch import make_batch
from postgrad.methods.grpo import CISPO, DR_GRPO, GRPO, MAXRL, RLOO
from postgrad.methods.ppo import PPO
from postgrad.methods.reinforce import Reinforce
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Algorithm
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn

REWARDS = torch.tensor([1.0, 0.2, 0.6, -0.5, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.4, 0.15, 0.15, 0.2], dtype=torch.float64)
BETA = 0.4
PROMPT = (0, 3, 1)
EXAMPLE = Example("bandit", Conversation((Message("user", "?"),)))
GROUP_SIZE = 128
STEPS = 70
LEARNING_RATE = 2e-2


def bandit_model(*, heads: tuple[str, ...] = ()) -> PolicyModel:
    """A transformer whose next token after the prompt is distributed as REFERENCE."""
    config = LlamaConfig(
        vocab_size=len(REWARDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PolicyModel(LlamaForCausalLM(config), heads=heads)
    with torch.no_grad():
        state = model.body(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        weight = model.vocabulary_VD
        wanted = REFERENCE.log().float()
        weight.add_(torch.outer(wanted - weight @ state, state) / state.square().sum())
    return model


@torch.no_grad()
def distribution(model: PolicyModel) -> torch.Tensor:
    logits: torch.Tensor = model.lm(torch.tensor([PROMPT])).logits[0, -1]
    return logits.double().softmax(-1)


def optimum(beta: float, rewards: torch.Tensor = REWARDS) -> torch.Tensor:
    return (REFERENCE.log() + rewards / beta).softmax(-1)


def fixed_point(beta: float, divisor: Callable[[torch.Tensor], float], rewards: torch.Tensor) -> torch.Tensor:
    """Where an algorithm rests that divides its rewards by a function of the policy."""
    policy = REFERENCE
    for _ in range(100):
        policy = optimum(beta * divisor(policy), rewards)
    assert total_variation(policy, optimum(beta, rewards)) > 0.1, "the division must matter"
    return policy


def deviation(policy: torch.Tensor) -> float:
    return float((policy @ (REWARDS - policy @ REWARDS).square()).sqrt())


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().sum() / 2)


def divergence(policy: torch.Tensor) -> float:
    return float(policy @ (policy / REFERENCE).log())


def sampled_groups(policy: torch.Tensor, rewards: torch.Tensor, *, groups: int, seed: int) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)
    arms = policy.multinomial(groups * GROUP_SIZE, replacement=True, generator=generator).tolist()
    logprobs = policy.log().tolist()
    trajectories = [
        Trajectory(
            str(i),
            (Turn(PROMPT, Completion((arm,), (logprobs[arm],), "stop", 0, "")),),
            "completed",
            scores=(Score("table", float(rewards[arm])),),
        )
        for i, arm in enumerate(arms)
    ]
    return [Group(EXAMPLE, tuple(trajectories[i : i + GROUP_SIZE])) for i in range(0, len(arms), GROUP_SIZE)]


def learn(algorithm: Algorithm, *, rewards: torch.Tensor = REWARDS) -> tuple[torch.Tensor, Algorithm]:
    """Two updates a step, the second off-policy, at a rate that falls to nothing; (policy learned, last algorithm)."""
    model = bandit_model(heads=("value",) if isinstance(algorithm, PPO) else ())
    reference = FrozenPolicy(copy.deepcopy(model), batch_tokens=10_000)
    trainer = LocalTrainer(model, batch_tokens=10_000)
    assert total_variation(distribution(model), REFERENCE) < 1e-5
    for step in range(STEPS):
        found = sampled_groups(distribution(model), rewards, groups=2, seed=step)
        batch, metrics = algorithm.prepare(make_batch(algorithm.select(found)), trainer, reference)
        assert metrics["sampler/logprob_diff_max"] < 1e-5
        for minibatch in batch.minibatches(2, seed=step):
            trainer.forward_backward(minibatch, algorithm.loss)
            trainer.optim_step(LEARNING_RATE * (1 - step / STEPS))
        algorithm = algorithm.after(metrics)
    return distribution(model), algorithm


def test_the_optimum_is_far_from_the_reference_and_from_the_best_arm() -> None:
    assert total_variation(optimum(BETA), REFERENCE) > 0.3
    assert float(optimum(BETA).max()) < 0.6


@pytest.mark.parametrize(
    "algorithm",
    [
        PPO(kl_coef=BETA, whiten_rewards=True, dual_clip=3.0),
        Reinforce(kl_coef=BETA),
        replace(RLOO, kl_coef=BETA, max_tokens=1),
    ],
    ids=["ppo", "reinforce", "rloo"],
)
def test_kl_in_the_reward_reaches_the_optimum(algorithm: Algorithm) -> None:
    assert total_variation(learn(algorithm)[0], optimum(BETA)) < 0.02


def test_dr_grpo_with_kl_in_the_loss_reaches_the_optimum() -> None:
    # An answer is part of its own baseline, which shrinks every expected advantage by (G - 1) / G.
    learned, _ = learn(replace(DR_GRPO, kl_coef=BETA, max_tokens=1))
    assert total_variation(learned, optimum(BETA * GROUP_SIZE / (GROUP_SIZE - 1))) < 0.02


@pytest.mark.parametrize("algorithm", [GRPO(), CISPO], ids=["grpo", "cispo"])
def test_dividing_by_the_deviation_has_a_fixed_point_of_its_own(algorithm: GRPO) -> None:
    # The sharper the policy, the smaller the deviation and the weaker the KL term beside it; below a coefficient of
    # about 0.9 these rewards have no fixed point but a single arm.
    kl_coef = 1.5
    learned, _ = learn(replace(algorithm, kl_coef=kl_coef))
    assert total_variation(learned, fixed_point(kl_coef, deviation, REWARDS)) < 0.02


def test_maxrl_climbs_the_log_of_the_mean_reward() -> None:
    successes = REWARDS.clamp_min(0)
    learned, _ = learn(replace(MAXRL, kl_coef=BETA * 2), rewards=successes)
    assert total_variation(learned, fixed_point(BETA * 2, lambda policy: float(policy @ successes), successes)) < 0.02


def test_an_adaptive_coefficient_finds_the_one_whose_optimum_has_the_target_divergence() -> None:
    learned, last = learn(PPO(kl_coef=BETA / 2, kl_target=divergence(optimum(BETA))))
    assert isinstance(last, PPO)
    assert last.kl_coef == pytest.approx(BETA, rel=0.15)
    assert divergence(learned) == pytest.approx(divergence(optimum(BETA)), rel=0.15)
