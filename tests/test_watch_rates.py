"""How often warnings are wrong, over simulated runs with the noise of small batches."""

import math
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from watching import find_warnings

from postgrad.watch import RULES

Rows = list[dict[str, float]]
Curve = Callable[[Random], Rows]

NUM_RUNS = 200


def curves(num_steps: int, **columns: Callable[[int], float]) -> Rows:
    """Rows of columns such as reward__mean, each a function of the step."""
    keys = {name.replace("__", "/"): value for name, value in columns.items()}
    return [{"step": s} | {key: value(s) for key, value in keys.items()} for s in range(1, num_steps + 1)]


def share(r: Random, probability: float, num: int) -> float:
    """How many of `num` draws come true."""
    return sum(r.random() < probability for _ in range(num)) / num


def norm(r: Random, usual: float) -> float:
    """A gradient norm, three times as large as usual on one step in ten."""
    return usual * math.exp(r.gauss(0, 0.3)) * (3 if r.random() < 0.1 else 1)


def kl(r: Random, mean: float) -> float:
    """Mean of 64 log-ratios, whose variance is twice their mean where the two policies are close."""
    return mean + r.gauss(0, math.sqrt(2 * mean / 64))


def pretraining(r: Random) -> Rows:
    """Ten million parameters: to the frequencies of the tokens in 30 steps, a rest there, then a power law."""
    noise = r.uniform(0.01, 0.05)
    return curves(
        200,
        loss__nll=lambda s: (6.6 * (max(s, 40) / 40) ** -0.125 + 1.7 * math.exp(-s / 8)) * r.gauss(1, noise),
        optim__learning_rate=lambda s: 1e-3 * min(1, s / 80),
    )


def long_warmup(r: Random) -> Rows:
    """A hundred steps on which the rate is too low to move anything."""
    return curves(
        200,
        loss__nll=lambda s: (10.8 - 5 * (1 - math.exp(-max(0, s - 80) / 60))) * r.gauss(1, 0.01),
        optim__learning_rate=lambda s: 1e-3 * min(1, s / 150),
    )


def finetuning(r: Random) -> Rows:
    """Sixteen demonstrations a step, some of them odd."""
    noise = r.uniform(0.05, 0.2)
    return curves(
        100,
        loss__nll=lambda s: (1.6 + 0.5 * math.exp(-s / 15)) * r.gauss(1, noise) * (2 if r.random() < 0.03 else 1),
        optim__grad_norm=lambda s: norm(r, 3),
    )


def reward_model(r: Random) -> Rows:
    """Forty-eight pairs a step, of raters who may agree on no more than six in ten."""
    best = r.uniform(0.6, 0.75)
    return curves(
        40,
        loss__bradley_terry=lambda s: 0.693 - 0.45 * (best - 0.5) * min(1, s / 10) + r.gauss(0, 0.03),
        reward__accuracy=lambda s: share(r, 0.5 + (best - 0.5) * min(1, s / 10), 48),
    )


def preferences(r: Random) -> Rows:
    """Forty-eight pairs a step, whose answers are of many kinds, learned without losing the preferred ones."""
    noise = r.uniform(0.05, 0.3)
    return curves(
        60,
        preference__accuracy=lambda s: share(r, 0.5 + 0.2 * (1 - math.exp(-s / 10)), 48),
        preference__margin=lambda s: 0.02 * s + r.gauss(0, 0.05),
        preference__chosen_logprob=lambda s: -1.2 - 0.0005 * s + r.gauss(0, noise),
        preference__kl=lambda s: max(0.0, 0.03 * s + r.gauss(0, 0.2)),
        preference__kl_data=lambda s: 0.02 * s + r.gauss(0, 0.1),
        optim__grad_norm=lambda s: norm(r, 4),
    )


def ppo(r: Random) -> Rows:
    """Sixty-four answers a step of a chat model with 135 million parameters, whose critic starts blind."""
    noise, blind, length = r.uniform(0.1, 0.3), r.uniform(0.3, 2.5), r.uniform(15, 30)
    return curves(
        40,
        reward__mean=lambda s: 0.2 + 0.02 * s + r.gauss(0, noise),
        policy__entropy=lambda s: (0.7 + 0.5 * math.exp(-s / 12)) * r.gauss(1, 0.07),
        policy__kl_ref=lambda s: kl(r, 0.1 * (s - 1)),
        policy__clip_frac=lambda s: r.uniform(0.02, 0.2),
        value__explained_variance=lambda s: 0.1 - (0.1 + blind) * math.exp(-s / 4) + r.gauss(0, 0.1),
        rollout__completion_tokens=lambda s: length * r.gauss(1, 0.08),
        rollout__truncated_frac=lambda s: share(r, 0.15, 64),
        sampler__logprob_diff_max=lambda s: r.uniform(2e-5, 1e-4),
        optim__grad_norm=lambda s: norm(r, 4),
    )


def grpo(r: Random) -> Rows:
    """Eight groups of eight answers that are right or wrong, far from the reference in the end."""
    length = r.uniform(3, 6)
    return curves(
        60,
        reward__mean=lambda s: share(r, 0.2 + 0.006 * s, 64),
        group__no_signal_frac=lambda s: share(r, 0.25, 8),
        policy__entropy=lambda s: 0.4 * math.exp(-s / 80) * r.gauss(1, 0.15),
        policy__kl_ref=lambda s: kl(r, 0.1 * (s - 1)),
        policy__clip_frac=lambda s: r.uniform(0, 0.1),
        rollout__completion_tokens=lambda s: length * r.gauss(1, 0.1),
        sampler__logprob_diff_max=lambda s: r.uniform(2e-5, 1e-4),
        optim__grad_norm=lambda s: norm(r, 0.5),
    )


@pytest.mark.parametrize("curve", [pretraining, long_warmup, finetuning, reward_model, preferences, ppo, grpo])
def test_fewer_than_one_healthy_run_in_a_hundred_is_warned_of(curve: Curve) -> None:
    found = {seed: find_warnings(curve(Random(seed))) for seed in range(NUM_RUNS)}
    wrong = {seed: [(w.rule, w.metric, w.step) for w in warnings] for seed, warnings in found.items() if warnings}
    assert len(wrong) < NUM_RUNS / 100, wrong


def blow_up(s: int, begin: int, doubling: float) -> float:
    return 2 ** (max(0, s - begin) / doubling)


SICK: list[tuple[str, str, int, Callable[[Random, int], dict[str, float]]]] = [
    ("loss_high", "flat from the start", 70, lambda r, s: {"loss/nll": 8.3 * r.gauss(1, 0.005)}),
    ("loss_high", "creeping up", 70, lambda r, s: {"loss/nll": (8 + 0.01 * s) * r.gauss(1, 0.01)}),
    (
        "loss_high", "stuck at the frequencies of the tokens", 200,
        lambda r, s: {"loss/nll": (6.5 + 1.8 * math.exp(-s / 8)) * r.gauss(1, 0.01)},
    ),
    (
        "likelihood_falling", "both sides fall", 60,
        lambda r, s: {"preference/chosen_logprob": -1.2 - 0.02 * s + r.gauss(0, 0.2)},
    ),
    ("loss_rising", "coming apart", 50, lambda r, s: {"loss/nll": 2 * blow_up(s, 20, 15) * r.gauss(1, 0.1)}),
    (
        "entropy_collapse", "halving in 5 steps", 35,
        lambda r, s: {"policy/entropy": 1.2 / blow_up(s, 10, 5) * r.gauss(1, 0.07)},
    ),
    ("kl_runaway", "doubling", 30, lambda r, s: {"policy/kl_ref": kl(r, 0.1 * s * blow_up(s, 10, 3))}),
    (
        "verbosity", "paid by length", 30,
        lambda r, s: {
            "rollout/completion_tokens": (20 + s) * r.gauss(1, 0.08),
            "reward/mean": 0.2 + 0.03 * s + r.gauss(0, 0.1),
        },
    ),
    ("truncation", "no end", 40, lambda r, s: {"rollout/truncated_frac": share(r, min(0.8, max(0.1, s / 30)), 64)}),
    ("signal_fading", "all alike", 40, lambda r, s: {"group/no_signal_frac": share(r, min(0.9, max(0.1, s / 30)), 16)}),
    ("gradient_spike", "one batch", 20, lambda r, s: {"optim/grad_norm": norm(r, 60 if s == 20 else 2)}),
    ("blind_critic", "never sees", 30, lambda r, s: {"value/explained_variance": r.gauss(-0.6, 0.3)}),
    (
        "coin_toss", "guessing", 25,
        lambda r, s: {"loss/bradley_terry": r.gauss(0.693, 0.03), "reward/accuracy": share(r, 0.5, 48)},
    ),
    (
        "stalled", "standing still", 35,
        lambda r, s: {"reward/mean": r.gauss(0.5, 0.2), "policy/kl_ref": r.gauss(0, 0.01)},
    ),
    ("unscored", "no score", 2, lambda r, s: {"rollout/truncated_frac": share(r, 0.1, 64)}),
    ("range", "clipping", 10, lambda r, s: {"policy/clip_frac": r.gauss(0.45, 0.05)}),
    ("range", "another sampler", 1, lambda r, s: {"sampler/logprob_diff_max": r.uniform(1e-3, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "steps", "row"), [pytest.param(r, n, f, id=f"{r}, {why}") for r, why, n, f in SICK])
def test_a_sick_run_is_warned_of_in_time(rule: str, steps: int, row: Callable[[Random, int], dict[str, float]]) -> None:
    found = 0
    for seed in range(NUM_RUNS):
        sick = partial(row, Random(seed))
        warnings = find_warnings({"step": s} | sick(s) for s in range(1, steps + 1))
        found += rule in {w.rule for w in warnings}
    assert found > 0.95 * NUM_RUNS


def test_every_rule_has_a_sick_run() -> None:
    assert {rule.name for rule in RULES} == {name for name, *_ in SICK}
