"""Method "pretrain": a base model from text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from postgrad.config.sections import BaseRecipe, PlacedConfig, Positive, Section


class FreshModelConfig(PlacedConfig):
    config: dict[str, Any]
    """`model_type` and any other keys of that transformers configuration; vocabulary and token ids are filled in."""


class TextConfig(Section):
    source: str
    """"books", or a .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet file; rows hold their document in `text`."""


class TokenizerConfig(Section):
    vocab_size: Annotated[int, Field(gt=256)]
    """Bytes, end of text and merges."""


class PretrainConfig(Section):
    steps: Positive
    rows_per_step: Positive
    """Each as long as the model's context."""
    learning_rate: Annotated[float, Field(gt=0)]
    evaluate_every: Positive
    """Steps between two readings of the validation loss, and between two checkpoints."""


class PretrainRecipe(BaseRecipe):
    """A base model from text alone."""

    method: Literal["pretrain"]
    model: FreshModelConfig
    data: TextConfig
    tokenizer: TokenizerConfig
    pretrain: PretrainConfig
