"""What a model takes in memory, counted on one that has none for its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from postgrad.models.attention import NO_MASK
from postgrad.models.load import add_adapter
from postgrad.models.policy import PackedPlan, PolicyModel
from postgrad.ops.attention import Spans, plan_attention
from postgrad.ops.logprobs import CHUNK

FLOAT_BYTES = 4
KERNELS = 50_000_000
"""What torch and oneDNN take once they work: compiled kernels, scratch memory."""
HOLES = 0.5
"""Of all layers' activations, recomputed ones too: freed pieces of the heap that nothing later fits into."""
_TOKENS = 64


def blank_policy(config: Any, *, heads: tuple[str, ...] = (), lora_rank: int = 0) -> PolicyModel:
    """What `load_policy` or `fresh_policy` would make of a transformers configuration, on torch's meta device."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return PolicyModel(lm, heads=heads, adapter=add_adapter(lm, lora_rank) if lora_rank else None)


def activation_bytes(model: PolicyModel) -> int:
    """Bytes a token that a forward pass of a blank model leaves for the backward pass, its parameters aside.

    Counted where autograd keeps them, so that they are this package's own products and attention that are counted.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.body(
            input_ids=ids,
            position_ids=ids,
            attention_mask=NO_MASK,
            use_cache=False,
            plan=PackedPlan(plan_attention(Spans(((0, _TOKENS),), ())), exact=False),
        )
    return sum(storage.nbytes() for storage in kept.values()) // _TOKENS


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes, but for the plain counts at the end."""

    weights: int
    trained: int
    """Of the weights that learn."""
    kept: int
    """Activations of one token in all layers, without gradient checkpointing."""
    inputs: int
    """What all layers read of one token: kept even with gradient checkpointing."""
    keys_values: int
    """Of one token in all layers, while the model is trained."""
    adapted: bool
    layers: int
    hidden: int
    words: int
    context: int

    @property
    def layer(self) -> int:
        """Activations of one token in one layer."""
        return self.kept // self.layers

    def activations(self, tokens: int, *, checkpointing: bool) -> int:
        """Of a micro-batch: what is kept for the backward pass, the layer under way, and the heap's holes."""
        return round(tokens * ((self.inputs if checkpointing else self.kept) + self.layer + HOLES * self.kept))

    @property
    def vocabulary(self) -> int:
        """Logits of a chunk, thrice, and the vocabulary's matrix as the library's product wants it."""
        return self.words * FLOAT_BYTES * (3 * CHUNK + self.hidden)


def count_sizes(model: PolicyModel) -> Sizes:
    """Of a blank model."""
    config: Any = model.lm.config.get_text_config()  # type: ignore[operator, union-attr]
    layers = len(model.layers)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Sizes(
        weights=sum(p.nbytes for p in model.parameters()),
        trained=sum(p.nbytes for p in model.parameters() if p.requires_grad),
        kept=activation_bytes(model),
        inputs=layers * config.hidden_size * FLOAT_BYTES,
        keys_values=2 * layers * key_heads * head * 2 * FLOAT_BYTES,
        adapted=model.adapter is not None,
        layers=layers,
        hidden=config.hidden_size,
        words=len(model.vocabulary_VD),
        context=model.context,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the fullest moment of one stage."""

    stage: str
    process: int
    """Interpreter, libraries, and whatever else is there already."""
    weights: int
    reference: int = 0
    reward_model: int = 0
    adam: int = 0
    gradients: int = 0
    activations: int = 0
    vocabulary: int = 0
    """Logits of a chunk, and the vocabulary's matrix as the library's product wants it."""
    sampling: int = 0
    """Keys, values, logits and packed weights; gone while gradients are computed."""
    merging: int = 0
    """The adapted model's copy that is saved, likewise."""

    @property
    def peak(self) -> int:
        always = self.process + self.weights + self.reference + self.reward_model + self.adam + self.gradients
        return always + max(self.activations + self.vocabulary, self.sampling, self.merging)


def learning(stage: str, process: int, sizes: Sizes, tokens: int, *, checkpointing: bool = False) -> Estimate:
    """Training on logprobs in micro-batches of `tokens`."""
    return Estimate(
        stage,
        process=process + KERNELS,
        weights=sizes.weights,
        adam=2 * sizes.trained,
        gradients=sizes.trained,
        activations=sizes.activations(tokens, checkpointing=checkpointing),
        vocabulary=sizes.vocabulary,
        merging=sizes.weights if sizes.adapted else 0,
    )
