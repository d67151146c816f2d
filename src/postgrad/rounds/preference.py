"""Method "preference": a policy straight from preferences, held to a reference that is read once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from postgrad.config.preference import PreferenceRecipe
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.intervals import Estimate, resampled, wilson_interval
from postgrad.feedback.pair_checks import add_too_long, as_rows
from postgrad.feedback.pair_sources import PairData, is_decided, read_pairs, source_paths, split_labels
from postgrad.feedback.pairs import label_to_json
from postgrad.graders.certificate import weights_sha256
from postgrad.methods.preference import (
    Compared,
    Objective,
    Rows,
    answer_logprobs,
    make_objective,
    mismatched_rows,
)
from postgrad.models.load import context_length, load_policy
from postgrad.models.placement import place
from postgrad.models.policy import PolicyModel
from postgrad.models.pull import resolve
from postgrad.rollout import request_seed
from postgrad.rounds.context import OpenBar, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.learn import learn_preferences, read_reference, reference_logprobs
from postgrad.rounds.manifest import Manifest, Stage, list_rounds, workspace_checkpoints
from postgrad.rounds.preference_data import (
    Prepared,
    open_labels,
    prepare,
    read_compared,
    write_compared,
)
from postgrad.run import RunDirectory, atomic_write, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy
from postgrad.types import Completion, GenerationRequest, SamplingParams

PARTS = ("train", "heldout")
NUM_PROMPTS, NUM_SAMPLES, SAMPLE_TOKENS = 32, 8, 64
"""Held-out prompts that are answered before and after, answers kept for the report, and tokens of an answer."""


@dataclass(frozen=True)
class _Run:
    recipe: PreferenceRecipe
    manifest: Manifest
    initial: Path
    workspace: Path
    folder: Path
    renderer: Renderer
    bar: OpenBar

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    @property
    def unpaired(self) -> bool:
        return self.recipe.preference.algorithm == "kto"

    @property
    def policy(self) -> Path:
        return self.manifest.stage_directory("preference") / "policy"

    def load(self, directory: Path, **options: Any) -> PolicyModel:
        gc.collect()
        cfg = self.recipe.model
        return load_policy(directory, placement=place(cfg.device, cfg.dtype), **options)

    def frozen(self, model: PolicyModel) -> FrozenPolicy:
        return FrozenPolicy(model, batch_tokens=self.recipe.batch_tokens)

    def compared(self, part: str) -> list[Compared]:
        """What the pairs stage wrote: labels that came in since do not count."""
        return read_compared(self.manifest.stage_directory("pairs") / f"{part}.jsonl")

    def objective(self) -> Objective:
        return make_objective(self.recipe.preference, self.compared("train"))

    def mismatched(self) -> list[Rows]:
        seed = self.seed("mismatched")
        return mismatched_rows(self.compared("train"), context=context_length(self.initial), seed=seed)

    def reference(self, name: str) -> list[list[float]]:
        """What the reference stage wrote of "train", "heldout" or "mismatched"."""
        return reference_logprobs(self.manifest.stage_directory("reference") / name)


def initial_policy(name: str, workspace: Path) -> Path:
    """Directory of the model by its name; "sft" is the policy of the newest round that has finished that stage.

    Raises:
        ConfigError: no such model or round.
        DataError: a directory without weights or tokenizer.
    """
    if name != "sft":
        return resolve(name)
    for manifest in reversed(list_rounds(workspace)):
        stage = manifest.find("sft")
        if stage is not None and stage.status == "done":
            return manifest.stage_directory("sft") / "policy"
    raise ConfigError(
        f"'model.name' = \"sft\" is the newest SFT policy in workspace {str(workspace)!r}, and there is none; run "
        f"`postgrad quickstart --workspace {workspace}` first, or name a model"
    )


def longest_group(recipe: PreferenceRecipe, *, initial: Path, workspace: Path, folder: Path) -> int:
    """Tokens of the longest prompt with all its answers: what a micro-batch holds at least.

    Raises:
        PostgradError: the labels cannot be read, or too few can be used.
    """
    found = _read(recipe, Renderer(load_tokenizer(initial)), initial, workspace, folder)
    return max(len(c.prompt) + sum(map(len, c.answers)) for part in found.parts.values() for c in part.compared)


def run_preference(
    recipe: PreferenceRecipe,
    *,
    workspace: Path,
    initial: Path,
    folder: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: holds the labels; one process at a time.
        initial: model directory of the initial policy, which is also the reference.
        folder: where relative paths of sources begin.
        bar: opens a progress bar under a title, or, given the directory of a run, a view of its metrics.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    paths = source_paths(recipe.data, folder)
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint} | {p.name: sha256_file(p) for p in paths}
    with open_round(recipe, workspace=workspace, model=model) as manifest:
        run = _Run(recipe, manifest, initial, workspace, folder, renderer, bar)
        work = [
            Work("pairs", (), lambda s: _pairs_stage(run, s)),
            Work("reference", ("pairs",), lambda s: _reference_stage(run, s)),
            Work("preference", ("pairs", "reference"), lambda s: _preference_stage(run, s)),
            Work("evaluate", ("pairs", "reference", "preference"), lambda s: _evaluate_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


@dataclass(frozen=True)
class _Read:
    data: PairData
    parts: dict[str, Prepared]
    """"train" and "heldout"."""


def _read(recipe: PreferenceRecipe, renderer: Renderer, initial: Path, workspace: Path, folder: Path) -> _Read:
    """Read, check, split and render all sources.

    Raises:
        DataError: nothing is left to learn from or to check it on; the sentence counts what was left out.
    """
    cfg, unpaired = recipe.data, recipe.preference.algorithm == "kto"
    checkpoints = workspace_checkpoints(workspace) | {weights_sha256(initial)}
    with open_labels(cfg, workspace) as store:
        data = read_pairs(cfg, folder, store, checkpoints=checkpoints)
    limit = min(cfg.max_tokens, context_length(initial))
    split = split_labels(data.labels, cfg.validation_share, teaches=(lambda _: True) if unpaired else is_decided)
    parts = {
        part: prepare(labels, renderer=renderer, max_tokens=limit, unpaired=unpaired)
        for part, labels in zip(PARTS, split, strict=True)
    }
    long = [label for found in parts.values() for label in found.too_long]
    add_too_long(data.oddities, long, cfg.odd)
    fewest = {"train": 2 if unpaired else 1, "heldout": 1}
    if any(len(found.compared) < fewest[part] for part, found in parts.items()):
        left_out = {o.problem.replace("_", " "): o.dropped for o in data.oddities}
        left_out["ties"] = sum(found.ties for found in parts.values())
        listed = ", ".join(f"{num} {reason}" for reason, num in left_out.items() if num) or "none was left out"
        kept = ", ".join(f"{len(found.compared)} {part}" for part, found in parts.items())
        raise DataError(
            f"of {sum(source['pairs'] for source in data.sources)} labels, too few prompts remain to learn from and to "
            f"check it on: {kept} ({listed}); label more prompts, or change 'data.validation_share'"
        )
    return _Read(data, parts)


def _pairs_stage(run: _Run, stage: Stage) -> None:
    """What is learned from, in tokens and as it was read; what is odd or says nothing is counted."""
    read = _read(run.recipe, run.renderer, run.initial, run.workspace, run.folder)
    for part, found in read.parts.items():
        atomic_write(stage.directory / f"{part}.jsonl", write_compared(found.compared))
    write_lines(
        stage.directory / "labels.jsonl",
        ({"part": part} | label_to_json(label) for part, found in read.parts.items() for label in found.used),
    )
    used = [label for found in read.parts.values() for label in found.used]
    stage.summary = {
        "sources": read.data.sources,
        "odd": as_rows(read.data.oddities),
        "read": sum(source["pairs"] for source in read.data.sources),
        "used": len(used),
        "left_out_ties": sum(found.ties for found in read.parts.values()),
        **{f"{part}_prompts": len(found.compared) for part, found in read.parts.items()},
        **_lengths(read.parts["train"].compared, unpaired=run.unpaired),
    }
    written_by = [answer.checkpoint for label in used for answer in label.answers if answer.checkpoint]
    if written_by:
        own = weights_sha256(run.initial)
        stage.summary |= {"written_by_this_policy_frac": sum(sha == own for sha in written_by) / len(written_by)}


def _lengths(compared: Sequence[Compared], *, unpaired: bool) -> dict[str, float]:
    """Mean tokens of both kinds of answers: a method without length normalisation learns their difference too."""
    if unpaired:
        sides = [[len(c.answers[o.answer]) for c in compared for o in c.opinions if o.good == k] for k in (True, False)]
    else:
        choices = [(c.answers[v.better], c.answers[v.worse]) for c in compared for v in c.choices]
        sides = [[len(better) for better, _ in choices], [len(worse) for _, worse in choices]]
    return {f"{name}_tokens": fmean(side) for name, side in zip(("better", "worse"), sides, strict=True) if side}


def _reference_stage(run: _Run, stage: Stage) -> None:
    """Logprobs of every answer under the reference, so that it need not be in memory while the policy learns.

    The manifest holds the hashes of the reference and of the pairs, and refuses to go on with others.
    """
    if not run.objective().needs_reference:
        stage.summary = {"answers": 0, "needed": "no"}
        return
    wanted = {"train": [c.rows for c in run.compared("train")], "heldout": [c.rows for c in run.compared("heldout")]}
    if run.unpaired:
        wanted["mismatched"] = run.mismatched()
    policy = run.frozen(run.load(run.initial))
    total = sum(map(len, wanted.values()))
    progress = run.bar("reading the answers with the reference")
    done = 0
    for name, rows in wanted.items():
        for done_here in read_reference(policy, rows, stage.directory / name):
            progress(done + done_here, total)
        done += len(rows)
    stage.add_tokens(scored=sum(len(p) + sum(map(len, a)) for rows in wanted.values() for p, a in rows))
    stage.summary = {name: sum(len(answers) for _, answers in rows) for name, rows in wanted.items()}


def _preference_stage(run: _Run, stage: Stage) -> None:
    recipe, cfg = run.recipe, run.recipe.preference
    directory = RunDirectory(stage.directory, run.seed("preference"))
    torch.manual_seed(directory.seed(0, "init"))
    model = run.load(
        run.initial, lora_rank=recipe.model.lora_rank, gradient_checkpointing=recipe.model.gradient_checkpointing
    )
    learn_preferences(
        stage,
        model,
        run.compared("train"),
        cfg,
        directory,
        run.bar(f"learning from preferences ({cfg.algorithm.upper()})", directory),
        reference=run.manifest.stage_directory("reference"),
        mismatched=run.mismatched() if run.unpaired else (),
        batch_tokens=recipe.batch_tokens,
        tokenizer_from=run.initial,
    )


def _evaluate_stage(run: _Run, stage: Stage) -> None:
    """Held-out pairs, and what the policy says now to held-out prompts, with how far that is from the reference."""
    heldout, objective = run.compared("heldout"), run.objective()
    prompts = [c.prompt for c in heldout[:NUM_PROMPTS]]
    policy = run.load(run.policy)
    logprobs = answer_logprobs(run.frozen(policy), [c.rows for c in heldout])
    after = _answers(run, policy, prompts)
    said: list[Rows] = [(p, (c.token_ids,)) for p, c in zip(prompts, after, strict=True)]
    own = answer_logprobs(run.frozen(policy), said)
    del policy
    initial = run.load(run.initial)
    before = _answers(run, initial, prompts)
    theirs = answer_logprobs(run.frozen(initial), said)
    reference = run.reference("heldout") if objective.needs_reference else [[0.0] * len(c.answers) for c in heldout]
    rewards = [
        objective.reward(
            torch.tensor(now), torch.tensor([float(len(a)) for a in c.answers]), torch.tensor(ref)
        ).tolist()
        for c, now, ref in zip(heldout, logprobs, reference, strict=True)
    ]
    lengths = [[float(len(a)) for a in c.answers] for c in heldout]
    evaluation = {
        **_with_interval("heldout_accuracy", _accuracy(heldout, rewards)),
        **_with_interval("longer_is_better", _accuracy(heldout, lengths)),
        **_with_interval("kl_from_reference", _mean_kl(own, theirs, run.seed("bootstrap"))),
        "tokens_before": fmean(len(c.token_ids) for c in before),
        "tokens_after": fmean(len(c.token_ids) for c in after),
        "cut_off_before": fmean(c.finish_reason == "length" for c in before),
        "cut_off_after": fmean(c.finish_reason == "length" for c in after),
    }
    write_json(stage.directory / "evaluation.json", evaluation)
    write_lines(
        stage.directory / "samples.jsonl",
        (
            {
                "prompt": c.question,
                "text": now.text,
                "before": then.text,
                "tokens": len(now.token_ids),
                "finish_reason": now.finish_reason,
            }
            for c, now, then in zip(heldout[:NUM_SAMPLES], after[:NUM_SAMPLES], before[:NUM_SAMPLES], strict=True)
        ),
    )
    stage.add_tokens(generated=sum(len(c.token_ids) for c in (*before, *after)))
    stage.summary = evaluation


def _answers(run: _Run, model: PolicyModel, prompts: Sequence[tuple[int, ...]]) -> list[Completion]:
    """At temperature 1, each with a seed of its own."""
    engine = LocalEngine(model, stop_ids=run.renderer.stop_ids, decode=run.renderer.decode)
    requests = [
        GenerationRequest(
            prompt,
            SamplingParams(max_tokens=min(SAMPLE_TOKENS, model.context - len(prompt))),
            request_seed(run.seed("samples"), str(i), 0),
        )
        for i, prompt in enumerate(prompts)
    ]
    return engine.sample(requests)


def _accuracy(compared: Sequence[Compared], rewards: Sequence[Sequence[float]]) -> Estimate | None:
    """Weighted share of pairs whose better answer has the higher reward; each prompt counts as one observation."""
    right = total = 0.0
    for c, reward in zip(compared, rewards, strict=True):
        for v in c.choices:
            right += v.weight * (0.5 if reward[v.better] == reward[v.worse] else reward[v.better] > reward[v.worse])
            total += v.weight
    num = sum(bool(c.choices) for c in compared)
    return Estimate(right / total, *wilson_interval(right / total * num, num), num) if total else None


def _mean_kl(own: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int) -> Estimate | None:
    """Of log-ratios of answers that the policy sampled, nats an answer (k1)."""
    sums = np.array([[a - b, 1.0] for (a,), (b,) in zip(own, theirs, strict=True)])
    return resampled(sums, lambda totals: totals[:, 0] / totals[:, 1], seed=seed)


def _with_interval(key: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
