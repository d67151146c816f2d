"""The stages of a round that make something: prompts, demonstrations learned, samples, labels, reward model, RL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations

import torch

from postgrad.config.sections import RewardConfig
from postgrad.data.mixture import Mixture
from postgrad.errors import DataError
from postgrad.feedback.agreement import label_summary
from postgrad.feedback.raters import SimulatedRater
from postgrad.feedback.records import Judged, Sample, Submission
from postgrad.graders.certificate import certified_grader, weights_sha256, write_certificate
from postgrad.methods.algorithms import make_algorithm
from postgrad.methods.reward_data import pair_grades
from postgrad.methods.rl import train_rl
from postgrad.models.load import context_length, save_policy, save_reward_model
from postgrad.protocols import Policy
from postgrad.rollout import request_seed
from postgrad.rounds.certify import Exam, examine
from postgrad.rounds.context import (
    Context,
    check_rows,
    completions,
    demonstration,
    last_user_text,
    rater_pool,
    read_splits,
    sample_all,
    wanted,
    worth,
    write_lines,
)
from postgrad.rounds.exam import PolicyExam
from postgrad.rounds.gold import make_gold
from postgrad.rounds.learn import learn_rows
from postgrad.rounds.manifest import Stage
from postgrad.rounds.reward import certificate_summary, fit_reward_model
from postgrad.rounds.round_pairs import Lessons, reward_lessons
from postgrad.run import RunDirectory
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Example, SamplingParams

NUM_CANARIES = 8
GOLD_HEADS = 3
NUM_PROBES = 24
"""Held-out answers that are changed in one thing each for the reward model's certificate."""


def prompts_stage(ctx: Context, stage: Stage) -> None:
    """Check every row before anything is made of it, and put the prompts into the store."""
    splits = read_splits(ctx.source, ctx.recipe.data.system)
    check_rows(ctx, splits, context_length(ctx.initial))
    ctx.store.add_round(ctx.round_id, recipe=ctx.recipe.name)
    ctx.store.add_prompts(example for rows in splits.values() for example in rows)
    write_lines(
        stage.directory / "prompts.jsonl",
        (
            {"id": e.id, "split": name, "prompt": last_user_text(e.prompt), "target": e.target}
            for name, rows in splits.items()
            for e in rows
        ),
    )
    stage.summary = {name: len(rows) for name, rows in splits.items()}


def sft_stage(ctx: Context, stage: Stage) -> None:
    """Demonstrations into the initial policy."""
    cfg = ctx.recipe.sft
    examples = read_splits(ctx.source, ctx.recipe.data.system)["sft"][: cfg.num_examples]
    rows = [ctx.renderer.render_example(demonstration(e)) for e in examples]
    write_lines(
        stage.directory / "examples.jsonl", ({"id": e.id, "prompt": last_user_text(e.prompt)} for e in examples)
    )
    run = RunDirectory(stage.directory, _seed(ctx, "sft"))
    torch.manual_seed(run.seed(0, "init"))
    model = ctx.load_trainable("initial")
    learn_rows(
        stage, model, rows, cfg, run, ctx.bar("learning from demonstrations", run),
        batch_tokens=ctx.recipe.batch_tokens, tokenizer_from=ctx.initial,
    )  # fmt: skip
    stage.summary |= {"examples": len(examples)}


def samples_stage(ctx: Context, stage: Stage) -> None:
    """Answers of the SFT policy for people to compare."""
    labels, rl = ctx.recipe.labels, ctx.recipe.rl
    examples = labelled_examples(ctx)
    params = SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature)
    version = ctx.manifest.find("sft").policy_version or 0  # type: ignore[union-attr]
    engine = ctx.engine(ctx.load("sft"), version=version)
    seed = _seed(ctx, "samples")
    checkpoint = weights_sha256(ctx.policy_directory("sft"))
    groups = asyncio.run(
        sample_all(
            ctx.renderer,
            engine,
            examples,
            params,
            group_size=labels.answers_per_prompt,
            seed=seed,
            progress=ctx.bar("sampling answers to compare"),
        )
    )
    samples = [
        Sample(
            prompt_id=group.example.id,
            round_id=ctx.round_id,
            stage="sft",
            checkpoint=checkpoint,
            policy_version=completion.policy_version,
            params=params,
            seed=request_seed(seed, group.example.id, i),
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
        )
        for group in groups
        for i, completion in enumerate(completions([group]))
    ]
    ctx.store.add_samples(samples)
    write_lines(
        stage.directory / "samples.jsonl",
        ({"id": s.id, "prompt_id": s.prompt_id, "text": s.text, "finish_reason": s.finish_reason} for s in samples),
    )
    stage.add_tokens(generated=sum(len(s.token_ids) for s in samples))
    stage.summary = {"num": len(samples)}


def labels_stage(ctx: Context, stage: Stage) -> None:
    """Comparisons of every two answers to a prompt, by the simulated pool or by the person at the keyboard."""
    cfg = ctx.recipe.labels
    by_prompt: dict[str, list[Sample]] = {}
    for sample in ctx.store.samples(round_id=ctx.round_id, stage="sft"):
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    questions = []
    for answers in by_prompt.values():
        distinct = list({s.text: s for s in answers}.values())
        questions += [(a.id, b.id) for a, b in combinations(distinct, 2)]
    ctx.store.ask(questions, purpose="train", round_id=ctx.round_id)
    if ctx.ask is not None:
        ctx.ask(ctx.store, ctx.round_id)
    else:
        examples = {e.id: e for e in labelled_examples(ctx)}
        by_id = {s.id: s for answers in by_prompt.values() for s in answers}
        utilities = {i: worth(examples[s.prompt_id], s.text, s.finish_reason, wanted(cfg)) for i, s in by_id.items()}
        pool = rater_pool(ctx, cfg.num_raters, "train")
        submissions = []
        for n, comparison in enumerate(ctx.store.comparisons(purpose="train", round_id=ctx.round_id)):
            first, second = (by_id[i] for i in comparison.sources)
            for k in range(cfg.ratings_per_comparison):
                rater = _rater(pool, n, k)
                order = (0, 1) if request_seed(_seed(ctx, "order"), comparison.id, k) % 2 else (1, 0)
                preference = rater.compare(
                    comparison.id,
                    (utilities[first.id], utilities[second.id]),
                    (len(first.token_ids), len(second.token_ids)),
                    order=order,
                )
                submissions.append(Submission(preference, order))
        ctx.store.answer(submissions)
    judged = list(ctx.store.preferences(purpose="train", round_id=ctx.round_id))
    write_lines(stage.directory / "labels.jsonl", (_label_row(j) for j in judged))
    stage.summary = label_summary(j.preference for j in judged)


def reward_stage(ctx: Context, stage: Stage, *, conversations: bool) -> None:
    """A reward model from the labels, with its certificate; refuses to go on with one below the recipe's bar.

    With `conversations`, the choices made in those of this workspace are among the labels.
    """
    _learn_reward(ctx, stage, reward_lessons(ctx, "train", conversations=conversations), ctx.recipe.reward)


def gold_stage(ctx: Context, stage: Stage) -> None:
    """A held-out ensemble, to examine the policy: it learns from prompts whose labels the reward model never saw.

    It has the reward model's own training and bar, and no part of what people said is taken from it.
    """
    changes = {"num_heads": GOLD_HEADS, "residualise_length": False}
    lessons = reward_lessons(ctx, "gold", conversations=True)
    _learn_reward(ctx, stage, lessons, ctx.recipe.reward.model_copy(update=changes))


def _learn_reward(ctx: Context, stage: Stage, lessons: Lessons, cfg: RewardConfig) -> None:
    """Train it, and certify it.

    Raises:
        DataError: it does not pass the recipe's bar.
    """
    training, validation = lessons.training, lessons.validation
    stage.summary = lessons.counts
    run = RunDirectory(stage.directory, _seed(ctx, stage.record.name))
    torch.manual_seed(run.seed(0, "init"))
    model = ctx.load("sft", heads=("reward",), num_rewards=cfg.num_heads)
    trainer = fit_reward_model(model, training, cfg, run, ctx.recipe.batch_tokens, ctx.bar)
    canaries = [answer for group in training for answer in group.answers][:NUM_CANARIES]
    save_reward_model(model, stage.directory / "model", tokenizer_from=ctx.initial, canaries=canaries)
    forget_checkpoints(run)
    exam = Exam(
        ctx.renderer, validation, pair_grades(lessons.held_out), NUM_PROBES, ctx.bar,
        sampled=validation, residualise=cfg.residualise_length,
    )  # fmt: skip
    found = write_certificate(stage.directory / "model", examine(model, exam), cfg.bar)
    stage.add_tokens(
        trained=trainer.trained_tokens, scored=sum(len(a) for g in (*training, *validation) for a in g.answers)
    )
    stage.summary |= certificate_summary(found)
    stage.summary |= {"train_prompts": len(training), "rater_weights": lessons.rater_weights}
    if found["below_bar"]:
        who = "held-out ensemble" if stage.record.name == "gold" else "reward model"
        raise DataError(
            f"the {who} does not pass 'reward.bar': {'; '.join(found['below_bar'])}; collect more labels or train it "
            "longer"
        )


def rl_stage(ctx: Context, stage: Stage, examples: Sequence[Example]) -> None:
    """The policy on these prompts, against the reward model, held to the SFT policy by KL."""
    cfg = ctx.recipe.rl
    held_out = len(examples) - (ctx.recipe.exam.num_prompts if ctx.recipe.exam else 0)
    run = RunDirectory(stage.directory, _seed(ctx, "rl"))
    torch.manual_seed(run.seed(0, "init"))
    heads = ("value",) if cfg.algorithm == "ppo" else ()
    model = ctx.load_trainable("sft", heads=heads)
    tokens = ctx.recipe.batch_tokens
    trainer = LocalTrainer(model, batch_tokens=tokens, temperature=cfg.temperature, dump=stage.directory / "diverged")
    shared = ctx.recipe.model.lora_rank > 0
    reference: Policy = FrozenPolicy(
        model if shared else ctx.load("sft"), batch_tokens=tokens, temperature=cfg.temperature, adapter_off=shared
    )
    algorithm = make_algorithm(cfg)
    run.write_config({"algorithm": cfg.algorithm} | asdict(algorithm))
    directory = ctx.manifest.stage_directory("reward") / "model"
    grader = certified_grader(directory, ctx.recipe.reward.bar, placement=ctx.placement)
    engine = ctx.engine(model)
    exam = None
    if ctx.recipe.exam is not None:
        exam = PolicyExam(
            ctx, ctx.recipe.exam, stage.directory / "exam", examples[held_out:],
            model=model, policy=trainer, reference=reference, engine=engine, proxy=grader, gold=make_gold(ctx),
        )  # fmt: skip
    outcome = asyncio.run(
        train_rl(
            cfg,
            trainer=trainer,
            reference=reference,
            engine=engine,
            algorithm=algorithm,
            graders=[grader],
            dataset=Mixture([(examples[:held_out], 1.0)], seed=run.seed(0)),
            renderer=ctx.renderer,
            context=model.context,
            run=run,
            progress=ctx.bar(f"optimising against it ({cfg.algorithm.upper()})", run),
            before_step=None if exam is None else exam.before_step,
        )
    )
    save_policy(model, stage.directory / "policy", tokenizer_from=ctx.initial)
    stopped, version, examined = outcome.stopped, trainer.version, {}
    if exam is not None:
        fell = asyncio.run(exam.sit(outcome.steps))
        if fell is not None:
            stopped, version = fell, exam.go_back(outcome.steps, stage.directory / "policy")
        examined = exam.finish()
    forget_checkpoints(run)
    if exam is not None:
        exam.tidy()
    rows = run.read_metrics()
    generated = sum(row["rollout/sampled_tokens"] for row in rows)
    stage.add_tokens(trained=trainer.trained_tokens, generated=round(generated))
    stage.policy_version = version
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    kl = [row["policy/kl_ref"] for row in rows if "policy/kl_ref" in row]
    stage.summary = {
        "steps": outcome.steps,
        "reward_first": rewards[0] if rewards else None,
        "reward_last": rewards[-1] if rewards else None,
        "kl_last": kl[-1] if kl else None,
        "stopped": stopped,
        **examined,
    }


def labelled_examples(ctx: Context) -> list[Example]:
    """The prompts whose answers are compared."""
    return read_splits(ctx.source, ctx.recipe.data.system)["rm"][: ctx.recipe.labels.num_prompts]


def _rater(pool: Sequence[SimulatedRater], comparison: int, place: int) -> SimulatedRater:
    """Who answers a comparison in this place: everybody in turn, and in time together with everybody else.

    Of two who only ever answer the same questions, nobody could tell which one is careless.
    """
    others = len(pool) - 1
    step = 1 + (place - 1 + comparison // len(pool)) % others if place else 0
    return pool[(comparison + step) % len(pool)]


def _label_row(judged: Judged) -> dict[str, object]:
    p = judged.preference
    return {
        "comparison": p.comparison_id,
        "prompt_id": judged.prompt_id,
        "rater": p.rater_id,
        "rater_kind": judged.rater_kind,
        "answers": judged.comparison.answers,
        "order": judged.order,
        "tiers": p.tiers,
        "strength": p.strength,
    }


def _seed(ctx: Context, stage: str) -> int:
    return request_seed(ctx.recipe.seed, stage, 0)
