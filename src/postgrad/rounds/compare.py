"""Method "compare": every method from the same start, on the same prompts and labels, before the same held-out raters.

A stage for what all share, a stage for each method, and one arena.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from postgrad.config.compare import CompareRecipe, MethodConfig
from postgrad.config.sections import PassesConfig
from postgrad.data.mixture import Mixture
from postgrad.db.engine import sqlite_url
from postgrad.errors import DataError
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.graders.certificate import certified_grader
from postgrad.methods.preference import mismatched_rows
from postgrad.models.load import context_length
from postgrad.rollout import grade_groups, request_seed
from postgrad.rounds.contest import divergences, judge
from postgrad.rounds.context import Context, OpenBar, read_splits, sample_all, wanted
from postgrad.rounds.distill import both_prompts, check_room, learn_on_policy
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.learn import learn_preferences, learn_rows, read_reference
from postgrad.rounds.manifest import Manifest, Stage, plan_stages
from postgrad.rounds.preference_data import prepare
from postgrad.rounds.round_pairs import count_pairs, round_pairs
from postgrad.rounds.stages import (
    labelled_examples,
    labels_stage,
    prompts_stage,
    reward_stage,
    rl_stage,
    samples_stage,
    sft_stage,
)
from postgrad.rounds.teach import collect_edits, lessons_of_edits, lessons_of_the_best, read_lessons, write_lessons
from postgrad.run import RunDirectory, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FrozenPolicy
from postgrad.types import Completion, Example, Group, SamplingParams, Trajectory, Turn


@dataclass(frozen=True)
class _Run:
    recipe: CompareRecipe
    ctx: Context
    """Of the round whose first stages all methods share."""
    workspace: Path

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    def answered(self) -> list[tuple[Example, Sample]]:
        """The answers that were compared, each with its prompt."""
        examples = {e.id: e for e in labelled_examples(self.ctx)}
        samples = self.ctx.store.samples(round_id=self.ctx.round_id, stage="sft")
        return [(examples[sample.prompt_id], sample) for sample in samples]


def run_compare(
    recipe: CompareRecipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
    database: str | None = None,
) -> Manifest:
    """Run the recipe, go on with its unfinished run, or take its finished one; the arguments are `run_round`'s.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"source": sha256_file(source), "model": model["sha256"], "text": renderer.fingerprint}
    with (
        open_round(recipe, workspace=workspace, model=model, once=True) as manifest,
        LabelStore(database or sqlite_url(workspace / "postgrad.db")) as store,
    ):
        run = _Run(recipe, Context(recipe.as_round(), manifest, initial, source, store, renderer, bar), workspace)
        run_stages(manifest, _work(run), inputs=inputs, announce=announce)
    return manifest


def _work(run: _Run) -> list[Work]:
    ctx, methods = run.ctx, run.recipe.methods
    work = [
        Work("prompts", (), lambda s: _prompts_stage(run, s)),
        Work("sft", ("prompts",), lambda s: sft_stage(ctx, s)),
        Work("samples", ("sft",), lambda s: samples_stage(ctx, s)),
        Work("labels", ("samples",), lambda s: labels_stage(ctx, s)),
        Work("edits", ("samples",), lambda s: _edits_stage(run, s)),
        Work("reward", ("sft", "labels"), lambda s: reward_stage(ctx, s, conversations=False)),
        *(_method_work(run, method) for method in methods),
        Work("arena", ("sft", *(method.name for method in methods)), lambda s: _arena_stage(run, s)),
    ]
    planned = plan_stages(run.recipe.model_dump())
    return [each for each in work if each.name in planned]


def _method_work(run: _Run, method: MethodConfig) -> Work:
    name = method.name
    if method.edits is not None:
        edits = method.edits
        return Work(name, ("sft", "edits"), lambda s: _edited_stage(run, s, edits))
    if method.best is not None:
        best = method.best
        return Work(name, ("sft", "samples", "reward"), lambda s: _best_stage(run, s, best))
    if method.preference is not None:
        return Work(name, ("sft", "labels"), lambda s: _preference_stage(run, s, method))
    if method.rl is not None:
        ctx = replace(run.ctx, recipe=run.ctx.recipe.model_copy(update={"rl": method.rl}))
        return Work(name, ("sft", "reward"), lambda s: rl_stage(ctx, s, labelled_examples(ctx)))
    assert method.teacher is not None, "the last kind there is"
    earlier = (method.teacher.name,) if method.teacher.name else ()
    return Work(name, ("sft", *earlier), lambda s: _distill_stage(run, s, method))


def _prompts_stage(run: _Run, stage: Stage) -> None:
    """What a round checks of its prompts, and that every teacher can read them."""
    ctx = run.ctx
    prompts_stage(ctx, stage)
    limit = context_length(ctx.initial) - run.recipe.budget.max_tokens
    for method in run.recipe.methods:
        if method.teacher is not None:
            check_room(both_prompts(labelled_examples(ctx), method.teacher, ctx.renderer, ctx.renderer), limit)


def _edits_stage(run: _Run, stage: Stage) -> None:
    """The answers that are compared are corrected, too."""
    ctx, recipe, samples, weights = run.ctx, run.recipe, run.answered(), wanted(run.recipe.labels)
    edits = collect_edits(ctx.store, samples, recipe.edits, weights, seed=recipe.seed, workspace=run.workspace)
    lessons, summary = lessons_of_edits(samples, edits, weights, ctx.renderer, context=context_length(ctx.initial))
    stage.summary = summary
    write_lessons(lessons, stage.directory / "lessons.jsonl")
    if not lessons:
        raise DataError("none of the answers has an edit to learn from; edit them, or drop the methods with 'edits'")


def _edited_stage(run: _Run, stage: Stage, cfg: PassesConfig) -> None:
    _learn_lessons(run, stage, run.ctx.manifest.stage_directory("edits") / "lessons.jsonl", cfg)


def _best_stage(run: _Run, stage: Stage, cfg: PassesConfig) -> None:
    """The reward model chooses among the answers that were compared (arXiv:2307.09288, section 3.2.3)."""
    ctx = run.ctx
    directory = ctx.manifest.stage_directory("reward") / "model"
    grader = certified_grader(directory, run.recipe.reward.bar, placement=ctx.placement)
    groups = asyncio.run(grade_groups(_groups(run), [grader]))
    lessons, summary = lessons_of_the_best(groups, min_reward=None)
    path = stage.directory / "lessons.jsonl"
    write_lessons(lessons, path)
    if not lessons:
        raise DataError("none of the answers comes to an end, so none is an example; raise 'budget.max_tokens'")
    stage.add_tokens(scored=sum(len(sample.token_ids) for _, sample in run.answered()))
    _learn_lessons(run, stage, path, cfg)
    stage.summary |= summary


def _groups(run: _Run) -> list[Group]:
    """The compared answers, as they were sampled; nobody kept their logprobs, and a grader needs none."""
    groups: dict[str, Group] = {}
    for example, sample in run.answered():
        group = groups.setdefault(example.id, Group(example, ()))
        completion = Completion(
            sample.token_ids,
            (0.0,) * len(sample.token_ids),
            sample.finish_reason,
            sample.policy_version,
            sample.text,
        )
        turn = Turn(run.ctx.renderer.render_prompt(example.prompt), completion)
        status = "completed" if sample.finish_reason == "stop" else "truncated"
        answers = (*group.trajectories, Trajectory(sample.id, (turn,), status))  # type: ignore[arg-type]
        groups[example.id] = replace(group, trajectories=answers)
    return list(groups.values())


def _learn_lessons(run: _Run, stage: Stage, lessons: Path, cfg: PassesConfig) -> None:
    ctx, rows = run.ctx, read_lessons(lessons)
    directory = RunDirectory(stage.directory, run.seed("imitate"))
    torch.manual_seed(directory.seed(0, "init"))
    learn_rows(
        stage, ctx.load_trainable("sft"), rows, cfg, directory,
        ctx.bar(f"learning {len(rows)} answers", directory),
        batch_tokens=run.recipe.batch_tokens, tokenizer_from=ctx.initial,
    )  # fmt: skip
    stage.summary |= {"lessons": len(rows)}


def _preference_stage(run: _Run, stage: Stage, method: MethodConfig) -> None:
    """All labelled prompts, none held out: the arena says what was learned."""
    ctx, cfg, tokens = run.ctx, method.preference, run.recipe.batch_tokens
    assert cfg is not None
    unpaired = cfg.algorithm == "kto"
    context = context_length(ctx.initial)
    data = round_pairs(ctx, conversations=False)
    found = prepare(data.labels, renderer=ctx.renderer, max_tokens=context, unpaired=unpaired)
    counts = count_pairs(ctx, data, found.too_long)
    compared, fewest = found.compared, 2 if unpaired else 1
    if len(compared) < fewest:
        raise DataError(
            f"{len(compared)} prompts have labels that method {method.name!r} can learn from, and it takes {fewest}; "
            "label more prompts"
        )
    mismatched = mismatched_rows(compared, context=context, seed=run.seed("mismatched")) if unpaired else []
    policy = FrozenPolicy(ctx.load("sft"), batch_tokens=tokens)
    progress = ctx.bar("reading the answers with the reference")
    scored = {"train": [c.rows for c in compared], "mismatched": mismatched}
    for name, rows in scored.items():
        for done in read_reference(policy, rows, stage.directory / "reference" / name):
            progress(done, len(rows))
    del policy
    directory = RunDirectory(stage.directory, run.seed("preference"))
    torch.manual_seed(directory.seed(0, "init"))
    learn_preferences(
        stage, ctx.load_trainable("sft"), compared, cfg, directory,
        ctx.bar(f"learning from preferences ({cfg.algorithm.upper()})", directory),
        reference=stage.directory / "reference", mismatched=mismatched, batch_tokens=tokens, tokenizer_from=ctx.initial,
    )  # fmt: skip
    stage.add_tokens(scored=sum(len(p) + sum(map(len, a)) for rows in scored.values() for p, a in rows))
    stage.summary |= counts | {"prompts": len(compared)}


def _distill_stage(run: _Run, stage: Stage, method: MethodConfig) -> None:
    ctx, cfg, teacher = run.ctx, method.distill, method.teacher
    assert cfg is not None
    assert teacher is not None
    examples = labelled_examples(ctx)
    directory = RunDirectory(stage.directory, run.seed("distill"))
    torch.manual_seed(directory.seed(0, "init"))
    shared = run.recipe.model.lora_rank > 0 and not teacher.name
    learn_on_policy(
        stage, ctx.load_trainable("sft"), None if shared else ctx.load(teacher.name or "sft"),
        both_prompts(examples, teacher, ctx.renderer, ctx.renderer),
        Mixture([(examples, 1.0)], seed=run.seed("distill prompts")), cfg, directory,
        ctx.bar("the student answers, the teacher scores", directory),
        renderer=ctx.renderer, batch_tokens=run.recipe.batch_tokens, tokenizer_from=ctx.initial,
    )  # fmt: skip


def _arena_stage(run: _Run, stage: Stage) -> None:
    """Every policy, and the one that all began from, on the same held-out prompts; one model at a time is in memory."""
    ctx, budget = run.ctx, run.recipe.budget
    examples = read_splits(ctx.source, run.recipe.data.system)["heldout"][: run.recipe.arena.num_prompts]
    players = ("initial", "sft", *(method.name for method in run.recipe.methods))
    params = SamplingParams(max_tokens=budget.max_tokens, temperature=budget.temperature)
    answers: dict[str, list[Group]] = {
        player: asyncio.run(
            sample_all(
                ctx.renderer,
                ctx.engine(ctx.load(player)),
                examples,
                params,
                group_size=1,
                seed=run.seed("arena"),
                progress=ctx.bar(f"arena: {player} answers"),
            )
        )
        for player in players
    }
    measured: dict[str, list[dict[str, float | None]]] = {player: [{} for _ in examples] for player in players}
    for key, reference in (("kl", "initial"), ("kl_sft", "sft")):
        policy = FrozenPolicy(ctx.load(reference), batch_tokens=run.recipe.batch_tokens, temperature=budget.temperature)
        for player in players:
            for row, nats in zip(measured[player], divergences(policy, answers[player]), strict=True):
                row[key] = nats
    given = [g.trajectories[0].turns[-1].completion for groups in answers.values() for g in groups]
    stage.add_tokens(generated=sum(len(completion.token_ids) for completion in given))
    stage.summary = judge(stage, answers, measured, run.recipe.arena, run.recipe.labels, seed=run.recipe.seed)
