"""How much memory the stages of a run that train will need, told before anything is loaded, and what to turn.

Sizes are counted on a blank model. What the heap and oneDNN add to them was measured; docs/benchmarks.md holds the
estimates against real peaks. Not counted: memory of the user's own graders.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from rich.table import Table

from postgrad.config.compare import CompareRecipe
from postgrad.config.distill import DistillConfig, DistillRecipe
from postgrad.config.iterate import IterateRecipe
from postgrad.config.load import AnyRecipe
from postgrad.config.preference import PreferenceRecipe
from postgrad.config.pretrain import PretrainRecipe
from postgrad.config.questions import RlRecipe
from postgrad.config.reward import RewardRecipe
from postgrad.config.rl import RlConfig
from postgrad.config.round import Recipe
from postgrad.config.sft import SftRecipe
from postgrad.config.steps import StepRewardRecipe
from postgrad.data.readers import read_examples
from postgrad.data.tasks import make_tasks
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError, DataError
from postgrad.methods.pretrain import READ_AT_ONCE
from postgrad.methods.reward import freeze_below
from postgrad.models.attainable import resident_bytes
from postgrad.models.footprint import FLOAT_BYTES, KERNELS, Estimate, Sizes, blank_policy, count_sizes, learning
from postgrad.models.fresh import fresh_config
from postgrad.models.load import read_config
from postgrad.ops.logprobs import CHUNK
from postgrad.rounds.context import demonstration, read_splits
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import FORWARD_ONLY
from postgrad.types import Example

OneReward = RewardRecipe | StepRewardRecipe
"""Recipes that train reward models alone."""
DISTRIBUTION_BYTES = 48
"""For every word at every place where whole distributions are read: a dozen arrays, half of them float64."""
_engine = inspect.signature(LocalEngine).parameters
MAX_BATCH, CACHE_TOKENS = (int(_engine[name].default) for name in ("max_batch", "cache_tokens"))
RANKS = (64, 16, 4)
CANDIDATES = 16
CLOSE = 0.9
"""Share of what there is from which on a run is warned of."""


@dataclass(frozen=True)
class Plan:
    """A recipe and what else its memory depends on."""

    recipe: AnyRecipe
    sizes: Callable[..., Sizes]
    """Of the recipe's model with `heads`, `lora_rank` and `train_layers`."""
    process: int
    prompt: int = 0
    """Tokens of the longest prompt that is answered."""
    demonstration: int = 0
    """Tokens of the longest demonstration."""
    group: int = 0
    """Tokens of the longest prompt with all the answers that were compared."""
    teacher: int = 0
    """Bytes of a teacher's weights, where it is another model than the student with its adapter off."""

    def estimates(self) -> list[Estimate]:
        if isinstance(self.recipe, PretrainRecipe):
            return self._pretrain(self.recipe)
        if isinstance(self.recipe, OneReward):
            return [self._reward(self.recipe)]
        if isinstance(self.recipe, PreferenceRecipe):
            return [self._preference(self.recipe)]
        if isinstance(self.recipe, Recipe):
            return [
                self._sft(self.recipe, self.recipe.sft.examples_per_step),
                self._reward(self.recipe),
                self._rl(self.recipe, self.recipe.rl),
            ]
        if isinstance(self.recipe, RlRecipe):
            return [self._rl(self.recipe, self.recipe.rl)]
        if isinstance(self.recipe, DistillRecipe):
            return [self._distill(self.recipe)]
        if isinstance(self.recipe, CompareRecipe):
            return self._compare(self.recipe)
        sft = self._sft(self.recipe, self.recipe.sft.examples_per_step)
        if isinstance(self.recipe, IterateRecipe):
            sft = replace(sft, sampling=self._sampling(self.recipe.iterate.max_tokens, MAX_BATCH))
        return [sft]

    def _pretrain(self, recipe: PretrainRecipe) -> list[Estimate]:
        sizes = self.sizes()
        tokens = min(max(recipe.batch_tokens, sizes.context), recipe.pretrain.rows_per_step * sizes.context)
        read = max(READ_AT_ONCE, sizes.context)
        evaluate = Estimate(
            "evaluate",
            process=self.process + KERNELS,
            weights=sizes.weights,
            activations=read * sizes.layer,
            vocabulary=read * sizes.words * DISTRIBUTION_BYTES,
        )
        return [learning("pretrain", self.process, sizes, tokens), evaluate]

    def _preference(self, recipe: PreferenceRecipe) -> Estimate:
        """The reference has been read before, and is no longer there."""
        sizes = self.sizes(lora_rank=recipe.model.lora_rank)
        step = recipe.preference.prompts_per_step * self.group
        tokens = min(max(recipe.batch_tokens, self.group), step)
        read = min(max(FORWARD_ONLY * recipe.batch_tokens, self.group), step)  # kto reads mismatched answers
        trained = learning("preference", self.process, sizes, tokens, checkpointing=recipe.model.gradient_checkpointing)
        return replace(trained, activations=max(trained.activations, read * sizes.layer))

    def _compare(self, recipe: CompareRecipe) -> list[Estimate]:
        """Learning from labels fits where RL on as many answers does, with a reference and a reward model beside it."""
        shared = recipe.as_round()
        learned = [
            replace(self._rl(shared, method.rl), stage=method.name)
            for method in recipe.methods
            if method.rl is not None
        ]
        distilled = [
            replace(self._on_policy(shared, method.distill, self.sizes().weights), stage=method.name)
            for method in recipe.methods
            if method.distill is not None
        ]
        imitated = self._sft(shared, max(shared.sft.examples_per_step, shared.rl.prompts_per_step))
        return [imitated, self._reward(shared), *learned, *distilled]

    def _sft(self, recipe: Recipe | SftRecipe | IterateRecipe | DistillRecipe, rows: int) -> Estimate:
        """Of so many rows a step."""
        tokens = min(max(recipe.batch_tokens, self.demonstration), rows * self.demonstration)
        sizes = self.sizes(lora_rank=recipe.model.lora_rank)
        return learning("sft", self.process, sizes, tokens, checkpointing=recipe.model.gradient_checkpointing)

    def _reward(self, recipe: Recipe | OneReward) -> Estimate:
        sizes = self.sizes(heads=("reward",), train_layers=recipe.reward.train_layers)
        if isinstance(recipe, OneReward):
            group = 2 * recipe.data.max_tokens
        else:
            group = self.prompt + recipe.labels.answers_per_prompt * recipe.rl.max_tokens
        tokens = min(max(recipe.batch_tokens, group), recipe.reward.prompts_per_step * group)
        return replace(learning("reward", self.process, sizes, tokens), vocabulary=0)

    def _num_reward_models(self) -> int:
        """Each taken to be as large as the policy."""
        if isinstance(self.recipe, RlRecipe):
            return sum(bool(grader.reward_model) for grader in self.recipe.graders)
        exam = self.recipe.exam if isinstance(self.recipe, Recipe) else None
        return 2 if exam is not None and exam.gold == "ensemble" else 1

    def _distill(self, recipe: DistillRecipe) -> Estimate:
        """By sequences, an upper bound: the teacher has answered before there are gradients."""
        cfg = recipe.distill
        if cfg.kind == "sequence":
            learned = self._sft(recipe, cfg.prompts_per_step * cfg.group_size)
            return replace(learned, stage="distill", sampling=self.teacher + self._sampling(cfg.max_tokens, MAX_BATCH))
        return self._on_policy(recipe, cfg, self.teacher)

    def _on_policy(self, recipe: Recipe | DistillRecipe, cfg: DistillConfig, teacher: int) -> Estimate:
        scored = replace(self._rl(recipe, cfg.loop()), stage="distill", reference=teacher)
        if cfg.estimate == "sampled":
            return scored
        return replace(scored, vocabulary=scored.vocabulary + CHUNK * self.sizes().words * DISTRIBUTION_BYTES)

    def _sampling(self, max_tokens: int, rows: int) -> int:
        """So many answers at a time."""
        sizes, row = self.sizes(), self.prompt + max_tokens
        cached = max(row, min(row * rows, CACHE_TOKENS))
        return sizes.weights + cached * sizes.keys_values + 2 * rows * sizes.words * FLOAT_BYTES

    def _rl(self, recipe: Recipe | RlRecipe | DistillRecipe, cfg: RlConfig) -> Estimate:
        rank = recipe.model.lora_rank
        sizes = self.sizes(heads=("value",) if cfg.algorithm == "ppo" else (), lora_rank=rank)
        group = self.prompt + cfg.group_size * cfg.max_tokens
        update = math.ceil(cfg.prompts_per_step / cfg.minibatches) * group
        tokens = min(max(recipe.batch_tokens, group), update)
        trained = learning("rl", self.process, sizes, tokens, checkpointing=recipe.model.gradient_checkpointing)
        read = min(max(FORWARD_ONLY * recipe.batch_tokens, group), cfg.prompts_per_step * group)
        # An "rl" recipe answers its held-out questions between steps, as many at a time as there is room for.
        rows = MAX_BATCH if isinstance(recipe, RlRecipe) else min(MAX_BATCH, cfg.prompts_per_step * cfg.group_size)
        return replace(
            trained,
            reference=0 if rank else self.sizes().weights,
            reward_model=self._num_reward_models() * self.sizes(heads=("reward",)).weights,
            activations=max(trained.activations, read * sizes.layer),
            sampling=self._sampling(cfg.max_tokens, rows),
        )


def plan_run(
    recipe: AnyRecipe,
    *,
    initial: Path | None,
    source: Path | None,
    sets: Sequence[Path] = (),
    teacher: Path | None = None,
    longest_group: int = 0,
) -> Plan:
    """Measure what the estimates depend on: the process, the model's configuration, the longest texts.

    Args:
        recipe: resolved.
        initial: model directory of the initial policy; None where the recipe makes its own.
        source: file of the prompts or questions; None where the recipe names tasks.
        longest_group: tokens of the longest prompt with all its answers, of a recipe for preferences.
        sets: files of the demonstrations that an "sft" recipe mixes.
        teacher: model directory of a "distill" recipe's teacher.

    Raises:
        PostgradError: the model's configuration, the recipe's or the source cannot be read.
    """
    if isinstance(recipe, PretrainRecipe):
        config = fresh_config(recipe.model.config, vocab_size=recipe.tokenizer.vocab_size, eos_id=0)
        return Plan(recipe, _sizes(config), resident_bytes())
    assert initial is not None, "only pretraining makes its own model"
    sizes = _sizes(read_config(initial))
    if isinstance(recipe, OneReward):
        return Plan(recipe, sizes, resident_bytes())
    if isinstance(recipe, PreferenceRecipe):
        return Plan(recipe, sizes, resident_bytes(), group=longest_group)
    renderer = Renderer(load_tokenizer(initial))
    demonstrations: Sequence[Example] = ()
    asked: Sequence[Example]
    if isinstance(recipe, SftRecipe):
        demonstrations = [demonstration(e) for path in sets for e in read_examples(path)]
        asked = ()
    elif isinstance(recipe, Recipe | CompareRecipe):
        assert source is not None, "a round has a file of prompts"
        splits = read_splits(source, recipe.data.system)
        demonstrations = [demonstration(e) for e in splits.pop("sft")[: recipe.sft.num_examples]]
        asked = [e for rows in splits.values() for e in rows]
    elif source is None:
        tasks = make_tasks(recipe.data.tasks, system=recipe.data.system, seed=recipe.seed)
        asked = [e for task in tasks for e in (*task.train, *task.heldout)]
    else:
        asked = list(read_examples(source))
    longest_prompt = _longest(asked, lambda e: renderer.render_prompt(e.prompt))
    if isinstance(recipe, IterateRecipe):
        longest_row = longest_prompt + recipe.iterate.max_tokens
    elif isinstance(recipe, DistillRecipe):
        longest_row = longest_prompt + recipe.distill.max_tokens
    else:
        longest_row = _longest(demonstrations, lambda e: renderer.render_example(e)[0])
    apart = teacher is not None and (teacher != initial or recipe.model.lora_rank == 0)
    weights = _sizes(read_config(teacher))().weights if teacher is not None and apart else 0
    return Plan(recipe, sizes, resident_bytes(), prompt=longest_prompt, demonstration=longest_row, teacher=weights)


def _sizes(config: Any) -> Callable[..., Sizes]:
    @functools.cache
    def sizes(*, heads: tuple[str, ...] = (), lora_rank: int = 0, train_layers: int = 0) -> Sizes:
        model = blank_policy(config, heads=heads, lora_rank=lora_rank)
        if "reward" in heads:
            freeze_below(model, train_layers)
        return count_sizes(model)

    return sizes


def _longest(examples: Iterable[Example], render: Callable[[Example], Sequence[int]]) -> int:
    """Most tokens of those with the most characters; rows that cannot be rendered are refused elsewhere, together."""
    longest = 1
    for example in heapq.nlargest(CANDIDATES, examples, key=_characters):
        with suppress(DataError):
            longest = max(longest, len(render(example)))
    return longest


def _characters(example: Example) -> int:
    return sum(len(m.content) for m in (*example.prompt.messages, *example.completion))


def check_memory(plan: Plan, attainable: int) -> str | None:
    """A warning where the estimate comes close to what there is.

    Raises:
        ConfigError: it exceeds it; the sentence holds the parts and the mildest change of the recipe that fits.
    """
    worst = max(plan.estimates(), key=lambda estimate: estimate.peak)
    said = f"stage {worst.stage!r} needs about {_gb(worst.peak)} GB ({_parts(worst)})"
    if worst.peak <= CLOSE * attainable:
        return None
    if worst.peak <= attainable:
        return f"{said}, close to the {_gb(attainable)} GB that there are; close other programs"
    raise ConfigError(f"{said}, and there are {_gb(attainable)} GB; {_advice(plan, attainable)}")


def _advice(plan: Plan, attainable: int) -> str:
    knobs = _knobs(plan)
    for count in range(1, len(knobs) + 1):
        for chosen in combinations(knobs, count):
            for values in product(*(knobs[key] for key in chosen)):
                changes = dict(zip(chosen, values, strict=True))
                changed = replace(plan, recipe=_changed(plan.recipe, changes))
                if max(estimate.peak for estimate in changed.estimates()) <= CLOSE * attainable:
                    settings = " ".join(f"--set {key}={_toml(value)}" for key, value in changes.items())
                    return f"{settings} fits" + ("" if count == 1 else ", and no single change does")
    return "no change of " + ", ".join(knobs) + " is enough; take a smaller model"


def _knobs(plan: Plan) -> dict[str, list[int | bool]]:
    """Keys of the recipe that lower its memory, what changes the result least first, and values from mild to strong."""
    recipe = plan.recipe
    step = max(1, recipe.batch_tokens // 16)
    knobs: dict[str, list[int | bool]] = {"batch_tokens": list(range(recipe.batch_tokens - step, 0, -step))}
    if isinstance(recipe, PretrainRecipe):
        return knobs
    if not isinstance(recipe, OneReward):
        if not recipe.model.gradient_checkpointing:
            knobs["model.gradient_checkpointing"] = [True]
        knobs["model.lora_rank"] = [rank for rank in RANKS if rank < (recipe.model.lora_rank or math.inf)]
    if isinstance(recipe, Recipe | CompareRecipe | RewardRecipe | StepRewardRecipe):
        layers = plan.sizes().layers
        knobs["reward.train_layers"] = list(range((recipe.reward.train_layers or layers) - 1, 0, -1))
    return {key: values for key, values in knobs.items() if values}


def _changed(recipe: AnyRecipe, changes: dict[str, int | bool]) -> AnyRecipe:
    raw = recipe.model_dump()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (raw[section] if section else raw)[name] = value
    return type(recipe).model_validate(raw)


def as_table(estimates: Sequence[Estimate], attainable: int) -> Table:
    """Parts as rows, stages as columns, in GB."""
    table = Table("GB", *(e.stage for e in estimates), title=f"{_gb(attainable)} GB can be had", title_justify="left")
    for name in _PARTS:
        table.add_row(name.replace("_", " "), *(_gb(getattr(e, name)) for e in estimates))
    table.add_section()
    table.add_row("peak", *(_gb(e.peak) for e in estimates))
    return table


_PARTS = [f.name for f in fields(Estimate) if f.name != "stage"]


def _parts(estimate: Estimate) -> str:
    sizes = {name: getattr(estimate, name) for name in _PARTS}
    return ", ".join(f"{name.replace('_', ' ')} {_gb(size)}" for name, size in sizes.items() if size)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _toml(value: int | bool) -> str:
    return str(value).lower()
