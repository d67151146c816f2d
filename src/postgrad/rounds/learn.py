"""What several methods do alike inside one stage: learn from rows to imitate, or from answers that were compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from postgrad.config.preference import PreferenceConfig
from postgrad.config.sections import PassesConfig
from postgrad.methods.preference import (
    Compared,
    Reference,
    Rows,
    answer_logprobs,
    make_objective,
    train_preference,
)
from postgrad.methods.sft import Progress, Rendered, train_sft
from postgrad.models.load import save_policy
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Policy
from postgrad.rounds.manifest import Stage
from postgrad.run import RunDirectory, atomic_write
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import LocalTrainer

CHUNK = 64
"""Prompts whose logprobs under the reference are read before they are written; a killed reading goes on from there."""


def learn_rows(
    stage: Stage,
    model: PolicyModel,
    rows: Sequence[Rendered],
    cfg: PassesConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    batch_tokens: int,
    tokenizer_from: Path,
) -> None:
    """Imitate the rows, save the policy, and say how the loss went."""
    trainer = LocalTrainer(model, batch_tokens=batch_tokens, dump=stage.directory / "diverged")
    train_sft(trainer, rows, cfg, run, progress)
    _keep(stage, model, trainer, run, tokenizer_from)
    losses = [row["loss/nll"] for row in run.read_metrics()]
    stage.summary = {"loss_first": losses[0], "loss_last": losses[-1]}


def read_reference(policy: Policy, rows: Sequence[Rows], directory: Path) -> Iterator[int]:
    """Logprobs of every answer into `directory`; prompts done, after every chunk. One on the disk is not read again."""
    for start in range(0, len(rows), CHUNK):
        path = directory / f"{start:06d}.json"
        chunk = rows[start : start + CHUNK]
        if not path.exists():
            atomic_write(path, json.dumps(answer_logprobs(policy, chunk)))
        yield start + len(chunk)


def reference_logprobs(directory: Path) -> list[list[float]]:
    """What `read_reference` wrote."""
    chunks = sorted(directory.glob("*.json"))
    return [logprobs for chunk in chunks for logprobs in json.loads(chunk.read_text(encoding="utf-8"))]


def learn_preferences(
    stage: Stage,
    model: PolicyModel,
    compared: Sequence[Compared],
    cfg: PreferenceConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    reference: Path,
    mismatched: Sequence[Rows],
    batch_tokens: int,
    tokenizer_from: Path,
) -> None:
    """Learn what was said of the answers, save the policy, and say how it went.

    Args:
        stage: receives the policy and what there is to say.
        model: to be trained.
        compared: what is learned from.
        cfg: algorithm, passes and rate.
        run: of the stage.
        progress: told after every step.
        reference: directory in which `read_reference` has read "train" and, for kto, "mismatched".
        mismatched: for kto, by prompt.
        batch_tokens: most tokens of one forward pass.
        tokenizer_from: a model directory with the policy's tokenizer.
    """
    trainer = LocalTrainer(model, batch_tokens=batch_tokens, dump=stage.directory / "diverged")
    objective = make_objective(cfg, compared)
    run.write_config({"algorithm": cfg.algorithm} | asdict(objective))  # type: ignore[call-overload]
    known = None
    if objective.needs_reference:
        known = Reference(reference_logprobs(reference / "train"), reference_logprobs(reference / "mismatched"))
    train_preference(trainer, compared, objective, cfg, run, progress, reference=known, mismatched=mismatched)
    _keep(stage, model, trainer, run, tokenizer_from)
    rows = run.read_metrics()
    keys = {"loss": "loss/preference", "accuracy": "preference/accuracy", "chosen_logprob": "preference/chosen_logprob"}
    stage.summary = {
        "algorithm": cfg.algorithm,
        "steps": len(rows),
        **{f"{name}_{at}": row.get(key) for name, key in keys.items() for at, row in _ends(rows)},
    }


def _ends(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    return [("first", rows[0]), ("last", rows[-1])]


def _keep(stage: Stage, model: PolicyModel, trainer: LocalTrainer, run: RunDirectory, tokenizer_from: Path) -> None:
    save_policy(model, stage.directory / "policy", tokenizer_from=tokenizer_from)
    forget_checkpoints(run)
    stage.add_tokens(trained=trainer.trained_tokens)
    stage.policy_version = trainer.version
