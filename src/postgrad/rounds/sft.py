"""Method "sft": demonstrations from several files, by weight, and their loss on rows that are never learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from postgrad.config.sft import DemonstrationsConfig, SftRecipe
from postgrad.data.batch import collate
from postgrad.data.mixture import Mixture, split_of
from postgrad.data.readers import read_examples, with_system
from postgrad.engine.local import LocalEngine
from postgrad.errors import DataError
from postgrad.methods.sft import Rendered, imitate
from postgrad.models.load import context_length, load_policy, save_policy
from postgrad.models.placement import place
from postgrad.models.policy import PolicyModel
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Policy
from postgrad.rollout import request_seed, rollout_groups
from postgrad.rounds.context import OpenBar, demonstration, last_user_text, write_lines
from postgrad.rounds.frame import Work, open_round, run_stages
from postgrad.rounds.manifest import Manifest, Stage
from postgrad.run import RunDirectory, sha256_file, sha256_tree
from postgrad.text.template import Renderer, check_fits
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.checkpoint import forget_checkpoints
from postgrad.trainer.local import LocalTrainer
from postgrad.types import Conversation, Example, SamplingParams

MAX_LISTED = 10
NUM_SAMPLES = 8
SAMPLE_TOKENS = 128


@dataclass(frozen=True)
class _Set:
    """One file's rows; each with what it is rendered to."""

    name: str
    weight: float
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    rendered: Mapping[str, Rendered]
    """By the examples' ids."""


@dataclass(frozen=True)
class _Run:
    recipe: SftRecipe
    manifest: Manifest
    initial: Path
    sources: Sequence[Path]
    renderer: Renderer
    bar: OpenBar

    def sets(self) -> list[_Set]:
        """Raises:
        DataError: a file cannot be read, a row cannot be learned or does not fit, or a part is empty.
        """
        context = context_length(self.initial)
        return [
            _read_set(self, cfg, source, context)
            for cfg, source in zip(self.recipe.data.sets, self.sources, strict=True)
        ]


def run_sft(
    recipe: SftRecipe,
    *,
    workspace: Path,
    initial: Path,
    sources: Sequence[Path],
    bar: OpenBar,
    announce: Callable[[str], None],
) -> Manifest:
    """Run the recipe, or go on with its unfinished run.

    Args:
        recipe: resolved.
        workspace: one process at a time.
        initial: model directory of the initial policy.
        sources: file of each of the recipe's sets, in order.
        bar: opens a progress bar under a title, or, given the directory of a run, a view of its metrics.
        announce: told the name of each stage as it begins.

    Raises:
        PostgradError: with one sentence; the same command goes on from there.
    """
    renderer = Renderer(load_tokenizer(initial))
    model = {"name": recipe.model.name, "sha256": sha256_tree(initial)}
    inputs = {"model": model["sha256"], "text": renderer.fingerprint}
    inputs |= {f"set {number}": sha256_file(source) for number, source in enumerate(sources, 1)}
    with open_round(recipe, workspace=workspace, model=model) as manifest:
        run = _Run(recipe, manifest, initial, sources, renderer, bar)
        work = [
            Work("data", (), lambda s: _data_stage(run, s)),
            Work("sft", ("data",), lambda s: _sft_stage(run, s)),
        ]
        run_stages(manifest, work, inputs=inputs, announce=announce)
    return manifest


def _read_set(run: _Run, cfg: DemonstrationsConfig, source: Path, context: int) -> _Set:
    data = run.recipe.data
    shares = {"train": 1 - data.heldout_share, "heldout": data.heldout_share}
    parts: dict[str, list[Example]] = {"train": [], "heldout": []}
    rendered: dict[str, Rendered] = {}
    bad = []
    for row in read_examples(source):
        if cfg.splits and row.metadata.get("split") not in cfg.splits:
            continue
        example = with_system(demonstration(row), data.system)
        try:
            rendered[row.id] = run.renderer.render_example(example, turns=cfg.turns)
            check_fits(rendered[row.id][0], context, f"row {row.id!r}")
        except DataError as e:
            bad.append(str(e))
        first = next((m.content for m in row.prompt.messages if m.role == "user"), "")
        parts[split_of(first, shares, "heldout")].append(example)
    if bad:
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{source}: {'; '.join(bad[:MAX_LISTED])}{more}")
    for part, rows in parts.items():
        if not rows:
            raise DataError(f"{source}: no row fell into the {part!r} part; add rows or change 'data.heldout_share'")
    return _Set(source.name.split(".")[0], cfg.weight, tuple(parts["train"]), tuple(parts["heldout"]), rendered)


def _data_stage(run: _Run, stage: Stage) -> None:
    """Check every row before anything is learned of one."""
    sets = run.sets()
    write_lines(
        stage.directory / "rows.jsonl",
        (
            {"set": number, "id": e.id, "part": part, "tokens": len(ids), "trained": sum(mask)}
            for number, each in enumerate(sets, 1)
            for part, examples in (("train", each.train), ("heldout", each.heldout))
            for e in examples
            for ids, mask in (each.rendered[e.id],)
        ),
    )
    stage.summary = {
        f"{each.name}_{number}_{part}": len(rows)
        for number, each in enumerate(sets, 1)
        for part, rows in (("train", each.train), ("heldout", each.heldout))
    }


def _sft_stage(run: _Run, stage: Stage) -> None:
    recipe, cfg = run.recipe, run.recipe.sft
    sets = run.sets()
    directory = RunDirectory(stage.directory, request_seed(recipe.seed, "sft", 0))
    torch.manual_seed(directory.seed(0, "init"))
    model = load_policy(
        run.initial,
        placement=place(recipe.model.device, recipe.model.dtype),
        lora_rank=recipe.model.lora_rank,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
    )
    trainer = LocalTrainer(model, batch_tokens=recipe.batch_tokens, dump=stage.directory / "diverged")
    before = [_validation(trainer, each) for each in sets]  # of the initial policy, also where the run goes on
    after: list[tuple[float, int]] = []

    def examine(step: int) -> dict[str, float]:
        if step % cfg.evaluate_every and step != cfg.steps:
            return {}
        after[:] = [_validation(trainer, each) for each in sets]
        return {"validation/nll": sum(total for total, _ in after) / sum(count for _, count in after)}

    title = f"learning from {len(sets)} set{'s' if len(sets) > 1 else ''}"
    imitate(trainer, _batches(sets, recipe, directory.seed(0)), cfg, directory, run.bar(title, directory), examine)
    after = after or [_validation(trainer, each) for each in sets]
    save_policy(model, stage.directory / "policy", tokenizer_from=run.initial)
    forget_checkpoints(directory)
    stage.add_tokens(trained=trainer.trained_tokens)
    stage.policy_version = trainer.version
    stage.summary = {
        f"{each.name}_{number}_nll_{when}": total / count
        for number, (each, *both) in enumerate(zip(sets, before, after, strict=True), 1)
        for when, (total, count) in zip(("before", "after"), both, strict=True)
    }
    _write_samples(run, stage, model, sets)


def _batches(sets: Sequence[_Set], recipe: SftRecipe, seed: int) -> list[list[Rendered]]:
    """The rows of every step; ids may repeat between files, so a row is found by its set's number too."""
    numbered = [
        ([replace(e, id=f"{number}/{e.id}") for e in each.train], each.weight) for number, each in enumerate(sets)
    ]
    mixture = Mixture(numbered, seed=seed)
    known = {f"{number}/{name}": row for number, each in enumerate(sets) for name, row in each.rendered.items()}
    num = recipe.sft.examples_per_step
    return [[known[e.id] for e in mixture.take(step, num)] for step in range(recipe.sft.steps)]


def _validation(policy: Policy, each: _Set) -> tuple[float, int]:
    """Negative log-likelihood of a set's held-out rows, summed over their trained tokens, and the number of these."""
    rows = [each.rendered[e.id] for e in each.heldout]
    batch = collate([ids for ids, _ in rows], [mask for _, mask in rows])
    total, count, _ = nll_loss(policy.evaluate(batch).logprobs, batch.loss_mask)
    return float(total), int(count)


def _write_samples(run: _Run, stage: Stage, model: PolicyModel, sets: Sequence[_Set]) -> None:
    """Greedy answers to the first user messages of held-out rows, the sets in turn."""
    examples = [each.heldout[i] for i in range(NUM_SAMPLES) for each in sets if i < len(each.heldout)][:NUM_SAMPLES]
    asked = [replace(e, id=str(i), prompt=_question(e)) for i, e in enumerate(examples)]
    engine = LocalEngine(model, stop_ids=run.renderer.stop_ids, decode=run.renderer.decode)
    params = SamplingParams(max_tokens=SAMPLE_TOKENS, temperature=0.0)
    groups = asyncio.run(rollout_groups(asked, engine, run.renderer, params, group_size=1, seed=0))
    completions = [(g.example, t.turns[-1].completion) for g in groups for t in g.trajectories if t.turns]
    write_lines(
        stage.directory / "samples.jsonl",
        (
            {
                "prompt": last_user_text(example.prompt),
                "text": c.text,
                "tokens": len(c.token_ids),
                "finish_reason": c.finish_reason,
            }
            for example, c in completions
        ),
    )
    stage.add_tokens(generated=sum(len(c.token_ids) for _, c in completions))


def _question(example: Example) -> Conversation:
    """The conversation up to the first assistant turn."""
    messages = example.prompt.messages
    end = next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))
    return Conversation(messages[:end], example.prompt.tools)
