"""Method "preference": a policy straight from preferences, held to a reference that is read once."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from postgrad.config.preference import PreferenceRecipe
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError
from postgrad.feedback.intervals import Estimate, resampled, wilson_interval
from postgrad.feedback.pairs import Pair
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
from postgrad.rounds.context import OpenBar, last_user_text, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.learn import learn_preferences, read_reference, reference_logprobs
from postgrad.rounds.manifest import Manifest, Stage, list_rounds
from postgrad.rounds.preference_data import (
    LEFT_OUT,
    Prepared,
    Verdict,
    pairs_for,
    prepare,
    read_compared,
    write_compared,
)
from postgrad.run import RunDirectory, atomic_write, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy
from postgrad.types import Completion, GenerationRequest, SamplingParams

NUM_PROMPTS, NUM_SAMPLES, SAMPLE_TOKENS = 32, 8, 64
"""Held-out prompts that are answered before and after, answers kept for the report, and tokens of an answer."""


@dataclass(frozen=True)
class _Run:
    recipe: PreferenceRecipe
    manifest: Manifest
    initial: Path
    source: Path | None
    workspace: Path
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


def longest_group(recipe: PreferenceRecipe, *, initial: Path, workspace: Path, source: Path | None) -> int:
    """Tokens of the longest prompt with all its answers: what a micro-batch holds at least.

    Raises:
        PostgradError: the pairs cannot be read, or too few can be used.
    """
    pairs, verdicts = pairs_for(recipe, workspace=workspace, source=source)
    found = _prepared(recipe, pairs, verdicts, Renderer(load_tokenizer(initial)), initial)
    return max(len(c.prompt) + sum(map(len, c.answers)) for c in (*found.train, *found.heldout))


def run_preference(
    recipe: PreferenceRecipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path | None,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: holds the labels; one process at a time.
        initial: model directory of the initial policy, which is also the reference.
        source: file of the pairs; None for the workspace's labels.
        bar: opens a progress bar under a title, or, given the directory of a run, a view of its metrics.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint}
    if source is not None:
        inputs["source"] = sha256_file(source)
    with open_round(recipe, workspace=workspace, model=model) as manifest:
        run = _Run(recipe, manifest, initial, source, workspace, renderer, bar)
        work = [
            Work("pairs", (), lambda s: _pairs_stage(run, s)),
            Work("reference", ("pairs",), lambda s: _reference_stage(run, s)),
            Work("preference", ("pairs", "reference"), lambda s: _preference_stage(run, s)),
            Work("evaluate", ("pairs", "reference", "preference"), lambda s: _evaluate_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _prepared(
    recipe: PreferenceRecipe, pairs: Sequence[Pair], verdicts: Sequence[Verdict], renderer: Renderer, initial: Path
) -> Prepared:
    unpaired = recipe.preference.algorithm == "kto"
    return prepare(pairs, verdicts, renderer=renderer, context=context_length(initial), unpaired=unpaired)


def _pairs_stage(run: _Run, stage: Stage) -> None:
    """What is learned from, in tokens, and every label that was read, with the reason where it is left out."""
    pairs, verdicts = pairs_for(run.recipe, workspace=run.workspace, source=run.source)
    found = _prepared(run.recipe, pairs, verdicts, run.renderer, run.initial)
    for part, compared in (("train", found.train), ("heldout", found.heldout)):
        atomic_write(stage.directory / f"{part}.jsonl", write_compared(compared))
    rows = [*map(_pair_row, pairs), *map(_verdict_row, verdicts)]
    write_lines(
        stage.directory / "labels.jsonl",
        ({**row, "left_out": reason} for row, reason in zip(rows, found.left_out, strict=True)),
    )
    reasons = Counter(found.left_out)
    stage.summary = {
        "read": len(found.left_out),
        "used": reasons[None],
        **{f"left_out_{reason.replace(' ', '_')}": reasons[reason] for reason in LEFT_OUT},
        "train_prompts": len(found.train),
        "heldout_prompts": len(found.heldout),
        **_lengths(found.train, unpaired=run.unpaired),
    }
    written_by = [side.checkpoint for pair in pairs for side in (pair.better, pair.worse) if side.checkpoint]
    if written_by:
        own = weights_sha256(run.initial)
        stage.summary |= {"written_by_this_policy_frac": sum(sha == own for sha in written_by) / len(written_by)}


def _pair_row(pair: Pair) -> dict[str, Any]:
    return {
        "prompt_id": pair.prompt_id,
        "prompt": last_user_text(pair.prompt),
        "better": pair.better.text,
        "worse": pair.worse.text,
        "tie": pair.tie,
        "rater": pair.rater,
        "rater_kind": pair.rater_kind,
        "weight": pair.weight,
        "source": pair.source,
        "checkpoints": [pair.better.checkpoint, pair.worse.checkpoint],
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    prompt = last_user_text(verdict.prompt)
    return {"prompt_id": verdict.prompt_id, "prompt": prompt, "answer": verdict.answer, "good": verdict.good}


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
