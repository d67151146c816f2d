"""Method "iterate": sample, let a teacher show how it is done better, learn that, and again.

The teacher is either somebody who edits the answers, or the choice of the best out of several (expert iteration,
Anthony et al. 2017, arXiv:1705.08439; rejection sampling as in Llama 2, arXiv:2307.09288, section 3.2.3). A policy
learns from the lessons of its own round alone, and begins where the last one ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from postgrad.config.iterate import IterateRecipe
from postgrad.config.round import RatersConfig
from postgrad.data.mixture import Mixture
from postgrad.data.tasks import Task
from postgrad.db.engine import sqlite_url
from postgrad.engine.local import LocalEngine
from postgrad.errors import DataError
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.utility import GOLD
from postgrad.graders.certificate import certified_grader, weights_sha256
from postgrad.graders.function import FunctionGrader
from postgrad.graders.verify import UserFunction, find_function
from postgrad.models.load import context_length, load_policy
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Grader
from postgrad.rollout import grade_groups, request_seed
from postgrad.rounds.contest import divergences, heldout, judge, rightness, write_curve
from postgrad.rounds.context import OpenBar, read_groups, sample_all
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.learn import learn_rows
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.rounds.questions import check_judgeable, read_questions, write_questions
from postgrad.rounds.teach import (
    Lessons,
    collect_edits,
    lessons_of_edits,
    lessons_of_the_best,
    read_lessons,
    write_lessons,
)
from postgrad.run import RunDirectory, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy
from postgrad.types import Example, Group, SamplingParams


@dataclass(frozen=True)
class IterateRun:
    recipe: IterateRecipe
    manifest: Manifest
    initial: Path
    source: Path | None
    reward_model: Path | None
    graders: tuple[Grader, ...]
    store: LabelStore
    workspace: Path
    renderer: Renderer
    bar: OpenBar

    @property
    def placement(self) -> Placement:
        return place(self.recipe.model.device, self.recipe.model.dtype)

    @property
    def params(self) -> SamplingParams:
        cfg = self.recipe.iterate
        return SamplingParams(max_tokens=cfg.max_tokens, temperature=cfg.temperature)

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    def questions(self) -> list[Task]:
        return read_questions(self.recipe.data, self.source, seed=self.recipe.seed)

    def examples(self, k: int) -> list[Example]:
        """The prompts of a round, counted from 1."""
        weights = [task.weight for task in self.recipe.data.tasks] or [1.0]
        sets = [task.train for task in self.questions()]
        mixture = Mixture(list(zip(sets, weights, strict=True)), seed=self.seed("prompts"))
        return mixture.take(k - 1, self.recipe.iterate.prompts_per_round)

    def policy(self, k: int) -> Path:
        """After so many rounds."""
        return self.initial if k == 0 else self.manifest.stage_directory(f"sft-{k}") / "policy"

    def sample(self, model: PolicyModel, examples: Sequence[Example], *, size: int, seed: int, bar: str) -> list[Group]:
        engine = LocalEngine(model, stop_ids=self.renderer.stop_ids, decode=self.renderer.decode)
        sampled = sample_all(
            self.renderer, engine, examples, self.params, group_size=size, seed=seed, progress=self.bar(bar)
        )
        return asyncio.run(sampled)


def run_iterate(
    recipe: IterateRecipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path | None,
    folder: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
    database: str | None = None,
) -> Manifest:
    """Run the recipe, or go on with its unfinished run; the arguments are `run_rl`'s and `run_round`'s.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    functions = {cfg.function: find_function(cfg.function, folder) for cfg in recipe.graders}
    graders = tuple(FunctionGrader(g.function, functions[g.function], weight=g.weight) for g in recipe.graders)
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint}
    if source is not None:
        inputs["source"] = sha256_file(source)
    if recipe.data.tasks:
        inputs["reasoning_gym"] = version("reasoning-gym")
    for name, function in functions.items():
        if isinstance(function, UserFunction) and function.path is not None:
            inputs[f"grader {name}"] = sha256_file(function.path)
    reward_model = None
    if recipe.best is not None and recipe.best.reward_model:
        here = Path(recipe.best.reward_model)
        reward_model = here if here.is_dir() else folder / here
        _check_reward_model(reward_model, renderer)
        inputs["reward_model"] = sha256_tree(reward_model)
    with (
        open_round(recipe, workspace=workspace, model=model) as manifest,
        LabelStore(database or sqlite_url(workspace / "postgrad.db")) as store,
    ):
        run = IterateRun(recipe, manifest, initial, source, reward_model, graders, store, workspace, renderer, bar)
        run_stages(manifest, _work(run), inputs=inputs, announce=announce)
    return manifest


def _work(run: IterateRun) -> list[Work]:
    work = [Work("questions", (), lambda s: _questions_stage(run, s))]
    for k in range(1, run.recipe.iterate.rounds + 1):
        before = ("questions",) if k == 1 else (f"sft-{k - 1}",)
        work += [
            Work(f"sample-{k}", before, lambda s, k=k: _sample_stage(run, s, k)),  # type: ignore[misc]
            Work(f"teach-{k}", (f"sample-{k}",), lambda s, k=k: _teach_stage(run, s, k)),  # type: ignore[misc]
            Work(f"sft-{k}", (*before, f"teach-{k}"), lambda s, k=k: _sft_stage(run, s, k)),  # type: ignore[misc]
        ]
    return [*work, Work("arena", (work[-1].name,), lambda s: _arena_stage(run, s))]


def _check_reward_model(directory: Path, renderer: Renderer) -> None:
    theirs = Renderer(load_tokenizer(directory)).fingerprint
    if theirs != renderer.fingerprint:
        raise DataError(
            f"reward model {str(directory)!r} reads text as {theirs[:12]} and the policy as "
            f"{renderer.fingerprint[:12]}: their templates or tokenizers differ; train one on this policy"
        )


def _questions_stage(run: IterateRun, stage: Stage) -> None:
    tasks = run.questions()
    check_judgeable(tasks)
    limit = context_length(run.initial) - run.recipe.iterate.max_tokens
    write_questions(tasks, stage.directory / "questions.jsonl", run.renderer, limit)
    stage.summary = {
        "train": sum(len(task.train) for task in tasks),
        "heldout": len(heldout(tasks, run.recipe.arena.num_prompts)),
    }


def _sample_stage(run: IterateRun, stage: Stage, k: int) -> None:
    """Answers of the policy as the last round left it."""
    size = run.recipe.iterate.answers_per_prompt
    model = load_policy(run.policy(k - 1), placement=run.placement)
    groups = run.sample(
        model, run.examples(k), size=size, seed=run.seed(f"sample {k}"), bar=f"round {k}: sampling answers"
    )
    RunDirectory(stage.directory).save_groups(k, groups)
    completions = [t.turns[-1].completion for g in groups for t in g.trajectories]
    tokens = sum(len(c.token_ids) for c in completions)
    stage.add_tokens(generated=tokens)
    stage.summary = {
        "answers": len(completions),
        "tokens": tokens / len(completions),
        "truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
    }


def _teach_stage(run: IterateRun, stage: Stage, k: int) -> None:
    """What is to be learned of the answers; `lessons.jsonl` holds it beside what was answered."""
    sampled = RunDirectory(run.manifest.stage_directory(f"sample-{k}"))
    groups = read_groups(sampled, k, run.examples(k))
    if run.recipe.best is None:
        lessons, summary = _edited(run, groups, k)
    else:
        graded = asyncio.run(grade_groups(groups, run.graders or (_reward_grader(run),)))
        RunDirectory(stage.directory).save_groups(k, graded)
        lessons, summary = lessons_of_the_best(graded, min_reward=run.recipe.best.min_reward)
    stage.summary = summary
    write_lessons(lessons, stage.directory / "lessons.jsonl")
    if not lessons:
        raise DataError(
            f"round {k}: none of {len(groups)} prompts brought an answer to learn from; sample more answers to each, "
            "take easier prompts, or lower 'best.min_reward'"
        )


def _edited(run: IterateRun, groups: Sequence[Group], k: int) -> Lessons:
    """Store the answers, have them edited, and read the edits, the last one of each answer."""
    assert run.recipe.edits is not None
    round_id, stage, checkpoint = run.manifest.record.id, f"sample-{k}", weights_sha256(run.policy(k - 1))
    samples = [
        (
            group.example,
            Sample(
                prompt_id=group.example.id,
                round_id=round_id,
                stage=stage,
                checkpoint=checkpoint,
                policy_version=completion.policy_version,
                params=run.params,
                seed=request_seed(run.seed(f"sample {k}"), group.example.id, int(t.id.rpartition("/")[2])),
                text=completion.text,
                token_ids=completion.token_ids,
                finish_reason=completion.finish_reason,
            ),
        )
        for group in groups
        for t in group.trajectories
        for completion in (t.turns[-1].completion,)
    ]
    run.store.add_round(round_id, recipe=run.recipe.name)
    run.store.add_prompts({example.id: example for example, _ in samples}.values())
    run.store.add_samples(sample for _, sample in samples)
    edits = collect_edits(run.store, samples, run.recipe.edits, GOLD, seed=run.recipe.seed, workspace=run.workspace)
    return lessons_of_edits(samples, edits, GOLD, run.renderer, context=context_length(run.initial))


def _sft_stage(run: IterateRun, stage: Stage, k: int) -> None:
    recipe = run.recipe
    rows = read_lessons(run.manifest.stage_directory(f"teach-{k}") / "lessons.jsonl")
    directory = RunDirectory(stage.directory, run.seed(f"sft {k}"))
    torch.manual_seed(directory.seed(0, "init"))
    model = load_policy(
        run.policy(k - 1),
        placement=run.placement,
        lora_rank=recipe.model.lora_rank,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
    )
    learn_rows(
        stage, model, rows, recipe.sft, directory, run.bar(f"round {k}: learning {len(rows)} answers", directory),
        batch_tokens=recipe.batch_tokens, tokenizer_from=run.initial,
    )  # fmt: skip
    stage.summary |= {"lessons": len(rows)}


def _arena_stage(run: IterateRun, stage: Stage) -> None:
    """The policy of every round, and the initial one, on the same held-out prompts."""
    examples = heldout(run.questions(), run.recipe.arena.num_prompts)
    answers: dict[str, list[Group]] = {}
    for k in range(run.recipe.iterate.rounds + 1):
        player = f"round_{k}" if k else "initial"
        model = load_policy(run.policy(k), placement=run.placement)
        groups = run.sample(model, examples, size=1, seed=run.seed("arena"), bar=f"arena: {player} answers")
        answers[player] = asyncio.run(grade_groups(groups, run.graders))
    reference = FrozenPolicy(
        load_policy(run.initial, placement=run.placement),
        batch_tokens=run.recipe.batch_tokens,
        temperature=run.recipe.iterate.temperature,
    )
    measured = {
        player: [
            {"kl": kl, **right} for kl, right in zip(divergences(reference, groups), rightness(groups), strict=True)
        ]
        for player, groups in answers.items()
    }
    stage.add_tokens(
        generated=sum(len(g.trajectories[0].turns[-1].completion.token_ids) for gs in answers.values() for g in gs)
    )
    found = judge(stage, answers, measured, run.recipe.arena, RatersConfig(), seed=run.recipe.seed)
    write_curve(stage, list(answers), found)
    stage.summary = found


def _reward_grader(run: IterateRun) -> Grader:
    assert run.reward_model is not None
    assert run.recipe.best is not None
    return certified_grader(run.reward_model, run.recipe.best.bar, placement=run.placement)
