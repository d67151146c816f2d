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
    min_accuracy: Share = 0.55


class BaseRecipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: int = 0
    batch_tokens: Positive = 2048
    """Most tokens, padding included, that one forward pass may hold; changes memory, never the result."""
