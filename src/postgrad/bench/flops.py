"""What a model has to compute and to read, counted from its shape: the numerator of a share of the machine's peak.

Counted is what the result needs, each once: recomputation in a backward pass, padding and a prompt that is computed
again for a sibling are work that was done, but not work that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postgrad.models.policy import PolicyModel

FORWARD = 2
"""A multiplication and an addition for every weight and token."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Sequences that share a prefix; one without siblings has a prefix of zero tokens."""

    prefix: int
    owns: tuple[int, ...]
    """Tokens of each sequence behind the prefix."""

    @property
    def tokens(self) -> int:
        return self.prefix + sum(self.owns)

    @property
    def pairs(self) -> int:
        """(query, key) pairs under the causal mask."""
        own = sum(m * self.prefix + m * (m + 1) // 2 for m in self.owns)
        return self.prefix * (self.prefix + 1) // 2 + own


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the count needs to know of a model."""

    linear: int
    """Weights of the blocks' matrices: N."""
    adapter: int
    """Weights of low-rank matrices; where there are any, they alone are trained."""
    vocabulary: int
    """Rows times columns of the vocabulary matrix."""
    layers: int
    query_width: int
    """Heads times their width."""
    kv_width: int
    """Heads of keys times their width; as many values again."""

    def forward(self, tokens: int, positions: int) -> int:
        """FLOPs of reading `tokens`, with the vocabulary's product at `positions` of them."""
        return FORWARD * ((self.linear + self.adapter) * tokens + self.vocabulary * positions)

    def train(self, tokens: int, positions: int) -> int:
        """FLOPs of a forward and a backward pass.

        Backward, a trained matrix costs the gradient of its input and of itself, 4 a weight and token, and a frozen one
        that of its input alone, 2.
        """
        frozen = self.linear * tokens + self.vocabulary * positions
        if not self.adapter:
            return 3 * FORWARD * frozen
        return 2 * FORWARD * frozen + 3 * FORWARD * self.adapter * tokens

    def attention(self, bundles: Sequence[Bundle], *, backward: bool) -> int:
        """FLOPs of queries times keys and weights times values; twice as many again backward."""
        forward = 2 * FORWARD * self.layers * self.query_width * sum(bundle.pairs for bundle in bundles)
        return 3 * forward if backward else forward

    def decode_bytes(self, prompt: int, lengths: Sequence[int], *, width: int) -> int:
        """Bytes that decoding has to read: every weight once a step, the prompt's keys and values once a step, and at
        every token the keys and values before it.

        Args:
            prompt: tokens of the shared prompt.
            lengths: tokens decoded for each request, all requests at once.
            width: bytes of a number.
        """  # fmt: skip
        steps = max(lengths)
        weights = (self.linear + self.adapter + self.vocabulary) * steps
        cached = prompt * steps + sum(n * (n - 1) // 2 for n in lengths)
        return width * (weights + 2 * self.layers * self.kv_width * cached)


def model_shape(model: PolicyModel) -> ModelShape:
    """Count a model's weights; every two-dimensional parameter of a block is a matrix that each token meets."""
    linear = adapter = 0
    for layer in model.layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 2 and "lora_" in name:
                adapter += parameter.numel()
            elif parameter.ndim == 2:
                linear += parameter.numel()
    config = model.lm.config.get_text_config()  # type: ignore[operator, union-attr]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        linear=linear,
        adapter=adapter,
        vocabulary=model.vocabulary_VD.numel(),
        layers=len(model.layers),
        query_width=config.num_attention_heads * head,
        kv_width=(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head,
    )
