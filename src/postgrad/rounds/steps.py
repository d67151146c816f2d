"""Method "steps": a reward for every step of a solution, and one for its outcome, from the same solutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from postgrad.config.steps import StepRewardRecipe
from postgrad.data.mixture import split_of
from postgrad.db.engine import sqlite_url
from postgrad.errors import ConfigError, DataError
from postgrad.evals.reward_health import HeldOut, certificate
from postgrad.feedback.codec import conversation_from_json, conversation_to_json
from postgrad.feedback.intervals import wilson_interval
from postgrad.feedback.pairs import first_words
from postgrad.feedback.steps import Solution, Solutions, read_reviews, read_step_file
from postgrad.feedback.store import LabelStore
from postgrad.graders.certificate import write_certificate
from postgrad.methods.reward import freeze_below
from postgrad.methods.step_reward import Scored, Supervision, scored, step_chances, train_step_reward
from postgrad.models.load import context_length, load_policy, save_reward_model
from postgrad.models.placement import place
from postgrad.rollout import request_seed
from postgrad.rounds.context import OpenBar, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.rounds.reward import NUM_CANARIES, PARTS, certificate_summary
from postgrad.run import STEPS, RunDirectory, read_json_lines, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import LocalTrainer
from postgrad.types import Conversation, Message

_LARGEST_LOGIT = 20.0


@dataclass(frozen=True)
class _Run:
    recipe: StepRewardRecipe
    manifest: Manifest
    initial: Path
    source: Path | None
    renderer: Renderer
    store: LabelStore
    bar: OpenBar

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    def scored(self, solution: Solution, supervision: Supervision) -> Scored:
        data = self.recipe.data
        return scored(solution, self.renderer, supervision=supervision, separator=data.separator, neutral=data.neutral)


def run_steps(
    recipe: StepRewardRecipe,
    *,
    workspace: Path,
    initial: Path,
    folder: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run; arguments as for `run_reward`.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    source = folder / recipe.data.source if recipe.data.source else None
    if source is not None and not source.is_file():
        raise ConfigError(f"'data.source' = {recipe.data.source!r}: {str(source)!r} does not exist; correct its path")
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint}
    if source is not None:
        inputs["source"] = sha256_file(source)
    with (
        open_round(recipe, workspace=workspace, model=model) as manifest,
        LabelStore(sqlite_url(workspace / "postgrad.db")) as store,
    ):
        run = _Run(recipe, manifest, initial, source, renderer, store, bar)
        work = [
            Work("steps", (), lambda s: _steps_stage(run, s)),
            Work("process", ("steps",), lambda s: _reward_stage(run, s, "process")),
            Work("outcome", ("steps", "process"), lambda s: _reward_stage(run, s, "outcome")),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _steps_stage(run: _Run, stage: Stage) -> None:
    """Read and split; what does not fit or says nothing is counted."""
    data = run.recipe.data
    read: Solutions = read_step_file(run.source) if run.source is not None else read_reviews(run.store)
    limit = min(data.max_tokens, context_length(run.initial))
    shares = {"train": 1 - data.validation_share, "validation": data.validation_share}
    rows, too_long, unsaid = [], 0, 0
    counts = dict.fromkeys(PARTS, 0)
    right = 0
    for solution in (_with_system(s, data.system) for s in read.found):
        ready = run.scored(solution, "process")
        if not any(ready.weight):
            unsaid += 1
        elif len(ready.ids) > limit:
            too_long += 1
        else:
            part = split_of(first_words(solution.prompt), shares, "steps")
            counts[part] += 1
            right += solution.right
            prompt = conversation_to_json(solution.prompt)
            rows.append({"part": part} | asdict(solution) | {"prompt": prompt})
    verdicts = [v for row in rows for v in row["verdicts"]]
    stage.summary = {
        **{f"{part}_solutions": num for part, num in counts.items()},
        "right": right,
        **{f"{kind}_steps": verdicts.count(kind) for kind in ("good", "neutral", "bad")},
        "left_out_too_long": too_long,
        "left_out_empty_step": read.empty,
        "left_out_all_neutral": unsaid,
    }
    for part in PARTS:
        kinds = {"bad" in row["verdicts"] for row in rows if row["part"] == part}
        if len(kinds) < 2:
            raise DataError(
                f"the {part} part needs solutions with a bad step and solutions without one, and {counts[part]} "
                f"solutions of {len(read.found)} are in it; review more, or change 'data.validation_share'"
            )
    write_lines(stage.directory / "solutions.jsonl", rows)


def _with_system(solution: Solution, system: str) -> Solution:
    if not system or solution.prompt.messages[0].role == "system":
        return solution
    messages = (Message("system", system), *solution.prompt.messages)
    return replace(solution, prompt=Conversation(messages, solution.prompt.tools))


def _read_part(run: _Run, part: str) -> list[Solution]:
    path = run.manifest.stage_directory("steps") / "solutions.jsonl"
    rows = read_json_lines(path)
    return [
        Solution(r["prompt_id"], conversation_from_json(r["prompt"]), tuple(r["steps"]), tuple(r["verdicts"]))
        for r in rows
        if r["part"] == part
    ]


def _reward_stage(run: _Run, stage: Stage, supervision: Supervision) -> None:
    """Train, examine on held-out solutions, and save with a certificate; the outcome's says how the two compare."""
    recipe = run.recipe
    training = [run.scored(s, supervision) for s in _read_part(run, "train")]
    held_out = _read_part(run, "validation")
    directory = RunDirectory(stage.directory, run.seed("reward"))
    torch.manual_seed(directory.seed(0, "init"))
    placement = place(recipe.model.device, recipe.model.dtype)
    model = load_policy(run.initial, heads=("reward",), placement=placement)
    freeze_below(model, recipe.reward.train_layers)
    head = model.heads["reward"]
    assert isinstance(head, torch.nn.Linear)
    head.bias.requires_grad_(True)  # a chance by itself has a zero, as a difference of rewards has not
    trainer = LocalTrainer(model, batch_tokens=recipe.batch_tokens, dump=stage.directory / "diverged")
    title = f"training the reward of the {'steps' if supervision == 'process' else 'outcome'}"
    train_step_reward(trainer, training, recipe.reward, directory, run.bar(title, directory))
    target = stage.directory / "model"
    save_reward_model(model, target, tokenizer_from=run.initial, canaries=[row.ids for row in training[:NUM_CANARIES]])
    separator = recipe.data.separator if supervision == "process" else ""
    write_json(target / STEPS, {"supervision": supervision, "separator": separator})
    forget_checkpoints(directory)
    ready = [run.scored(s, supervision) for s in held_out]
    chances = step_chances(model, ready, run.bar("checking it on held-out solutions"))
    logits = [_logit(float(np.prod(steps))) for steps in chances]
    write_lines(
        stage.directory / "held_out.jsonl", ({"chances": c, "logit": x} for c, x in zip(chances, logits, strict=True))
    )
    pairs = _pairs(held_out, ready, logits)
    found = write_certificate(target, certificate(pairs, [], reward_std=float(np.std(logits))), recipe.reward.bar)
    stage.add_tokens(trained=trainer.trained_tokens, scored=sum(len(row.ids) for row in ready))
    stage.summary = _step_accuracy(ready, chances) | certificate_summary(found) | _compared(run, supervision, pairs)


def _compared(run: _Run, supervision: Supervision, pairs: Sequence[HeldOut]) -> dict[str, Any]:
    """By how much the process's reward is right more often than the outcome's, on the same pairs."""
    if supervision == "process":
        return {}
    path = run.manifest.stage_directory("process") / "held_out.jsonl"
    theirs = [row["logit"] for row in read_json_lines(path)]
    held_out = _read_part(run, "validation")
    process = _pairs(held_out, [run.scored(s, "outcome") for s in held_out], theirs)
    both = [replace(p, baselines={"outcome": o.margin}) for p, o in zip(process, pairs, strict=True)]
    rows = certificate(both, [], reward_std=1.0)["baselines"]
    gain = next(row["gain"] for row in rows if row["name"] == "outcome")
    return {"process_gain": gain["value"], "process_gain_low": gain["low"], "process_gain_high": gain["high"]}


def _step_accuracy(ready: Sequence[Scored], chances: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How often a place is on its side of one half."""
    right = [
        (chance > 0.5) == (good > 0.5)
        for row, given in zip(ready, chances, strict=True)
        for chance, good, weight in zip(given, row.good, row.weight, strict=True)
        if weight
    ]
    low, high = wilson_interval(sum(right), len(right))
    return {"verdict_accuracy": sum(right) / len(right), "verdict_accuracy_low": low, "verdict_accuracy_high": high}


def _pairs(solutions: Sequence[Solution], ready: Sequence[Scored], logits: Sequence[float]) -> list[HeldOut]:
    """Right solutions against wrong ones: those to the same prompt, or, where there are none, of others in turn."""
    right = [i for i, s in enumerate(solutions) if s.right]
    wrong = [i for i, s in enumerate(solutions) if not s.right]
    same = [(i, j) for i in right for j in wrong if solutions[i].prompt_id == solutions[j].prompt_id]
    longest = max(len(right), len(wrong))
    matched = same or list(zip(*(_repeat(side, longest) for side in (right, wrong)), strict=True))
    return [
        HeldOut(
            f"{solutions[i].prompt_id} {solutions[j].prompt_id}",
            logits[i] - logits[j],
            len(ready[i].ids) - ready[i].prompt_length - len(ready[j].ids) + ready[j].prompt_length,
        )
        for i, j in matched
    ]


def _repeat(items: Sequence[int], num: int) -> list[int]:
    endless = cycle(items)
    return [next(endless) for _ in range(num)]


def _logit(chance: float) -> float:
    with np.errstate(divide="ignore"):
        logit = float(np.log(chance) - np.log1p(-chance))
    return float(np.clip(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT))
