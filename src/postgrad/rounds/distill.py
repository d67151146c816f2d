"""Method "distill": a teacher's distribution into a student, by the teacher's answers or on the student's own.

The teacher may be the student itself with a system message or documents that the student does not see: context
distillation (Askell et al. 2021, arXiv:2112.00861, section 2.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from postgrad.config.distill import DistillConfig, DistillRecipe, TeacherConfig
from postgrad.config.round import RatersConfig
from postgrad.data.mixture import Mixture
from postgrad.data.tasks import Task
from postgrad.engine.local import LocalEngine
from postgrad.errors import DataError
from postgrad.methods.distill import Distillation
from postgrad.methods.rl import train_rl
from postgrad.methods.sft import Progress, Rendered, imitate
from postgrad.models.load import context_length, load_policy, read_config, save_policy
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel
from postgrad.rollout import request_seed
from postgrad.rounds.contest import divergences, heldout, judge
from postgrad.rounds.context import OpenBar, read_groups, sample_all
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.rounds.questions import check_judgeable, read_questions, write_questions
from postgrad.run import RunDirectory, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.trainer.taught import Ids, TaughtTrainer, Teacher
from postgrad.types import Example, Group, Message, SamplingParams


@dataclass(frozen=True)
class _Run:
    recipe: DistillRecipe
    manifest: Manifest
    initial: Path
    teacher: Path
    source: Path | None
    renderer: Renderer
    teacher_renderer: Renderer
    bar: OpenBar

    @property
    def placement(self) -> Placement:
        return place(self.recipe.model.device, self.recipe.model.dtype)

    @property
    def params(self) -> SamplingParams:
        cfg = self.recipe.distill
        return SamplingParams(max_tokens=cfg.max_tokens, temperature=cfg.temperature)

    @property
    def speaks_the_same(self) -> bool:
        return self.renderer.answers_fingerprint == self.teacher_renderer.answers_fingerprint

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    def questions(self) -> list[Task]:
        return read_questions(self.recipe.data, self.source, seed=self.recipe.seed)

    def mixture(self, tasks: Sequence[Task]) -> Mixture:
        weights = [task.weight for task in self.recipe.data.tasks] or [1.0]
        return Mixture(list(zip([task.train for task in tasks], weights, strict=True)), seed=self.seed("prompts"))

    def taught(self, example: Example) -> Example:
        return as_taught(example, self.recipe.teacher)

    def prompts(self, tasks: Sequence[Task]) -> dict[Ids, Ids]:
        examples = [e for task in tasks for e in (*task.train, *task.heldout)]
        return both_prompts(examples, self.recipe.teacher, self.renderer, self.teacher_renderer)

    def load_teacher(self) -> PolicyModel:
        return load_policy(self.teacher, placement=self.placement)

    def sample(self, model: PolicyModel, renderer: Renderer, examples: Sequence[Example], *, size: int, seed: int,
               bar: str) -> list[Group]:  # fmt: skip
        engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
        return asyncio.run(
            sample_all(renderer, engine, examples, self.params, group_size=size, seed=seed, progress=self.bar(bar))
        )


def as_taught(example: Example, cfg: TeacherConfig) -> Example:
    """As the teacher reads it."""
    document = example.metadata.get(cfg.documents, "") if cfg.documents else ""
    if not isinstance(document, str):
        raise DataError(f"row {example.id!r}: {cfg.documents!r}, which the teacher is to read, is no text")
    told = "\n\n".join(part for part in (cfg.system, document) if part)
    if not told:
        return example
    rest = tuple(m for m in example.prompt.messages if m.role != "system")
    return replace(example, prompt=replace(example.prompt, messages=(Message("system", told), *rest)))


def both_prompts(
    examples: Sequence[Example], cfg: TeacherConfig, renderer: Renderer, teacher_renderer: Renderer
) -> dict[Ids, Ids]:
    """Each prompt as the student and as the teacher reads it.

    Raises:
        DataError: two prompts look the same to the student and differ to the teacher.
    """
    known: dict[Ids, Ids] = {}
    for example in examples:
        ours = renderer.render_prompt(example.prompt, name=f"row {example.id!r}")
        theirs = teacher_renderer.render_prompt(as_taught(example, cfg).prompt, name=f"row {example.id!r}")
        if known.setdefault(ours, theirs) != theirs:
            raise DataError(
                f"row {example.id!r}: another row asks the student the same and shows the teacher something else; "
                "keep one of them"
            )
    return known


def check_room(prompts: Mapping[Ids, Ids], limit: int) -> None:
    """Raise unless the teacher, too, can read every prompt with an answer."""
    longest = max(len(theirs) for theirs in prompts.values())
    if longest > limit:
        raise DataError(
            f"the teacher's longest prompt has {longest} tokens, and its context leaves room for {limit}; shorten "
            "'teacher.system' or the documents, or lower 'max_tokens'"
        )


def run_distill(
    recipe: DistillRecipe,
    *,
    workspace: Path,
    initial: Path,
    teacher: Path,
    source: Path | None,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run; `teacher` is its model directory, the rest as for `run_rl`.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    renderer, teacher_renderer = Renderer(load_tokenizer(initial)), Renderer(load_tokenizer(teacher))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {
        "model": model["sha256"],
        "text": renderer.fingerprint,
        "teacher": sha256_tree(teacher),
        "teacher_text": teacher_renderer.fingerprint,
    }
    if source is not None:
        inputs["source"] = sha256_file(source)
    if recipe.data.tasks:
        inputs["reasoning_gym"] = version("reasoning-gym")
    with open_round(recipe, workspace=workspace, model=model) as manifest:
        run = _Run(recipe, manifest, initial, teacher, source, renderer, teacher_renderer, bar)
        learn = _sequence_stage if recipe.distill.kind == "sequence" else _on_policy_stage
        work = [
            Work("questions", (), lambda s: _questions_stage(run, s)),
            Work("distill", ("questions",), lambda s: learn(run, s)),
            Work("arena", ("distill",), lambda s: _arena_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _check_teacher(run: _Run) -> None:
    """Refuse a teacher that cannot score the student's tokens.

    Raises:
        DataError: another tokenizer, other end tokens, or, where whole distributions are compared, other words.
    """
    if run.recipe.distill.kind == "sequence":
        return
    ours, theirs = run.renderer.tokenizer, run.teacher_renderer.tokenizer
    name = run.recipe.teacher.name or run.recipe.model.name
    instead = 'take a teacher of the student\'s family, or set distill.kind = "sequence", which goes by text'
    if not run.speaks_the_same:
        raise DataError(
            f"teacher {name!r} has another tokenizer than student {run.recipe.model.name!r} ({len(theirs)} tokens, "
            f"answers end with {run.teacher_renderer.end_id}; {len(ours)} and {run.renderer.end_id}), so the student's "
            f"tokens mean something else to it; {instead}"
        )
    if run.recipe.distill.estimate == "full":
        sizes = [_num_words(path) for path in (run.initial, run.teacher)]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"teacher {name!r} has {sizes[1]} rows of vocabulary and the student {sizes[0]}, so their whole "
                'distributions cannot be compared; set distill.estimate = "sampled"'
            )


def _num_words(directory: Path) -> int:
    return int(read_config(directory).get_text_config().vocab_size)


def _questions_stage(run: _Run, stage: Stage) -> None:
    """Whatever a later stage would trip over is found here: the teacher, and what both have to read."""
    _check_teacher(run)
    tasks = run.questions()
    check_judgeable(tasks)
    room = run.recipe.distill.max_tokens
    write_questions(tasks, stage.directory / "questions.jsonl", run.renderer, context_length(run.initial) - room)
    prompts = run.prompts(tasks)
    check_room(prompts, context_length(run.teacher) - room)
    told = [len(theirs) - len(ours) for ours, theirs in prompts.items()]
    stage.summary = {
        "train": sum(len(task.train) for task in tasks),
        "heldout": len(heldout(tasks, run.recipe.arena.num_prompts)),
        "extra_prompt_tokens_of_the_teacher": sum(told) / len(told),
    }


def _trainable(run: _Run, directory: RunDirectory) -> PolicyModel:
    torch.manual_seed(directory.seed(0, "init"))
    cfg = run.recipe.model
    return load_policy(
        run.initial,
        placement=run.placement,
        lora_rank=cfg.lora_rank,
        gradient_checkpointing=cfg.gradient_checkpointing,
    )


def _on_policy_stage(run: _Run, stage: Stage) -> None:
    """The student answers, and is moved towards what the teacher would have said at each of its tokens."""
    directory = RunDirectory(stage.directory, run.seed("distill"))
    model = _trainable(run, directory)
    tasks = run.questions()
    shared = run.recipe.model.lora_rank > 0 and run.teacher == run.initial
    learn_on_policy(
        stage,
        model,
        None if shared else run.load_teacher(),
        run.prompts(tasks),
        run.mixture(tasks),
        run.recipe.distill,
        directory,
        run.bar("the student answers, the teacher scores", directory),
        renderer=run.renderer,
        batch_tokens=run.recipe.batch_tokens,
        tokenizer_from=run.initial,
    )


def learn_on_policy(
    stage: Stage,
    model: PolicyModel,
    teacher_model: PolicyModel | None,
    prompts: Mapping[Ids, Ids],
    dataset: Mixture,
    cfg: DistillConfig,
    directory: RunDirectory,
    progress: Progress,
    *,
    renderer: Renderer,
    batch_tokens: int,
    tokenizer_from: Path,
) -> None:
    """Learn, save the policy, and say how it went.

    Args:
        stage: receives the policy and what there is to say.
        model: the student.
        teacher_model: None where it is the student with its adapter off.
        prompts: of `both_prompts`.
        dataset: what the student is asked.
        cfg: what is learned and how often.
        directory: of the stage's run.
        progress: told after every step.
        renderer: the student's.
        batch_tokens: most tokens of one forward pass.
        tokenizer_from: a model directory with the student's tokenizer.
    """
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "temperature": cfg.temperature}
    alone = teacher_model is None
    teacher = Teacher(teacher_model or model, prompts, adapter_off=alone, **options)
    make = partial(TaughtTrainer, teacher=teacher) if cfg.estimate == "full" else LocalTrainer
    trainer = make(model, dump=stage.directory / "diverged", **options)
    algorithm = Distillation(cfg.estimate, cfg.gamma)
    directory.write_config({"algorithm": "distill"} | asdict(algorithm))
    asyncio.run(
        train_rl(
            cfg.loop(),
            trainer=trainer,
            reference=teacher,
            engine=LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode),
            algorithm=algorithm,
            graders=[],
            dataset=dataset,
            renderer=renderer,
            context=model.context,
            run=directory,
            progress=progress,
        )
    )
    rows = directory.read_metrics()
    stage.add_tokens(generated=round(sum(row["rollout/sampled_tokens"] for row in rows)))
    kl = [row["teacher/kl"] for row in rows if "teacher/kl" in row]
    stage.summary = {"steps": len(rows), "teacher_kl_first": kl[0], "teacher_kl_last": kl[-1]}
    _save(stage, model, trainer, directory, tokenizer_from)


def _sequence_stage(run: _Run, stage: Stage) -> None:
    """The teacher answers, and the student imitates the text of what is whole (Kim and Rush 2016, arXiv:1606.07947)."""
    recipe, cfg = run.recipe, run.recipe.distill
    directory = RunDirectory(stage.directory, run.seed("distill"))
    mixture = run.mixture(run.questions())
    asked = [e for step in range(cfg.steps) for e in mixture.take(step, cfg.prompts_per_step)]
    if not directory.saved_steps():
        directory.save_groups(0, _teacher_answers(run, asked))
    groups = read_groups(directory, 0, asked)
    batches: list[list[Rendered]] = []
    answers = tokens = 0
    for start in range(0, len(groups), cfg.prompts_per_step):
        rows: list[Rendered] = []
        part = slice(start, start + cfg.prompts_per_step)
        for example, group in zip(asked[part], groups[part], strict=True):
            for completion in (t.turns[-1].completion for t in group.trajectories):
                answers += 1
                tokens += len(completion.token_ids)
                if completion.finish_reason == "stop":
                    told = replace(example, completion=(Message("assistant", completion.text),))
                    rows.append(run.renderer.render_example(told))
        if rows:
            batches.append(rows)
    if not batches:
        raise DataError(f"none of the teacher's {answers} answers came to an end; raise 'distill.max_tokens'")
    model = _trainable(run, directory)
    trainer = LocalTrainer(model, batch_tokens=recipe.batch_tokens, dump=stage.directory / "diverged")
    imitate(trainer, batches, cfg, directory, run.bar("imitating the teacher's answers", directory))
    losses = [row["loss/nll"] for row in directory.read_metrics()]
    stage.add_tokens(generated=tokens)
    learned = sum(map(len, batches))
    stage.summary = {
        "answers": answers,
        "cut_off": 1 - learned / answers,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    _save(stage, model, trainer, directory, run.initial)


def _teacher_answers(run: _Run, examples: Sequence[Example]) -> list[Group]:
    told = [run.taught(example) for example in examples]
    return run.sample(
        run.load_teacher(), run.teacher_renderer, told, size=run.recipe.distill.group_size,
        seed=run.seed("teacher"), bar="the teacher answers",
    )  # fmt: skip


def _save(
    stage: Stage, model: PolicyModel, trainer: LocalTrainer, directory: RunDirectory, tokenizer_from: Path
) -> None:
    save_policy(model, stage.directory / "policy", tokenizer_from=tokenizer_from)
    forget_checkpoints(directory)
    stage.add_tokens(trained=trainer.trained_tokens)
    stage.policy_version = trainer.version


def _arena_stage(run: _Run, stage: Stage) -> None:
    """Student before and after, and the teacher with all that it may read, on the same held-out prompts.

    One model at a time is in memory.
    """
    tasks = run.questions()
    examples = heldout(tasks, run.recipe.arena.num_prompts)
    told = [run.taught(example) for example in examples]
    options: dict[str, Any] = {
        "batch_tokens": run.recipe.batch_tokens,
        "temperature": run.recipe.distill.temperature,
    }
    answers: dict[str, list[Group]] = {}
    measured: dict[str, list[dict[str, float | None]]] = {}
    for player, path in (
        ("student", run.manifest.stage_directory("distill") / "policy"),
        ("initial", run.initial),
        ("teacher", run.teacher),
    ):
        model = load_policy(path, placement=run.placement)
        reads, asked = (run.teacher_renderer, told) if player == "teacher" else (run.renderer, examples)
        title = f"arena: the {player} {'policy ' if player == 'initial' else ''}answers"
        answers[player] = run.sample(model, reads, asked, size=1, seed=run.seed("arena"), bar=title)
        measured[player] = [{} for _ in examples]
        if player == "initial":
            _measure(measured["student"], "kl", divergences(FrozenPolicy(model, **options), answers["student"]))
        if player == "teacher" and run.speaks_the_same:
            scorer = Teacher(model, run.prompts(tasks), **options)
            for scored in ("initial", "student"):
                _measure(measured[scored], "teacher_kl", divergences(scorer, answers[scored]))
    stage.add_tokens(
        generated=sum(len(g.trajectories[0].turns[-1].completion.token_ids) for gs in answers.values() for g in gs)
    )
    order = ("initial", "teacher", "student")
    stage.summary = judge(
        stage,
        {player: answers[player] for player in order},
        measured,
        run.recipe.arena,
        RatersConfig(),
        seed=run.recipe.seed,
    )


def _measure(rows: Sequence[dict[str, float | None]], name: str, values: Sequence[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value
