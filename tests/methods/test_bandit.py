"""One token, known rewards: every algorithm must find the optimum that can be computed, not merely a higher reward.

Maximising E r - beta KL(pi || pi_ref) over distributions gives pi* ~ pi_ref exp(r / beta).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.data.batch import make_batch
from postgrad.engine.local import LocalEngine
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Algorithm
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
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

REWARDS = torch.tensor([1.0, 0.2, 0.6, -0.5, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.4, 0.15, 0.15, 0.2], dtype=torch.float64)
BETA = 0.4
PROMPT = (0, 3, 1)
ONE_TOKEN = SamplingParams(max_tokens=1)
EXAMPLE = Example("bandit", Conversation((Message("user", "?"),)))
NO_SEED_TWICE = 1_000_003


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


def optimum(beta: float) -> torch.Tensor:
    return (REFERENCE.log() + REWARDS / beta).softmax(-1)


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().sum() / 2)


def sampled_groups(engine: LocalEngine, *, groups: int, group_size: int, seed: int) -> list[Group]:
    requests = [GenerationRequest(PROMPT, ONE_TOKEN, seed + i) for i in range(groups * group_size)]
    completions = engine.sample(requests)
    trajectories = [
        Trajectory(
            str(i),
            (Turn(PROMPT, completion),),
            "completed",
            scores=(Score("table", float(REWARDS[completion.token_ids[0]])),),
        )
        for i, completion in enumerate(completions)
    ]
    starts: Sequence[int] = range(0, len(trajectories), group_size)
    return [Group(EXAMPLE, tuple(trajectories[i : i + group_size])) for i in starts]


def learn(
    algorithm: Algorithm, *, steps: int, groups: int, group_size: int, learning_rate: float, heads: tuple[str, ...] = ()
) -> torch.Tensor:
    """Two passes of two minibatches a step, with a rate that falls to nothing; returns the policy learned."""
    model = bandit_model(heads=heads)
    reference = FrozenPolicy(copy.deepcopy(model), batch_tokens=10_000)
    trainer = LocalTrainer(model, batch_tokens=10_000)
    engine = LocalEngine(model, stop_ids=range(len(REWARDS)), decode=str, max_batch=10_000)
    assert total_variation(distribution(model), REFERENCE) < 1e-5
    for step in range(steps):
        found = sampled_groups(engine, groups=groups, group_size=group_size, seed=step * NO_SEED_TWICE)
        batch, _ = algorithm.prepare(make_batch(algorithm.select(found)), trainer, reference)
        rate = learning_rate * (1 - step / steps)
        for epoch in range(2):
            for minibatch in batch.minibatches(2, seed=2 * step + epoch):
                trainer.forward_backward(minibatch, algorithm.loss)
                trainer.optim_step(rate)
    return distribution(model)


def test_the_optimum_is_far_from_the_reference_and_from_the_best_arm() -> None:
    assert total_variation(optimum(BETA), REFERENCE) > 0.3
    assert float(optimum(BETA).max()) < 0.6


def test_ppo_with_a_critic_and_kl_in_the_reward_reaches_the_optimum() -> None:
    algorithm = PPO(kl_coef=BETA, missing_end_penalty=0.0)
    learned = learn(algorithm, steps=60, groups=2, group_size=64, learning_rate=1.5e-2, heads=("value",))
    assert total_variation(learned, optimum(BETA)) < 0.02


def test_dr_grpo_with_kl_in_the_loss_reaches_the_optimum() -> None:
    # An answer is part of its own baseline, which shrinks every expected advantage by (G - 1) / G.
    algorithm = GRPO(kind="dr_grpo", kl_coef=BETA, missing_end_penalty=0.0)
    learned = learn(algorithm, steps=60, groups=2, group_size=64, learning_rate=1.5e-2)
    assert total_variation(learned, optimum(BETA * 64 / 63)) < 0.02


def test_grpo_reaches_the_fixed_point_of_dividing_by_its_own_deviation() -> None:
    # The sharper the policy, the smaller the deviation and the weaker the KL term beside it; below a coefficient of
    # about 0.9 these rewards have no fixed point but a single arm.
    kl_coef = 1.5
    fixed = REFERENCE
    for _ in range(100):
        deviation = float((fixed @ (REWARDS - fixed @ REWARDS).square()).sqrt())
        fixed = optimum(kl_coef * deviation)
    assert total_variation(fixed, optimum(kl_coef)) > 0.1, "dividing by the deviation must matter"
    algorithm = GRPO(kind="grpo", kl_coef=kl_coef, missing_end_penalty=0.0)
    learned = learn(algorithm, steps=60, groups=2, group_size=64, learning_rate=1.5e-2)
    assert total_variation(learned, fixed) < 0.02
