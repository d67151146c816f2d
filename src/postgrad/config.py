"""A recipe: TOML plus dotted overrides, checked by pydantic. An unknown key is an error that names it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from postgrad.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["constant", "linear", "cosine"]
"""What the learning rate does after its warmup: stay, or fall to a tenth of the peak."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _PlacedConfig(_Section):
    device: Device = "auto"
    """"auto" is the GPU where torch sees one (docs/gpu.md)."""
    dtype: Dtype = "auto"
    """Of the weights; "auto" is float32 on the CPU, bfloat16 on a GPU. The optimizer works in float32 either way."""


class ModelConfig(_PlacedConfig):
    name: str
    """A packaged name, a local directory, a GGUF file or a hub id."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0 trains all weights."""
    gradient_checkpointing: bool = False
    """Compute each layer twice and keep none of its activations: less memory, a third more time."""


class DataConfig(_Section):
    source: str
    """"quickstart", or a JSONL/Parquet file of prompts."""
    system: str = ""
    """System message put before every prompt; empty leaves it to the model's template."""


class SftConfig(_Section):
    num_examples: Positive
    epochs: Positive = 1
    examples_per_step: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Schedule = "linear"
    warmup_frac: Share = 0.1
    """Share of the steps over which the rate climbs to its peak."""


class LabelsConfig(_Section):
    num_prompts: Positive
    answers_per_prompt: Annotated[int, Field(ge=2, le=9)] = 2
    ratings_per_comparison: Positive = 1
    num_raters: Positive = 8
    rater_temperature: Annotated[float, Field(gt=0)] = 0.5
    careless_frac: Share = 0.1


class RewardConfig(_Section):
    epochs: Positive = 1
    prompts_per_step: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    train_layers: Annotated[int, Field(ge=0)] = 0
    """Topmost layers that learn; 0 trains all of them."""
    margin_per_grade: Annotated[float, Field(ge=0)] = 0.0
    """Added to the margin that "clearly" and "much better" have to win by, once and twice."""
    min_accuracy: Share = 0.55


AlgorithmName = Literal["ppo", "reinforce", "grpo", "dr_grpo", "rloo", "dapo", "gspo", "cispo", "maxrl"]


class RlConfig(_Section):
    """A key that is None takes the algorithm's own default (docs/algorithms.md)."""

    PPO_ONLY: ClassVar = {
        "kl_target",
        "whiten_rewards",
        "dual_clip",
        "value_clip",
        "value_coef",
        "gamma",
        "gae_lambda",
    }

    algorithm: AlgorithmName = "ppo"
    steps: Positive
    prompts_per_step: Positive = 16
    sampling_attempts: Positive = 1
    """Most times that a step samples `prompts_per_step` prompts, until as many groups carry signal."""
    group_size: Positive = 4
    epochs: Positive = 2
    minibatches: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Schedule = "constant"
    warmup_frac: Share = 0.0
    """Share of the steps over which the rate climbs to its peak."""
    max_tokens: Positive = 40
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: float = 1.0
    top_k: int = 0
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    kl_stop: Annotated[float, Field(gt=0)] = 10.0
    """Nats per answer from the reference; the run ends before a step beyond it."""
    kl_old_stop: Annotated[float, Field(gt=0)] | None = None
    """Nats per token from the policy that sampled; a step's remaining updates are left out beyond it."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats per answer to which `kl_coef` is steered; None leaves it where it is."""
    clip_eps: Annotated[float, Field(gt=0)] | None = None
    clip_eps_high: Annotated[float, Field(gt=0)] | None = None
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    value_clip: Annotated[float, Field(gt=0)] | None = None
    value_coef: Annotated[float, Field(ge=0)] | None = None
    whiten_rewards: bool | None = None
    gamma: Share | None = None
    gae_lambda: Share | None = None
    missing_end_penalty: Annotated[float, Field(ge=0)] | None = None

    @field_validator("group_size", "clip_eps", "missing_end_penalty", *sorted(PPO_ONLY))
    @classmethod
    def _fits_the_algorithm(cls, value: float | None, info: ValidationInfo) -> float | None:
        key, algorithm = info.field_name, info.data.get("algorithm")
        if value is None or algorithm is None:
            return value
        if key in cls.PPO_ONLY and algorithm != "ppo":
            raise ValueError(f"belongs to ppo, and 'rl.algorithm' is {algorithm!r}; remove it")
        if key == "group_size" and value < 2 and algorithm not in ("ppo", "reinforce"):
            raise ValueError(f"{algorithm} compares siblings and needs group_size >= 2")
        if key == "clip_eps" and algorithm == "cispo":
            raise ValueError("cispo has no lower bound; set 'rl.clip_eps_high'")
        if key == "missing_end_penalty" and value > 0 and algorithm == "maxrl":
            raise ValueError("maxrl needs rewards >= 0; leave the penalty at 0")
        return value

    @field_validator("top_p", "top_k")
    @classmethod
    def _whole_distribution(cls, value: float, info: ValidationInfo) -> float:
        """Training reads probabilities of the whole distribution, so it must be the one that is sampled from."""
        whole = {"top_p": 1, "top_k": 0}[str(info.field_name)]
        if value != whole:
            raise ValueError(
                f"must be {whole}, or the loss would compare probabilities of the whole distribution with samples of "
                "a part of it"
            )
        return value


class ArenaConfig(_Section):
    num_prompts: Positive
    num_raters: Positive = 8
    resamples: Positive = 1000


class GateConfig(_Section):
    max_length_ratio: Annotated[float, Field(gt=0)] = 1.5
    max_repetition: Share = 0.2
    max_truncated_frac: Share = 0.5
    max_kl: Annotated[float, Field(gt=0)] = 20.0


class _Recipe(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: int = 0
    batch_tokens: Positive = 2048
    """Most tokens, padding included, that one forward pass may hold; changes memory, never the result."""


class Recipe(_Recipe):
    """A whole round."""

    method: Literal["round"] = "round"
    model: ModelConfig
    data: DataConfig
    sft: SftConfig
    labels: LabelsConfig
    reward: RewardConfig
    rl: RlConfig
    arena: ArenaConfig
    gate: GateConfig


class FreshModelConfig(_PlacedConfig):
    config: dict[str, Any]
    """`model_type` and any other keys of that transformers configuration; vocabulary and token ids are filled in."""


class TextConfig(_Section):
    source: str
    """"books", or a .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet file; rows hold their document in `text`."""


class TokenizerConfig(_Section):
    vocab_size: Annotated[int, Field(gt=256)]
    """Bytes, end of text and merges."""


class PretrainConfig(_Section):
    steps: Positive
    rows_per_step: Positive
    """Each as long as the model's context."""
    learning_rate: Annotated[float, Field(gt=0)]
    evaluate_every: Positive
    """Steps between two readings of the validation loss, and between two checkpoints."""


class PretrainRecipe(_Recipe):
    """A base model from text alone."""

    method: Literal["pretrain"]
    model: FreshModelConfig
    data: TextConfig
    tokenizer: TokenizerConfig
    pretrain: PretrainConfig


class TaskConfig(_Section):
    """Questions from one reasoning-gym data set."""

    name: str
    config: dict[str, Any] = {}
    """The data set's own keys, without `seed` and `size`."""
    num_train: Positive
    num_heldout: Positive
    shots: Annotated[int, Field(ge=0)] = 0
    """Solved questions, in neither part, that are shown before every question."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the training questions, relative to the other tasks."""

    @field_validator("config")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(value.keys() & {"seed", "size"})
        if taken:
            raise ValueError(f"{taken[0]!r} is set by the recipe's seed and counts; remove it")
        return value


class QuestionsConfig(_Section):
    """Either `tasks` or `source`."""

    tasks: tuple[TaskConfig, ...] = ()
    source: str = ""
    """A JSONL or Parquet file of prompts with their `target`."""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the rows of `source`, by a hash of their text, so that equal questions are on one side."""
    system: str = ""
    """System message put before every prompt; empty leaves it to the model's template."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.tasks) == bool(self.source):
            raise ValueError("name either 'data.tasks' or 'data.source'")
        return self


class GraderConfig(_Section):
    function: str
    """"reasoning-gym", "math", "form", or the module:name or file.py:name of a function.

    It takes (prompt, answer, target, metadata) and returns a number, or None to abstain.
    """
    weight: float = 1.0
    """Of its scores in the reward; with 0 it is measured on the held-out questions alone."""


class EvalConfig(_Section):
    every: Positive
    """Steps between two examinations on the held-out questions."""


class RlRecipe(_Recipe):
    """A policy against graders that can check an answer."""

    method: Literal["rl"]
    model: ModelConfig
    data: QuestionsConfig
    graders: Annotated[tuple[GraderConfig, ...], Field(min_length=1)]
    """An answer is right where the first of them gives at least 1."""
    rl: RlConfig
    eval: EvalConfig

    @field_validator("graders")
    @classmethod
    def _rewarded(cls, value: tuple[GraderConfig, ...]) -> tuple[GraderConfig, ...]:
        names = [grader.function for grader in value]
        if value[0].weight == 0:
            raise ValueError("the first grader needs a weight, since it says which answers are right")
        if len(set(names)) < len(names):
            raise ValueError("every grader can be named once")
        return value

    @model_validator(mode="after")
    def _tasks_have_verifiers(self) -> Self:
        if not self.data.tasks and any(grader.function == "reasoning-gym" for grader in self.graders):
            raise ValueError("grader 'reasoning-gym' needs 'data.tasks', whose questions it made")
        return self


class PolicyConfig(_Section):
    """Who answers in a conversation: a `[[policies]]` table of `postgrad label serve --config FILE`."""

    model: str | None = None
    """Name or directory; at an endpoint, as it calls the model. The workspace's released policy if left out."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible API, in place of a model in this process."""
    key_variable: str | None = None
    """Environment variable that holds the endpoint's key; none is sent where this is left out."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """After which an answer has failed."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.endpoint is not None and not self.model:
            raise ValueError("an endpoint needs the name of its model")
        if self.endpoint is None and self.key_variable is not None:
            raise ValueError("a key is for an endpoint")
        return self


class QueueConfig(_Section):
    """How a labelling queue treats its people: the keys of `postgrad label serve --config FILE`."""

    lease_s: Annotated[float, Field(gt=0)] = 900.0
    """Without a sign of life for so long, a task goes back to the others."""
    exam_tasks: Annotated[int, Field(ge=0)] = 0
    """Gold tasks that a newcomer answers first."""
    exam_pass: Share = 0.7
    """Share of them to be right."""
    gold_frac: Share = 0.05
    """Chance that the next task is a gold one."""
    repeat_frac: Share = 0.03
    """Chance that the next task is one that the same person compared before, with its sides swapped."""
    pause_below: Share = 0.6
    """Share of gold tasks right, below which an account pauses until a lead has looked."""
    pause_after: Positive = 10
    """Gold tasks before that is asked."""
    person_cap: Positive | None = None
    """Most answers of one person, gold and repeats apart."""
    max_overlap: Annotated[int, Field(ge=0)] = 0
    """People to whom a disputed comparison goes at most, one by one; then it waits for an adjudicator. 0 asks no more
    than the task does."""
    agree_above: Share = 0.66
    """Share of the answers that must name the same winner for a comparison not to be disputed."""
    too_fast_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds per hundred words shown, below which an answer is flagged as too fast; 0 flags none."""
    policies: Annotated[tuple[PolicyConfig, ...], Field(max_length=9)] = ()
    """Each gives one answer a turn; a lone one gives two."""


AnyRecipe = Recipe | PretrainRecipe | RlRecipe
RECIPES: Mapping[str, type[AnyRecipe]] = {"round": Recipe, "pretrain": PretrainRecipe, "rl": RlRecipe}
"""By the recipe's `method`."""


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> AnyRecipe:
    """Read a TOML recipe and apply `section.key=value` overrides (values in TOML syntax, or bare strings).

    Its `method` says which keys it may have.

    Raises:
        ConfigError: file missing, TOML malformed, a key unknown or a value out of range; every problem is named.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {str(path)!r} does not exist; `postgrad quickstart` runs the packaged one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"recipe {str(path)!r} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {e.strerror}; name a TOML file of yours") from None
    for override in overrides:
        _apply(raw, override)
    method = raw.get("method", "round")
    if method not in RECIPES:
        raise ConfigError(f"recipe {str(path)!r}: 'method' = {method!r} is not one of {', '.join(RECIPES)}")
    try:
        return RECIPES[method].model_validate(raw)
    except ValidationError as e:
        raise ConfigError(f"recipe {str(path)!r}: " + "; ".join(_explain(p) for p in e.errors())) from None


def load_queue_config(path: Path | None) -> QueueConfig:
    """Read the TOML of `postgrad label serve`; None is all defaults.

    Raises:
        ConfigError: as `load_recipe`.
    """
    try:
        return QueueConfig.model_validate({} if path is None else tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"{str(path)!r} cannot be read: {e.strerror}; name a TOML file of yours") from None
    except ValidationError as e:
        raise ConfigError(f"{str(path)!r}: " + "; ".join(_explain(p) for p in e.errors())) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.split(".")
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    table[name] = value


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"missing key {key!r}"
    said = problem["msg"].removeprefix("Value error, ")
    return f"{key!r} = {problem['input']!r}: {said[0].lower()}{said[1:]}"
