"""What recipes are made of: sections that more than one method has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["constant", "linear", "cosine"]
"""What the learning rate does after its warmup: stay, or fall to a tenth of the peak."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlacedConfig(Section):
    device: Device = "auto"
    """"auto" is the GPU where torch sees one (docs/gpu.md)."""
    dtype: Dtype = "auto"
    """Of the weights; "auto" is float32 on the CPU, bfloat16 on a GPU. The optimizer works in float32 either way."""


class ModelConfig(PlacedConfig):
    name: str
    """A packaged name, a local directory, a GGUF file or a hub id."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0 trains all weights."""
    gradient_checkpointing: bool = False
    """Compute each layer twice and keep none of its activations: less memory, a third more time."""


class RateConfig(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Schedule = "linear"
    warmup_frac: Share = 0.1
    """Share of the steps over which the rate climbs to its peak."""


class BarConfig(Section):
    """What a reward model's certificate must show before any policy may be optimised against it."""

    min_accuracy: Share = 0.55
    """On held-out pairs; refused where the whole 95% interval lies below it."""
    min_gain: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Accuracy beyond the best simple baseline: refused where the whole interval of the difference lies below it."""
    max_calibration_error: Share = 0.25
    """After a fitted temperature."""
    max_probe_gain: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviations of the reward that padding, markdown, flattery or repetition may add, on average; refused
    where the whole interval lies above it."""


class PassesConfig(RateConfig):
    epochs: Positive = 1
    examples_per_step: Positive = 16


class SftConfig(PassesConfig):
    num_examples: Positive


class RewardConfig(Section):
    epochs: Positive = 1
    prompts_per_step: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    train_layers: Annotated[int, Field(ge=0)] = 0
    """Topmost layers that learn; 0 trains all of them."""
    margin_per_grade: Annotated[float, Field(ge=0)] = 0.0
    """Added to the margin that "clearly" and "much better" have to win by, once and twice."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels taken to be the wrong way round."""
    num_heads: Positive = 1
    """Rewards on a shared trunk, each learned from its own bootstrap of the prompts; their mean is the reward, and
    their standard deviation says how far it can be trusted."""
    residualise_length: bool = False
    """Take from the reward what an answer's length alone predicts, as read on held-out answers."""
    bar: BarConfig = BarConfig()


class BaseRecipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: int = 0
    batch_tokens: Positive = 2048
    """Most tokens, padding included, that one forward pass may hold; changes memory, never the result."""
