"""What every stage of a round works with, and the small things several of them do."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from postgrad.config.round import RatersConfig, Recipe
from postgrad.data.readers import read_examples, with_system
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError, DataError, EngineError
from postgrad.feedback.raters import SimulatedRater, make_pool
from postgrad.feedback.store import LabelStore
from postgrad.feedback.utility import GOLD, Utility, measures, satisfies, utility
from postgrad.methods.sft import Progress
from postgrad.models.load import load_policy
from postgrad.models.placement import Placement, place
from postgrad.models.policy import PolicyModel
from postgrad.rollout import request_seed, rollout_groups
from postgrad.rounds.manifest import Manifest
from postgrad.run import RunDirectory, atomic_write
from postgrad.text.template import Renderer, check_fits
from postgrad.types import Completion, Conversation, Example, Group, Message, SamplingParams, Trajectory, Turn

SPLITS = ("sft", "rm", "rl", "heldout", "heldout_unseen")
AT_ONCE = 128
"""Answers sampled between two movements of the progress bar."""


class OpenBar(Protocol):
    def __call__(self, title: str, run: RunDirectory | None = None) -> Progress: ...


@dataclass(frozen=True)
class Context:
    recipe: Recipe
    manifest: Manifest
    initial: Path
    """Directory of the initial policy; its tokenizer and template are the round's."""
    source: Path
    """File of the prompts."""
    store: LabelStore
    renderer: Renderer
    bar: OpenBar
    """Opens a progress bar under a title, or, given the directory of a run, a view of its metrics."""
    ask: Callable[[LabelStore, str], None] | None = None
    """Asks a person for the comparisons of the round; None leaves them to the simulated raters."""

    @property
    def round_id(self) -> str:
        return self.manifest.record.id

    @property
    def workspace(self) -> Path:
        return self.manifest.directory.parents[1]

    def policy_directory(self, player: str) -> Path:
        """Where a player of this round lives: "initial", "sft", "rl"."""
        if player == "initial":
            return self.initial
        return self.manifest.stage_directory(player) / "policy"

    def engine(self, model: PolicyModel, *, version: int = 0) -> LocalEngine:
        engine = LocalEngine(model, stop_ids=self.renderer.stop_ids, decode=self.renderer.decode)
        engine.version = version
        return engine

    @property
    def placement(self) -> Placement:
        return place(self.recipe.model.device, self.recipe.model.dtype)

    def load(self, player: str, **options: Any) -> PolicyModel:
        gc.collect()
        return load_policy(self.policy_directory(player), placement=self.placement, **options)

    def load_trainable(self, player: str, *, heads: tuple[str, ...] = ()) -> PolicyModel:
        cfg = self.recipe.model
        return self.load(
            player, heads=heads, lora_rank=cfg.lora_rank, gradient_checkpointing=cfg.gradient_checkpointing
        )


def read_splits(source: Path, system: str) -> dict[str, list[Example]]:
    """The round's prompts by split, with the recipe's system message in front.

    Raises:
        DataError: a row names no split or an unknown one, or a split has no row.
    """
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    bad = []
    for example in read_examples(source):
        split = example.metadata.get("split")
        if split not in splits:
            bad.append(f"{example.id!r} ({split!r})")
            continue
        splits[split].append(with_system(example, system))
    if bad:
        raise DataError(
            f"{source}: {len(bad)} rows name no known split ({', '.join(SPLITS)}): {', '.join(bad[:10])}; "
            "give every row a 'split'"
        )
    empty = [name for name in ("sft", "rm", "rl", "heldout") if not splits[name]]
    if empty:
        raise DataError(f"{source}: no row for split {empty[0]!r}; a round needs all of sft, rm, rl and heldout")
    return splits


def demonstration(example: Example) -> Example:
    """Where a row brings no completion, its reference answer is the demonstration."""
    if example.completion or example.target is None:
        return example
    return replace(example, completion=(Message("assistant", example.target),))


def check_rows(ctx: Context, splits: Mapping[str, Sequence[Example]], context: int) -> None:
    """Refuse what a later stage would trip over, all of it at once.

    Args:
        ctx: of the round.
        splits: as `read_splits` gives them.
        context: most tokens that the model reads.

    Raises:
        ConfigError: the recipe asks for more rows than a split has.
        DataError: names every row that leaves no room for an answer, has nothing to learn from, or carries a
            constraint that nobody can check.
    """
    recipe = ctx.recipe
    for split, key, wanted in (
        ("sft", "sft.num_examples", recipe.sft.num_examples),
        ("rm", "labels.num_prompts", recipe.labels.num_prompts),
        ("heldout", "arena.num_prompts", recipe.arena.num_prompts),
    ):
        if wanted > len(splits[split]):
            raise ConfigError(
                f"{key!r} = {wanted}, but {ctx.source} has {len(splits[split])} rows in split {split!r}; "
                "lower it or add rows"
            )
    if recipe.exam is not None and recipe.exam.gold == "raters" and ctx.ask is not None:
        raise ConfigError(
            "'exam' reads what simulated raters want, and a person gives these labels; set 'exam.gold' to \"ensemble\" "
            'or "labels", or remove the section'
        )
    if recipe.exam is not None and recipe.exam.num_prompts >= len(splits["rl"]):
        raise ConfigError(
            f"'exam.num_prompts' = {recipe.exam.num_prompts} leaves none of the {len(splits['rl'])} rows in split 'rl' "
            "to train on; lower it or add rows"
        )
    problems = []
    for split, rows in splits.items():
        for example in rows:
            try:
                _check_row(ctx, split, example, context)
            except DataError as e:
                said = str(e)
                problems.append(said if said.startswith("row ") else f"row {example.id!r}: {said}")
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{ctx.source}: {'; '.join(problems[:10])}{more}")


def _check_row(ctx: Context, split: str, example: Example, context: int) -> None:
    name = f"row {example.id!r}"
    if split == "sft":
        ids, _ = ctx.renderer.render_example(demonstration(example))
        check_fits(ids, context, name)
        return
    if example.prompt.messages[-1].role == "assistant":
        raise DataError(f"the prompt of split {split!r} ends with an assistant turn; remove that turn")
    check_fits(ctx.renderer.render_prompt(example.prompt, name=name), context - ctx.recipe.rl.max_tokens, name)
    check_constraints(example)


def check_constraints(example: Example) -> None:
    """Raise unless the simulated raters could say whether an answer obeys."""
    constraints = example.metadata.get("constraints", [])
    if not isinstance(constraints, list) or not all(isinstance(c, dict) for c in constraints):
        raise DataError("'constraints' must be a list of objects")
    for constraint in constraints:
        satisfies(constraint, "")


async def sample_all(
    renderer: Renderer,
    engine: LocalEngine,
    examples: Sequence[Example],
    params: SamplingParams,
    *,
    group_size: int,
    seed: int,
    progress: Progress,
) -> list[Group]:
    """`rollout_groups` in portions, so that somebody can watch, for stages that need every answer.

    Raises:
        EngineError: a rollout failed.
    """
    groups: list[Group] = []
    num = max(1, AT_ONCE // group_size)
    for start in range(0, len(examples), num):
        portion = examples[start : start + num]
        groups += await rollout_groups(portion, engine, renderer, params, group_size=group_size, seed=seed)
        failed = next((t.error for g in groups for t in g.trajectories if t.status == "errored"), None)
        if failed is not None:
            raise EngineError(failed)
        progress(len(groups), len(examples))
    return groups


def read_groups(run: RunDirectory, step: int, examples: Sequence[Example]) -> list[Group]:
    """The single-turn answers to `examples` that `save_groups` wrote, without their scores."""
    groups = [Group(example, ()) for example in examples]
    for row in run.read_trajectories(step):
        (turn,) = row["turns"]
        completion = Completion(
            tuple(turn["token_ids"]),
            tuple(turn["logprobs"]),
            turn["finish_reason"],
            turn["policy_version"],
            turn["text"],
        )
        group = groups[row["group"]]
        assert group.example.id == row["example_id"], "the same prompts in the same order"
        trajectory = Trajectory(row["id"], (Turn(tuple(turn["prompt_ids"]), completion),), row["status"])
        groups[row["group"]] = replace(group, trajectories=(*group.trajectories, trajectory))
    return groups


def rater_pool(ctx: Context, num: int, purpose: str) -> list[SimulatedRater]:
    """The simulated raters of a purpose, stored; settings that change a rater change its name too."""
    pool = draw_pool(num, purpose, ctx.recipe.labels, seed=ctx.recipe.seed)
    ctx.store.add_raters("simulated", {rater.id: rater.params() for rater in pool})
    return pool


def draw_pool(num: int, purpose: str, cfg: RatersConfig, *, seed: int) -> list[SimulatedRater]:
    """The same settings give the same raters in every method."""
    salt = f"{purpose} {num} {cfg.rater_temperature} {cfg.careless_frac}"
    if wanted(cfg) != GOLD:
        salt += f" {wanted(cfg)}"
    return make_pool(
        num,
        seed=request_seed(seed, salt, 0),
        temperature=cfg.rater_temperature,
        careless_frac=cfg.careless_frac,
        prefix=purpose,
    )


def wanted(cfg: RatersConfig) -> Utility:
    """What simulated people want of an answer."""
    return Utility(reference=cfg.reference_weight)


def worth(example: Example, text: str, finish_reason: str, weights: Utility) -> float:
    """The declared utility of an answer."""
    return utility(measure(example, text, finish_reason), weights)


def measure(example: Example, text: str, finish_reason: str) -> dict[str, float | None]:
    return measures(
        text,
        finish_reason=finish_reason,
        reference=example.target,
        constraints=example.metadata.get("constraints", ()),
        prompt=last_user_text(example.prompt),
    )


def last_user_text(conversation: Conversation) -> str:
    return next((m.content for m in reversed(conversation.messages) if m.role == "user"), "")


def completions(groups: Sequence[Group]) -> list[Completion]:
    return [t.turns[-1].completion for g in groups for t in g.trajectories]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
