"""Method "reward": a reward model from pairs of any source."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from postgrad.config.reward import RewardRecipe
from postgrad.config.sections import RewardConfig
from postgrad.db.engine import sqlite_url
from postgrad.errors import DataError
from postgrad.feedback.pair_checks import add_too_long, as_rows
from postgrad.feedback.pair_sources import read_pairs, source_paths, split_labels
from postgrad.feedback.pairs import Pair, label_to_json, pair_from_json
from postgrad.feedback.store import LabelStore
from postgrad.graders.certificate import weights_sha256, write_certificate
from postgrad.methods.reward import (
    Ranked,
    freeze_below,
    score_ensemble,
    standardise,
    train_reward_model,
)
from postgrad.methods.reward_data import pair_grades, rank_pairs, rater_weights_of
from postgrad.models.load import context_length, load_policy, load_reward_model, save_reward_model
from postgrad.models.placement import place
from postgrad.models.policy import PolicyModel
from postgrad.rollout import request_seed
from postgrad.rounds.certify import Exam, examine, sample_answers
from postgrad.rounds.context import OpenBar, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage, workspace_checkpoints
from postgrad.run import CERTIFICATE, RunDirectory, read_json_lines, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import FrozenPolicy, LocalTrainer

NUM_CANARIES = 8
NUM_SCALE = 256
PARTS = ("train", "validation")


@dataclass(frozen=True)
class _Run:
    recipe: RewardRecipe
    manifest: Manifest
    workspace: Path
    initial: Path
    folder: Path
    renderer: Renderer
    store: LabelStore
    bar: OpenBar

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    def policy(self, **options: Any) -> PolicyModel:
        cfg = self.recipe.model
        return load_policy(self.initial, placement=place(cfg.device, cfg.dtype), **options)


def run_reward(
    recipe: RewardRecipe,
    *,
    workspace: Path,
    initial: Path,
    folder: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
    database: str | None = None,
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: holds the label store; one process at a time.
        initial: model directory that the reward model begins as.
        folder: where relative paths of sources begin.
        bar: opens a progress bar under a title, or, given the directory of a run, a view of its metrics.
        announce: told the name of each stage as it begins.
        database: URL of the label store; None is a SQLite file in the workspace.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    paths = source_paths(recipe.data, folder)
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint} | {p.name: sha256_file(p) for p in paths}
    with (
        open_round(recipe, workspace=workspace, model=model) as manifest,
        LabelStore(database or sqlite_url(workspace / "postgrad.db")) as store,
    ):
        run = _Run(recipe, manifest, workspace, initial, folder, renderer, store, bar)
        work = [
            Work("pairs", (), lambda s: _pairs_stage(run, s)),
            Work("reward", ("pairs",), lambda s: _reward_stage(run, s)),
            Work("certificate", ("pairs", "reward"), lambda s: _certificate_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _pairs_stage(run: _Run, stage: Stage) -> None:
    """Read, check and split; what is learned from is frozen here, whatever is labelled while the run goes on."""
    recipe = run.recipe
    checkpoints = workspace_checkpoints(run.workspace) | {weights_sha256(run.initial)}
    data = read_pairs(recipe.data, run.folder, run.store, checkpoints=checkpoints)
    limit = min(recipe.data.max_tokens, context_length(run.initial))
    parts = dict(zip(PARTS, split_labels(data.pairs, recipe.data.validation_share), strict=True))
    ranked, long = {}, []
    for part, pairs in parts.items():
        ranked[part], too_long = rank_pairs(pairs, run.renderer, recipe.reward, max_tokens=limit, rater_weights={})
        long += too_long
    add_too_long(data.oddities, long, recipe.data.odd)
    stage.summary = {
        "sources": data.sources,
        "odd": as_rows(data.oddities),
        **{f"{part}_prompts": len(groups) for part, groups in ranked.items()},
        **{f"{part}_labels": sum(len(g.verdicts) for g in groups) for part, groups in ranked.items()},
    }
    for part, groups in ranked.items():
        if all(v.tie for group in groups for v in group.verdicts):
            raise DataError(
                f"the {part} part has no pair that is no tie, of {len(data.pairs)} pairs, {len(long)} of them longer "
                "than 'data.max_tokens'; add pairs, or change 'data.validation_share'"
            )
    left_out = set(map(id, long))
    write_lines(
        stage.directory / "pairs.jsonl",
        ({"part": part} | label_to_json(p) for part, pairs in parts.items() for p in pairs if id(p) not in left_out),
    )


def _read_part(run: _Run, part: str) -> list[Pair]:
    path = run.manifest.stage_directory("pairs") / "pairs.jsonl"
    return [pair_from_json(row) for row in read_json_lines(path) if row.pop("part") == part]


def _ranked(run: _Run, part: str) -> list[Ranked]:
    cfg = run.recipe.reward
    weights = rater_weights_of(_read_part(run, "train")) if cfg.rater_weights == "competence" else {}
    limit = run.recipe.data.max_tokens
    return rank_pairs(_read_part(run, part), run.renderer, cfg, max_tokens=limit, rater_weights=weights)[0]


def _reward_stage(run: _Run, stage: Stage) -> None:
    cfg = run.recipe.reward
    training = _ranked(run, "train")
    directory = RunDirectory(stage.directory, run.seed("reward"))
    torch.manual_seed(directory.seed(0, "init"))
    model = run.policy(heads=("reward",), num_rewards=cfg.num_heads)
    trainer = fit_reward_model(model, training, cfg, directory, run.recipe.batch_tokens, run.bar)
    answers = [answer for group in training for answer in group.answers]
    save_reward_model(model, stage.directory / "model", tokenizer_from=run.initial, canaries=answers[:NUM_CANARIES])
    forget_checkpoints(directory)
    rows = directory.read_metrics()
    stage.add_tokens(trained=trainer.trained_tokens, scored=sum(map(len, answers)))
    stage.summary = {
        "steps": len(rows),
        "loss_first": rows[0]["loss/bradley_terry"],
        "loss_last": rows[-1]["loss/bradley_terry"],
    }


def _certificate_stage(run: _Run, stage: Stage) -> None:
    """A model below the recipe's bar is kept, with the reasons; it is optimising that refuses it."""
    recipe, cfg = run.recipe, run.recipe.certificate
    directory = run.manifest.stage_directory("reward") / "model"
    model = load_reward_model(directory, placement=place(recipe.model.device, recipe.model.dtype))
    validation = _ranked(run, "validation")
    initial = run.policy()
    prompts = [group.answers[0][: group.prompt_length] for group in validation[: cfg.num_samples]]
    sampled = []
    if recipe.reward.num_heads > 1:
        sampled = sample_answers(
            initial, run.renderer, prompts, max_tokens=cfg.max_tokens, seed=run.seed("certificate")
        )
    exam = Exam(
        run.renderer, validation, pair_grades(_read_part(run, "validation")), cfg.num_probes, run.bar,
        reference=FrozenPolicy(initial, batch_tokens=recipe.batch_tokens) if cfg.log_probability else None,
        sampled=sampled, residualise=recipe.reward.residualise_length,
    )  # fmt: skip
    found = write_certificate(directory, examine(model, exam), recipe.reward.bar)
    write_json(stage.directory / CERTIFICATE, found)
    stage.add_tokens(scored=sum(len(a) for g in validation for a in g.answers))
    stage.summary = certificate_summary(found)


def certificate_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of it; the rest is in its file."""
    best = found["baselines"][0]
    names = ("accuracy", "accuracy_low", "accuracy_high", "num_pairs", "brier", "ece", "ece_calibrated", "temperature")
    return {
        **{name: found[name] for name in names},
        "best_baseline": best["name"],
        **_interval("best_baseline_accuracy", best["accuracy"]),
        **_interval("gain_over_it", best["gain"]),
        **_length(found["length"]),
        "below_bar": "; ".join(found["below_bar"]) or "no",
        "model_sha256": found["model_sha256"],
        "calibration": found["calibration"],
    }


def _length(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reward a token, and whether it is taken off."""
    return {} if found is None else {**_interval("length_slope", found["slope"]), "residualised": found["residualised"]}


def _interval(name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}


def fit_reward_model(
    model: PolicyModel,
    training: Sequence[Ranked],
    cfg: RewardConfig,
    run: RunDirectory,
    batch_tokens: int,
    bar: OpenBar,
) -> LocalTrainer:
    """Train, and give the rewards of what was learned from, or of `NUM_SCALE` prompts of it, mean 0 and deviation 1."""
    freeze_below(model, cfg.train_layers)
    trainer = LocalTrainer(model, batch_tokens=batch_tokens, dump=run.path / "diverged")
    train_reward_model(trainer, training, cfg, run, bar("training the reward model", run))
    # Some hundreds of answers tell a deviation to a few percent; to read all takes half as long as to learn from them.
    dice = random.Random(run.seed(0, "scale"))
    some = sorted(dice.sample(range(len(training)), min(NUM_SCALE, len(training))))
    standardise(model, torch.cat(score_ensemble(model, [training[i] for i in some], bar("reading its scale"))))
    return trainer
