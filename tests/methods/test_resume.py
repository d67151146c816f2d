"""A process killed at any point of a step, for real, and started again ends where one that was left alone does."""

import os
import signal

import pytest
from small import differing, state
from tiny_rl import CFG, forkserver, quiet, reinforce, without_times

from postgrad.config.preference import PreferenceConfig
from postgrad.config.sections import SftConfig
from postgrad.engine.local import LocalEngine
from postgrad.methods.grpo import GRPO
from postgrad.methods.ppo import PPO
from postgrad.methods.preference import (
    Choice,
    Compared,
    Opinion,
    Reference,
    answer_logprobs,
    make_objective,
    mismatched_rows,
    train_preference,
)
from postgrad.methods.sft import train_sft
from postgrad.models.load import load_policy
from postgrad.run import RunDirectory
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

STEPS = 6
FATAL_STEP = 6
"""The checkpoint of step 4 is the newest, and step 5 is whole on the disk: it has to be forgotten."""
RUNS = {
    "ppo": (PPO(kl_coef=0.02), CFG),
    "steered ppo": (PPO(kl_coef=0.02, kl_target=0.01), CFG),
    "grpo": (GRPO(kl_coef=0.02), CFG.model_copy(update={"schedule": "cosine", "warmup_frac": 0.4})),
    "dynamic sampling": (
        GRPO(kl_coef=0.02, missing_end_penalty=0.0),
        CFG.model_copy(update={"max_tokens": 1, "sampling_attempts": 3, "group_size": 3}),
    ),
}


child_run: RunDirectory  # of the process that is to die


def die_in_step(step):
    if len(child_run.read_metrics()) == step - 1:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesSampling(LocalEngine):
    """With five tokens of the fatal step sampled."""

    async def generate(self, requests, on_token=None):
        seen = []

        def count(index, token):
            seen.append(token)
            if len(seen) == 5:
                die_in_step(FATAL_STEP)
            return True

        return await super().generate(requests, count)


class DiesUpdating(LocalTrainer):
    """Between two minibatches of the fatal step."""

    def optim_step(self, learning_rate):
        metrics = super().optim_step(learning_rate)
        die_in_step(FATAL_STEP)
        return metrics


class DiesBeforeMetrics(RunDirectory):
    """After the update and before its line of metrics."""

    def write_metrics(self, step, metrics):
        die_in_step(FATAL_STEP)
        super().write_metrics(step, metrics)


class DiesSaving(LocalTrainer):
    """With the checkpoint of step 4 written and not yet named: nothing is left to go on from."""

    def save(self, directory):
        super().save(directory)
        die_in_step(5)


POINTS = {
    "sampling": ({"make_engine": DiesSampling}, 5),
    "between two minibatches": ({"make_trainer": DiesUpdating}, 5),
    "before the metrics": ({"make_run": DiesBeforeMetrics}, 5),
    "in the checkpoint": ({"make_trainer": DiesSaving}, 4),
}
CASES = [
    *(("ppo", point) for point in POINTS),
    *(("grpo", point) for point in POINTS if point != "in the checkpoint"),
    ("steered ppo", "before the metrics"),
    ("dynamic sampling", "sampling"),
    ("dynamic sampling", "between two minibatches"),
]


def _reinforce(name, point, directory, path):
    global child_run
    child_run = RunDirectory(path)
    algorithm, cfg = RUNS[name]
    reinforce(directory, path, algorithm, cfg=cfg, **POINTS[point][0])


def killed(function, *arguments):
    """Run in a process that is expected to kill itself."""
    process = forkserver().Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tiny_model_directory, tmp_path_factory):
    return {
        name: reinforce(tiny_model_directory, tmp_path_factory.mktemp("whole"), algorithm, cfg=cfg)
        for name, (algorithm, cfg) in RUNS.items()
    }


@pytest.mark.parametrize(("name", "point"), CASES)
def test_rl_killed_in_a_step_ends_where_an_uninterrupted_run_does_bit_for_bit(
    name, point, whole, tiny_model_directory, tmp_path
):
    _, expected, expected_trainer = whole[name]
    killed(_reinforce, name, point, tiny_model_directory, tmp_path)
    assert [row["step"] for row in RunDirectory(tmp_path).read_metrics()] == list(range(1, POINTS[point][1] + 1))
    algorithm, cfg = RUNS[name]
    _, resumed, trainer = reinforce(tiny_model_directory, tmp_path, algorithm, cfg=cfg)
    assert without_times(resumed) == without_times(expected)
    assert [row["step"] for row in without_times(resumed)] == list(range(1, STEPS + 1))
    coefficients = {row.get("policy/kl_coef") for row in without_times(resumed)}
    assert ("steered" in name) == (len(coefficients) > 1)
    assert ("dynamic" in name) == any(row["rollout/attempts"] > 1 for row in without_times(resumed))
    assert differing(state(trainer.model), state(expected_trainer.model)) == []
    assert (trainer.version, trainer.trained_tokens) == (expected_trainer.version, expected_trainer.trained_tokens)
    for step in range(1, STEPS + 1):
        assert resumed.read_trajectories(step) == expected.read_trajectories(step)


ROWS = [((1, 2, 3 + i, 4), (False, False, True, True)) for i in range(8)]
SFT = SftConfig(num_examples=8, epochs=5, examples_per_step=3, learning_rate=1e-3)


class DiesInSft(LocalTrainer):
    def optim_step(self, learning_rate):
        metrics = super().optim_step(learning_rate)
        die_in_step(12)
        return metrics


def _sft(directory, path, make_trainer=DiesInSft):
    global child_run
    run = child_run = RunDirectory(path, root_seed=4)
    trainer = make_trainer(load_policy(directory), batch_tokens=60)
    train_sft(trainer, ROWS, SFT, run, quiet)
    return without_times(run), state(trainer.model), (trainer.version, trainer.trained_tokens)


def test_sft_killed_after_an_update_ends_where_an_uninterrupted_run_does_bit_for_bit(tiny_model_directory, tmp_path):
    metrics, weights, counters = _sft(tiny_model_directory, tmp_path / "whole", LocalTrainer)
    assert [row["step"] for row in metrics] == list(range(1, 16))
    killed(_sft, tiny_model_directory, tmp_path / "killed")
    assert len(RunDirectory(tmp_path / "killed").read_metrics()) == 11, "the checkpoint is of step 8"
    resumed_metrics, resumed_weights, resumed_counters = _sft(tiny_model_directory, tmp_path / "killed", LocalTrainer)
    assert resumed_metrics == metrics
    assert differing(resumed_weights, weights) == []
    assert resumed_counters == counters


COMPARED = [
    Compared(
        (1, 2, 3 + i), ((4, 5), (6, 7 + i, 8), (9,)), (Choice(0, 1), Choice(2, 1, 0.5)), (Opinion(i % 3, i % 2 > 0),)
    )
    for i in range(8)
]


def _preference(algorithm, directory, path, make_trainer=DiesInSft):
    global child_run
    run = child_run = RunDirectory(path, root_seed=4)
    cfg = PreferenceConfig(algorithm=algorithm, epochs=5, prompts_per_step=3, learning_rate=1e-3)
    mismatched = mismatched_rows(COMPARED, context=100, seed=1)
    policy = FrozenPolicy(load_policy(directory), batch_tokens=60)
    reference = Reference(answer_logprobs(policy, [c.rows for c in COMPARED]), answer_logprobs(policy, mismatched))
    trainer = make_trainer(load_policy(directory), batch_tokens=20)
    train_preference(
        trainer,
        COMPARED,
        make_objective(cfg, COMPARED),
        cfg,
        run,
        quiet,
        reference=reference,
        mismatched=mismatched if algorithm == "kto" else (),
    )
    return without_times(run), state(trainer.model), (trainer.version, trainer.trained_tokens)


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_preferences_killed_after_an_update_end_where_an_uninterrupted_run_does_bit_for_bit(
    algorithm, tiny_model_directory, tmp_path
):
    metrics, weights, counters = _preference(algorithm, tiny_model_directory, tmp_path / "whole", LocalTrainer)
    assert [row["step"] for row in metrics] == list(range(1, 16))
    killed(_preference, algorithm, tiny_model_directory, tmp_path / "killed")
    assert len(RunDirectory(tmp_path / "killed").read_metrics()) == 11, "the checkpoint is of step 8"
    resumed = _preference(algorithm, tiny_model_directory, tmp_path / "killed", LocalTrainer)
    assert resumed[0] == metrics
    assert differing(resumed[1], weights) == []
    assert resumed[2] == counters
