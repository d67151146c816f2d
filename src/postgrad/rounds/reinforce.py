"""Method "rl": a policy against graders that can check an answer, examined on held-out questions as it learns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from postgrad.config.questions import GraderConfig, JudgeConfig, RlRecipe
from postgrad.data.mixture import Mixture
from postgrad.data.tasks import Task
from postgrad.engine.local import LocalEngine
from postgrad.evals.accuracy import accuracy, answer_rows, change, constant_answer
from postgrad.feedback.endpoint_judge import EndpointJudge
from postgrad.feedback.judge_prompt import RUBRIC, read_rubric
from postgrad.feedback.local_judge import LocalJudge
from postgrad.graders.certificate import weights_sha256
from postgrad.graders.function import FunctionGrader, GradeAnswer
from postgrad.graders.judge import JudgeGrader
from postgrad.graders.step_reward import reward_grader
from postgrad.graders.verify import UserFunction, find_function
from postgrad.methods.algorithms import make_algorithm
from postgrad.methods.rl import train_rl
from postgrad.models.load import context_length, load_policy, save_policy
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel
from postgrad.models.pull import resolve
from postgrad.protocols import Grader, RolloutEngine
from postgrad.rollout import grade_groups, request_seed
from postgrad.rounds.context import OpenBar, write_json, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.rounds.questions import read_questions, write_questions
from postgrad.run import RunDirectory, read_json_lines, sha256_file, sha256_tree
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import FrozenPolicy, LocalTrainer
from postgrad.types import Example, GenerationRequest, Group, SamplingParams, Trajectory, Turn

NUM_SAMPLES = 8
GREEDY, SAMPLED = MODES = ("greedy", "sampled")


@dataclass(frozen=True)
class _Run:
    recipe: RlRecipe
    manifest: Manifest
    initial: Path
    source: Path | None
    renderer: Renderer
    bar: OpenBar
    measures: tuple[Grader, ...]
    """All of the recipe's graders, in its order."""

    def seed(self, purpose: str) -> int:
        return request_seed(self.recipe.seed, purpose, 0)

    @property
    def rewarded(self) -> list[Grader]:
        """Those that count: a weightless score would turn an abstention of the others into a zero."""
        return [g for g, cfg in zip(self.measures, self.recipe.graders, strict=True) if cfg.weight != 0]

    def questions(self) -> list[Task]:
        return read_questions(self.recipe.data, self.source, seed=self.recipe.seed)

    def policy(self, **options: Any) -> PolicyModel:
        cfg = self.recipe.model
        return load_policy(self.initial, placement=place(cfg.device, cfg.dtype), **options)


def run_rl(
    recipe: RlRecipe,
    *,
    workspace: Path,
    initial: Path,
    source: Path | None,
    folder: Path,
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: one process at a time.
        initial: model directory of the initial policy.
        source: file of the questions; None where the recipe names tasks.
        folder: where the graders' relative paths begin.
        bar: opens a progress bar under a title, or, given the directory of a run, a view of its metrics.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    functions = {cfg.function: find_function(cfg.function, folder) for cfg in recipe.graders if cfg.function}
    placement = place(recipe.model.device, recipe.model.dtype)
    renderer = Renderer(load_tokenizer(initial))
    measures = tuple(_grader(cfg, functions, folder, renderer, placement) for cfg in recipe.graders)
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint}
    if source is not None:
        inputs["source"] = sha256_file(source)
    if recipe.data.tasks:
        inputs["reasoning_gym"] = version("reasoning-gym")
    for name, function in functions.items():
        if isinstance(function, UserFunction) and function.path is not None:
            inputs[f"grader {name}"] = sha256_file(function.path)
    for cfg in recipe.graders:
        if cfg.judge is not None and cfg.judge.rubric:
            inputs[f"rubric of {cfg.name}"] = sha256_file(folder / cfg.judge.rubric)
        if cfg.reward_model:
            inputs[f"reward model {cfg.reward_model}"] = weights_sha256(folder / cfg.reward_model)
    with contextlib.ExitStack() as stack:
        for grader in measures:
            if isinstance(grader, JudgeGrader):
                stack.callback(grader.close)
        manifest = stack.enter_context(open_round(recipe, workspace=workspace, model=model))
        run = _Run(recipe, manifest, initial, source, renderer, bar, measures)
        work = [
            Work("questions", (), lambda s: _questions_stage(run, s)),
            Work("rl", ("questions",), lambda s: _rl_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _grader(
    cfg: GraderConfig, functions: Mapping[str, GradeAnswer], folder: Path, renderer: Renderer, placement: Placement
) -> Grader:
    if cfg.function:
        return FunctionGrader(cfg.function, functions[cfg.function], weight=cfg.weight)
    if cfg.judge is not None:
        judge = _judge(cfg.judge, folder, placement)
        aclose = judge.aclose if isinstance(judge, EndpointJudge) else None
        return JudgeGrader(judge, name=cfg.name, weight=cfg.weight, aclose=aclose)
    directory = folder / cfg.reward_model
    return reward_grader(directory, cfg.bar, renderer, placement, name=cfg.name, weight=cfg.weight)


def _judge(cfg: JudgeConfig, folder: Path, placement: Placement) -> EndpointJudge | LocalJudge:
    rubric = read_rubric(folder / cfg.rubric) if cfg.rubric else RUBRIC
    if cfg.endpoint:
        return EndpointJudge(cfg.endpoint, model=cfg.model, rubric=rubric)
    path = resolve(cfg.checkpoint)
    renderer = Renderer(load_tokenizer(path))
    policy = load_policy(path, placement=placement).requires_grad_(False)
    engine = LocalEngine(policy, stop_ids=renderer.stop_ids, decode=renderer.decode)
    return LocalJudge(
        engine, renderer, context=policy.context, model=path.name, checkpoint=sha256_tree(path), rubric=rubric
    )


def _questions_stage(run: _Run, stage: Stage) -> None:
    """Which questions are learned from and which are only asked."""
    tasks = run.questions()
    limit = context_length(run.initial) - run.recipe.rl.max_tokens
    write_questions(tasks, stage.directory / "questions.jsonl", run.renderer, limit)
    train = [e.target for task in tasks for e in task.train]
    heldout = [e.target for task in tasks for e in task.heldout]
    constant = constant_answer(heldout, train)
    stage.summary = {
        "train": len(train),
        "heldout": len(heldout),
        "commonest_answer": constant["answer"],
        "commonest_answer_accuracy": constant["accuracy"],
    }


def _rl_stage(run: _Run, stage: Stage) -> None:
    """Examine, learn, examine again; `heldout/` keeps every answer, `curve.json` what they add up to."""
    recipe, cfg = run.recipe, run.recipe.rl
    directory = RunDirectory(stage.directory, run.seed("rl"))
    torch.manual_seed(directory.seed(0, "init"))
    model = run.policy(
        heads=("value",) if cfg.algorithm == "ppo" else (),
        lora_rank=recipe.model.lora_rank,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
    )
    shared = recipe.model.lora_rank > 0
    tokens = recipe.batch_tokens
    trainer = LocalTrainer(model, batch_tokens=tokens, temperature=cfg.temperature, dump=stage.directory / "diverged")
    algorithm = make_algorithm(cfg)
    directory.write_config({"algorithm": cfg.algorithm} | asdict(algorithm))
    engine = LocalEngine(model, stop_ids=run.renderer.stop_ids, decode=run.renderer.decode)
    tasks = run.questions()
    exam = _Exam(run, stage.directory / "heldout", engine, [e for task in tasks for e in task.heldout])
    weights = [task.weight for task in recipe.data.tasks] or [1.0]
    outcome = asyncio.run(
        train_rl(
            cfg,
            trainer=trainer,
            reference=FrozenPolicy(
                model if shared else run.policy(),
                batch_tokens=tokens,
                temperature=cfg.temperature,
                adapter_off=shared,
            ),
            engine=engine,
            algorithm=algorithm,
            graders=run.rewarded,
            dataset=Mixture(list(zip([task.train for task in tasks], weights, strict=True)), seed=directory.seed(0)),
            renderer=run.renderer,
            context=model.context,
            run=directory,
            progress=run.bar(f"learning from the graders ({cfg.algorithm.upper()})", directory),
            before_step=exam.before_step,
        )
    )
    rows = directory.read_metrics()
    steps = outcome.steps
    asyncio.run(exam.sit(steps))
    save_policy(model, stage.directory / "policy", tokenizer_from=run.initial)
    forget_checkpoints(directory)
    write_json(stage.directory / "curve.json", {"points": exam.points()})
    write_lines(stage.directory / "samples.jsonl", exam.samples(steps))
    generated = sum(row["rollout/sampled_tokens"] for row in rows)
    stage.add_tokens(trained=trainer.trained_tokens, generated=round(generated))
    stage.policy_version = trainer.version
    stage.summary = {"steps": steps, "stopped": outcome.stopped, **exam.summary(steps)}


@dataclass(frozen=True)
class _Exam:
    """Every held-out question, answered once greedily and once by sampling; an answer sheet that exists is kept."""

    run: _Run
    directory: Path
    engine: RolloutEngine
    examples: Sequence[Example]

    async def before_step(self, step: int) -> None:
        if step % self.run.recipe.eval.every == 0:
            await self.sit(step)

    async def sit(self, step: int) -> None:
        paths = {mode: self._path(step, mode) for mode in MODES}
        if all(path.exists() for path in paths.values()):
            return  # of this very policy: a resumed run repeats its steps bit for bit
        groups = await grade_groups(await self._answers(), self.run.measures)
        for i, path in enumerate(paths.values()):
            sheet = [replace(group, trajectories=group.trajectories[i : i + 1]) for group in groups]
            write_lines(path, answer_rows(sheet))

    async def _answers(self) -> list[Group]:
        """A group holds one answer of each mode, which share the reading of their prompt."""
        cfg = self.run.recipe.rl
        params = [SamplingParams(cfg.max_tokens, temperature=0.0 if m == GREEDY else cfg.temperature) for m in MODES]
        prompts = [self.run.renderer.render_prompt(example.prompt) for example in self.examples]
        seed = self.run.seed("heldout")
        requests = [
            GenerationRequest(prompt, each, request_seed(seed, example.id, 0))
            for example, prompt in zip(self.examples, prompts, strict=True)
            for each in params
        ]
        completions = iter(await self.engine.generate(requests))
        return [
            Group(
                example,
                tuple(
                    Trajectory(f"{example.id}/{mode}", (Turn(prompt, next(completions)),), "completed")
                    for mode in MODES
                ),
            )
            for example, prompt in zip(self.examples, prompts, strict=True)
        ]

    def points(self) -> list[dict[str, Any]]:
        """Accuracy at every examination, in order."""
        found = []
        for path in sorted(self.directory.glob("step-*.jsonl")):
            _, step, mode = path.stem.split("-")
            found.append({"step": int(step), "mode": mode, **accuracy(read_json_lines(path))})
        return found

    def samples(self, last: int) -> list[dict[str, Any]]:
        """The last sampled answers as the report shows them."""
        return [
            {
                "prompt": row["question"],
                "text": row["answer"],
                "tokens": row["tokens"],
                "finish_reason": row["finish_reason"],
                "target": row["target"],
            }
            for row in read_json_lines(self._path(last, SAMPLED))[:NUM_SAMPLES]
        ]

    def summary(self, last: int) -> dict[str, Any]:
        """First, last, and the paired change between them."""
        said: dict[str, Any] = {}
        for mode in MODES:
            first_rows, last_rows = read_json_lines(self._path(0, mode)), read_json_lines(self._path(last, mode))
            for name, value in (("before", accuracy(first_rows)), ("after", accuracy(last_rows))):
                said[f"{mode}_{name}"] = value["accuracy"]
                said[f"{mode}_{name}_low"], said[f"{mode}_{name}_high"] = value["low"], value["high"]
            moved = change(first_rows, last_rows)
            said[f"{mode}_change"] = moved["change"]
            said[f"{mode}_change_low"], said[f"{mode}_change_high"] = moved["low"], moved["high"]
        return said

    def _path(self, step: int, mode: str) -> Path:
        return self.directory / f"step-{step:04d}-{mode}.jsonl"
