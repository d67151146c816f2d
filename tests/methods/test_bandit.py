"""One token, known rewards: every algorithm must find the optimum that can be computed, not merely a higher reward.

Maximising E r - beta KL(pi || pi_ref) over distributions gives pi* ~ pi_ref exp(r / beta).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.data.batch import Batch
from postgrad.methods.algorithms import GROUP_RELATIVE
from postgrad.methods.grpo import CISPO, DAPO, DR_GRPO, GRPO, GSPO, MAXRL, RLOO
from postgrad.methods.ppo import PPO
from postgrad.methods.reinforce import Reinforce
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Algorithm, Loss, Policy, PolicyOutput
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

REWARDS = torch.tensor([1.0, 0.2, 0.6, -0.5, 0.0], dtype=torch.float64)
SUCCESSES = REWARDS.clamp_min(0)
REFERENCE = torch.tensor([0.1, 0.4, 0.15, 0.15, 0.2], dtype=torch.float64)
BETA = 0.4
PROMPT = (0, 3, 1)
GROUP_SIZE = 256
UPDATES = 300


class Learner(Policy, Protocol):
    def forward_backward(self, batch: Batch, loss: Callable[[Batch, PolicyOutput], Loss]) -> Mapping[str, float]: ...
    def optim_step(self, learning_rate: float) -> object: ...


class Table:
    """A policy of five logits and a critic of one number, which starts as the reference."""

    def __init__(self) -> None:
        self.logits = REFERENCE.log().float().requires_grad_()
        self.value = torch.zeros((), requires_grad=True)
        self._adam = torch.optim.Adam([self.logits, self.value], betas=(0.9, 0.95))

    def distribution(self) -> torch.Tensor:
        return self.logits.detach().double().softmax(-1)

    def evaluate(self, batch: Batch) -> PolicyOutput:
        with torch.no_grad():
            return self._output(batch)

    def forward_backward(self, batch: Batch, loss: Callable[[Batch, PolicyOutput], Loss]) -> Mapping[str, float]:
        result = loss(batch, self._output(batch))
        (result.total / result.count).backward()  # type: ignore[no-untyped-call]
        return result.metrics

    def optim_step(self, learning_rate: float) -> None:
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad()

    def _output(self, batch: Batch) -> PolicyOutput:
        logprobs = self.logits.log_softmax(-1)[batch.input_ids] * batch.loss_mask
        return PolicyOutput(logprobs, torch.zeros_like(logprobs), self.value * batch.loss_mask)


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


def sampled(policy: torch.Tensor, rewards: torch.Tensor, *, group_size: int, seed: int) -> Batch:
    """Two groups of one-token answers to the prompt."""
    generator = torch.Generator().manual_seed(seed)
    arms = policy.multinomial(2 * group_size, replacement=True, generator=generator)
    ids = torch.cat([torch.tensor(PROMPT).expand(len(arms), -1), arms[:, None]], 1)
    mask = (torch.arange(ids.shape[1]) == len(PROMPT)).expand_as(ids)
    return Batch(
        input_ids=ids,
        lengths=torch.full((len(arms),), ids.shape[1]),
        loss_mask=mask,
        rewards=rewards[arms].float(),
        group_ids=torch.arange(2).repeat_interleave(group_size),
        finished=torch.ones(len(arms), dtype=torch.bool),
        sampler_logprobs=policy.log()[ids].float() * mask,
    )


def learn(
    algorithm: Algorithm,
    learner: Learner,
    reference: Policy,
    distribution: Callable[[], torch.Tensor],
    *,
    rewards: torch.Tensor = REWARDS,
    group_size: int = GROUP_SIZE,
    updates: int = UPDATES,
    updates_per_step: int = 2,
) -> Algorithm:
    """Updates at a rate that falls to nothing, all but a step's first off-policy; returns the last algorithm."""
    steps = updates // updates_per_step
    assert total_variation(distribution(), REFERENCE) < 1e-5
    for step in range(steps):
        batch = sampled(distribution(), rewards, group_size=group_size, seed=step)
        batch, metrics = algorithm.prepare(batch, learner, reference)
        assert metrics["sampler/logprob_diff_max"] < 1e-5
        for minibatch in batch.minibatches(updates_per_step, seed=step):
            learner.forward_backward(minibatch, algorithm.loss)
            learner.optim_step(2e-2 * (1 - step / steps))
        algorithm = algorithm.after(metrics)
    return algorithm


def learned_by(algorithm: Algorithm, rewards: torch.Tensor = REWARDS, *, updates_per_step: int = 2) -> torch.Tensor:
    table = Table()
    learn(algorithm, table, Table(), table.distribution, rewards=rewards, updates_per_step=updates_per_step)
    return table.distribution()


def test_the_optimum_is_far_from_the_reference_and_from_the_best_arm() -> None:
    assert total_variation(optimum(BETA), REFERENCE) > 0.3
    assert float(optimum(BETA).max()) < 0.6


# An answer is part of its own baseline, which shrinks every expected advantage by (G - 1) / G; rloo divides that out.
SHRUNK = GROUP_SIZE / (GROUP_SIZE - 1)
PLAIN: dict[str, tuple[Algorithm, float]] = {
    "ppo": (PPO(kl_coef=BETA), BETA),
    "ppo, rewards whitened, dual clip": (PPO(kl_coef=BETA, whiten_rewards=True, dual_clip=3.0), BETA),
    "reinforce": (Reinforce(kl_coef=BETA), BETA),
    "rloo": (replace(RLOO, kl_coef=BETA, max_tokens=1), BETA),
    "dr_grpo": (replace(DR_GRPO, kl_coef=BETA, max_tokens=1), BETA * SHRUNK),
}
# The sharper the policy, the smaller the deviation and the weaker the KL term beside it; below a coefficient of about
# 0.9 these rewards have no fixed point but a single arm.
BY_DEVIATION = {"grpo": GRPO(), "dapo": replace(DAPO, overlong_share=0.0), "gspo": GSPO, "cispo": CISPO}


@pytest.mark.parametrize("name", PLAIN)
def test_the_optimum_is_reached(name: str) -> None:
    algorithm, beta = PLAIN[name]
    assert total_variation(learned_by(algorithm), optimum(beta)) < 0.005


@pytest.mark.parametrize("name", BY_DEVIATION)
def test_dividing_by_the_deviation_has_a_fixed_point_of_its_own(name: str) -> None:
    fixed = fixed_point(1.5, deviation, REWARDS)
    # gspo's narrow clip stops the reward's pull in a second update, but not the KL term's
    learned = learned_by(replace(BY_DEVIATION[name], kl_coef=1.5), updates_per_step=1 if name == "gspo" else 2)
    assert total_variation(learned, fixed) < 0.005


def test_maxrl_climbs_the_log_of_the_mean_reward() -> None:
    fixed = fixed_point(0.8, lambda policy: float(policy @ SUCCESSES), SUCCESSES)
    assert total_variation(learned_by(replace(MAXRL, kl_coef=0.8), SUCCESSES), fixed) < 0.005


def test_every_relative_algorithm_meets_a_bandit() -> None:
    assert GROUP_RELATIVE.keys() <= {*PLAIN, *BY_DEVIATION, "maxrl"}


def test_an_adaptive_coefficient_finds_the_one_whose_optimum_has_the_target_divergence() -> None:
    table = Table()
    algorithm = PPO(kl_coef=BETA / 2, kl_target=divergence(optimum(BETA)))
    last = learn(algorithm, table, Table(), table.distribution, updates=600)
    assert isinstance(last, PPO)
    assert last.kl_coef == pytest.approx(BETA, rel=0.15)
    assert divergence(table.distribution()) == pytest.approx(divergence(optimum(BETA)), rel=0.15)


def bandit_model(heads: tuple[str, ...] = ("value",)) -> PolicyModel:
    """A transformer, by default with a critic, whose next token after the prompt is distributed as REFERENCE."""
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


def test_a_transformer_with_a_critic_reaches_it_too() -> None:
    model = bandit_model()
    reference = FrozenPolicy(copy.deepcopy(model), batch_tokens=10_000)
    trainer = LocalTrainer(model, batch_tokens=10_000)

    @torch.no_grad()
    def distribution() -> torch.Tensor:
        logits: torch.Tensor = model.lm(torch.tensor([PROMPT])).logits[0, -1]
        return logits.double().softmax(-1)

    learn(PPO(kl_coef=BETA), trainer, reference, distribution, group_size=64, updates=120)
    assert total_variation(distribution(), optimum(BETA)) < 0.02
