"""The reinforcement learning loop: sample, grade, credit, update, publish."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from postgrad.config.rl import RlConfig
from postgrad.data.batch import Batch, make_batch
from postgrad.data.mixture import Mixture
from postgrad.errors import DataError, RolloutError
from postgrad.methods.length import LengthControl
from postgrad.methods.schedule import rate_share
from postgrad.methods.sft import Progress
from postgrad.protocols import Algorithm, Grader, Policy, RolloutEngine, Trainer
from postgrad.rollout import FAILED, grade_groups, rollout_groups
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint
from postgrad.types import Group, SamplingParams

SAVE_EVERY = 4
UNSCORED_STOP = 3
"""Steps in a row without a single score after which a run gives up."""
SIGNS_OF_LIFE = {"reward/mean", "optim/grad_norm"}
"""Metrics of a step that scored or learned something."""


class Outcome(NamedTuple):
    steps: int
    """Whose updates were all taken."""
    stopped: str | None = None
    """Why before the last one."""


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
    context: int,
    run: RunDirectory,
    progress: Progress,
    before_step: Callable[[int], Awaitable[str | None]] | None = None,
) -> Outcome:
    """Optimise the policy against the graders, or, without any, against what the algorithm itself knows.

    The row of a step that `kl_stop` ended is the last one, with what was sampled and none of its updates taken.

    Invariant: at the top of every step the engine holds exactly the trainer's weights; `before_step` is told there how
    many steps are done, and may give a reason to stop.

    Raises:
        DataError: no prompt leaves room for an answer in `context` tokens.
        RolloutError: `UNSCORED_STOP` steps in a row brought no score at all.
        TrainingDiverged: a loss or gradient norm is not finite.
    """
    _check_prompts(dataset, renderer, context - cfg.max_tokens)
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    unscored = _unscored_steps(run)
    control = None if cfg.length_band is None else LengthControl(*cfg.length_band)
    for row in run.read_metrics():
        algorithm, control = algorithm.after(row), control and control.after(row)
    await engine.load_weights(trainer.weights(), version=trainer.version)
    for step in range(start, cfg.steps):
        reason = await before_step(step) if before_step is not None else None
        if reason is not None:
            return Outcome(step, reason)
        metrics: dict[str, float] = {}
        groups, chosen = await _sample(
            cfg, step, metrics, engine=engine, algorithm=algorithm, graders=graders, control=control, dataset=dataset,
            renderer=renderer, run=run,
        )  # fmt: skip
        run.save_groups(step + 1, groups)
        if chosen:
            with _timed(metrics, "time/prepare_s"):
                batch, credit = algorithm.prepare(make_batch(chosen), trainer, reference)
            metrics |= credit
            if credit.get("policy/kl_ref", 0.0) > cfg.kl_stop:
                run.write_metrics(step + 1, metrics | {"optim/updates_frac": 0.0})
                progress(step + 1, cfg.steps)
                return Outcome(
                    step,
                    f"step {step + 1}: KL {credit['policy/kl_ref']:.1f} nats an answer exceeds kl_stop {cfg.kl_stop:g}",
                )
            with _timed(metrics, "time/update_s"):
                metrics |= _update(cfg, trainer, algorithm, batch, step=step, seed=run.seed(step, "update"))
            await engine.load_weights(trainer.weights(), version=trainer.version)
        run.write_metrics(step + 1, metrics)
        algorithm, control = algorithm.after(metrics), control and control.after(metrics)
        unscored = 0 if SIGNS_OF_LIFE & metrics.keys() else unscored + 1
        if unscored >= min(UNSCORED_STOP, cfg.steps):
            raise RolloutError(
                f"step {step + 1}: no answer was scored in {unscored} steps in a row; {_why_unscored(groups)}; "
                "mend that and run the same command again"
            )
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < cfg.steps:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, cfg.steps)
    return Outcome(cfg.steps)


async def _sample(
    cfg: RlConfig,
    step: int,
    metrics: dict[str, float],
    *,
    engine: RolloutEngine,
    algorithm: Algorithm,
    graders: Sequence[Grader],
    control: LengthControl | None,
    dataset: Mixture,
    renderer: Renderer,
    run: RunDirectory,
) -> tuple[list[Group], list[Group]]:
    """(every group sampled and graded, those to train on); dynamic sampling, DAPO, arXiv 2503.14476, eq. 11.

    Prompts and seeds are functions of (step, attempt), so what earlier steps needed does not matter to a resumed run;
    examples of attempts that a step does not need are passed over until the next epoch.
    """
    params = SamplingParams(max_tokens=cfg.max_tokens, temperature=cfg.temperature)
    judged: list[Group] = []
    groups: list[Group] = []
    chosen: list[Group] = []
    attempt = 0
    while attempt < cfg.sampling_attempts and len(chosen) < cfg.prompts_per_step:
        with _timed(metrics, "time/sample_s"):
            examples = dataset.take(step * cfg.sampling_attempts + attempt, cfg.prompts_per_step)
            seed = run.seed(step, attempt) if attempt else run.seed(step)
            sampled = await rollout_groups(examples, engine, renderer, params, group_size=cfg.group_size, seed=seed)
        with _timed(metrics, "time/grade_s"):
            graded = await grade_groups(sampled, graders)
        controlled = graded if control is None else control.apply(graded)
        judged += graded
        groups += controlled
        chosen += algorithm.select(controlled)
        attempt += 1
    metrics |= _group_metrics(judged)
    if control is not None:
        metrics["reward/length_coef"] = control.coef
    metrics["rollout/attempts"] = attempt
    metrics["group/no_signal_frac"] = 1 - len(chosen) / len(groups)
    chosen = chosen[: cfg.prompts_per_step]
    metrics["group/discarded_frac"] = 1 - len(chosen) / len(groups)
    return groups, chosen


def _update(
    cfg: RlConfig, trainer: Trainer, algorithm: Algorithm, batch: Batch, *, step: int, seed: int
) -> dict[str, float]:
    """Take `epochs` passes of `minibatches` updates over the samples; metrics are those of the last pass.

    Beyond `kl_old_stop` the rest is left out, as target_kl does in OpenAI's Spinning Up; the minibatch that shows it
    is still learned from.
    """
    rate = cfg.learning_rate * rate_share(cfg.schedule, step, cfg.steps, warmup_frac=cfg.warmup_frac)
    stop = math.inf if cfg.kl_old_stop is None else cfg.kl_old_stop
    moved, taken, planned = 0.0, 0, 0
    passed: list[dict[str, float]] = []
    for epoch in range(cfg.epochs):
        minibatches = list(batch.minibatches(cfg.minibatches, seed=seed + epoch))
        planned += len(minibatches)
        if moved > stop:
            continue
        passed = []
        for minibatch in minibatches:
            passed.append(trainer.forward_backward(minibatch, algorithm.loss) | trainer.optim_step(rate))
            taken += 1
            moved = passed[-1]["policy/kl_old"]
            if moved > stop:
                break
    means = {key: sum(m[key] for m in passed) / len(passed) for key in passed[-1]}
    return means | {"optim/learning_rate": rate, "optim/updates_frac": taken / planned}


def _check_prompts(dataset: Mixture, renderer: Renderer, limit: int) -> None:
    """One prompt that fits is enough to begin: the others become errored answers, which the metrics show."""
    too_long = []
    for example in dataset.examples():
        length = len(renderer.render_prompt(example.prompt))
        if length <= limit:
            return
        too_long.append(f"{example.id!r} ({length} tokens)")
    more = f" and {len(too_long) - 10} more" if len(too_long) > 10 else ""
    raise DataError(
        f"no prompt leaves room for 'rl.max_tokens' in the model's context, which would allow {limit}: "
        f"{', '.join(too_long[:10])}{more}; shorten them, lower 'rl.max_tokens' or take a longer context"
    )


def _unscored_steps(run: RunDirectory) -> int:
    """Steps in a row, up to the last one kept, without a score or an update."""
    rows = run.read_metrics()
    scored = [i for i, row in enumerate(rows, 1) if SIGNS_OF_LIFE & row.keys()]
    return len(rows) - (scored[-1] if scored else 0)


def _why_unscored(groups: Sequence[Group]) -> str:
    trajectories = [t for g in groups for t in g.trajectories]
    for t in trajectories:
        for score in t.scores:
            if score.explanation.startswith(FAILED):
                return f"grader {score.grader!r} {score.explanation}"
    error = next((t.error for t in trajectories if t.error is not None), None)
    return "every grader abstained" if error is None else f"the engine failed: {error}"


def _group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    trajectories = [t for g in groups for t in g.trajectories]
    num = len(trajectories)
    rewards = [t.reward for t in trajectories if t.reward is not None]
    scores = [s for t in trajectories for s in t.scores]
    lengths = [len(turn.completion.token_ids) for t in trajectories for turn in t.turns]
    metrics = {
        "rollout/truncated_frac": sum(t.status == "truncated" for t in trajectories) / num,
        "rollout/errored_frac": sum(t.status == "errored" for t in trajectories) / num,
        "rollout/sampled_tokens": float(sum(lengths)),
    }
    if lengths:
        metrics["rollout/completion_tokens"] = sum(lengths) / len(lengths)
    if scores:
        failed = sum(s.value is None and s.explanation.startswith(FAILED) for s in scores)
        metrics["grader/failed_frac"] = failed / len(scores)
    if rewards:
        metrics["reward/mean"] = sum(rewards) / len(rewards)
    return metrics


@contextmanager
def _timed(metrics: dict[str, float], key: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    metrics[key] = metrics.get(key, 0.0) + time.perf_counter() - began
