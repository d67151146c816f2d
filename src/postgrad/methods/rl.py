"""The reinforcement learning loop: sample, grade, credit, update, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from postgrad.config import RlConfig
from postgrad.data.batch import Batch, make_batch
from postgrad.data.mixture import Mixture
from postgrad.methods.sft import Progress
from postgrad.protocols import Algorithm, Grader, Policy, RolloutEngine, Trainer
from postgrad.rollout import grade_groups, rollout_groups
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint
from postgrad.types import Group, SamplingParams

SAVE_EVERY = 4


async def train_rl(
    cfg: RlConfig,
    *,
    trainer: Trainer,
    reference: Policy,
    engine: RolloutEngine,
    algorithm: Algorithm,
    graders: Sequence[Grader],
    dataset: Mixture,
    renderer: Renderer,
    run: RunDirectory,
    progress: Progress,
) -> str | None:
    """Optimise the policy against the graders; returns why it stopped early, or None.

    Invariant: at the top of every step the engine holds exactly the trainer's weights.

    Raises:
        TrainingDiverged: a loss or gradient norm is not finite.
    """
    params = SamplingParams(max_tokens=cfg.max_tokens, temperature=cfg.temperature)
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    await engine.load_weights(trainer.weights(), version=trainer.version)
    for step in range(start, cfg.steps):
        metrics: dict[str, float] = {}
        with _timed(metrics, "time/sample_s"):
            examples = dataset.take(step, cfg.prompts_per_step)
            groups = await rollout_groups(
                examples, engine, renderer, params, group_size=cfg.group_size, seed=run.seed(step)
            )
        with _timed(metrics, "time/grade_s"):
            groups = await grade_groups(groups, graders)
        metrics |= _group_metrics(groups)
        run.save_groups(step + 1, groups)
        chosen = algorithm.select(groups)
        metrics["group/no_signal_frac"] = 1 - len(chosen) / len(groups)
        if chosen:
            with _timed(metrics, "time/prepare_s"):
                batch, credit = algorithm.prepare(make_batch(chosen), trainer, reference)
            metrics |= credit
            if credit["policy/kl_ref"] > cfg.kl_stop:
                return (
                    f"step {step + 1}: KL {credit['policy/kl_ref']:.1f} nats an answer exceeds kl_stop {cfg.kl_stop:g}"
                )
            with _timed(metrics, "time/update_s"):
                metrics |= _update(cfg, trainer, algorithm, batch, seed=run.seed(step, "update"))
            await engine.load_weights(trainer.weights(), version=trainer.version)
        run.write_metrics(step + 1, metrics)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < cfg.steps:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, cfg.steps)
    return None


def _update(cfg: RlConfig, trainer: Trainer, algorithm: Algorithm, batch: Batch, *, seed: int) -> dict[str, float]:
    """Take `epochs` passes of `minibatches` updates over the samples; metrics are those of the last pass."""
    sums: dict[str, float] = {}
    for epoch in range(cfg.epochs):
        sums = {}
        minibatches = list(batch.minibatches(cfg.minibatches, seed=seed + epoch))
        for minibatch in minibatches:
            metrics = trainer.forward_backward(minibatch, algorithm.loss) | trainer.optim_step(cfg.learning_rate)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value / len(minibatches)
    return sums


def _group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    trajectories = [t for g in groups for t in g.trajectories]
    rewards = [t.reward for t in trajectories if t.reward is not None]
    lengths = [len(turn.completion.token_ids) for t in trajectories for turn in t.turns]
    metrics = {
        "rollout/truncated_frac": sum(t.status == "truncated" for t in trajectories) / len(trajectories),
        "rollout/completion_tokens": sum(lengths) / len(lengths),
    }
    if rewards:
        metrics["reward/mean"] = sum(rewards) / len(rewards)
    return metrics


@contextmanager
def _timed(metrics: dict[str, float], key: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    metrics[key] = time.perf_counter() - began
