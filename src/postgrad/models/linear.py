"""Linear layers by the fastest product there is, with the same bits when sampling and when training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners import lora
from torch import nn

from postgrad.models.memory import pages_of_its_own, return_freed_memory
from postgrad.ops.lookup import Lookup
from postgrad.ops.product import AdaptedProduct, PackedWeight, Product, add_adapter, can_pack


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and another product."""

    packed: PackedWeight | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out: torch.Tensor = (
            Product.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
            if self.packed is None
            else self.packed(rows, self.bias)
        )
        return out.view(*x.shape[:-1], self.out_features)


class Embedding(nn.Embedding):
    """`nn.Embedding` that adds to a gradient in place."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = Lookup.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return out


class LoraLinear(lora.Linear):  # type: ignore[misc]
    """peft's layer with one plain adapter, without a pass over memory for each of its factors."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.base_layer
        if self.disable_adapters or self.merged:
            return base(x)  # type: ignore[no-any-return]
        (name,) = self.active_adapters
        rows = x.reshape(-1, base.in_features)
        # The factors stay float32 beside bfloat16 weights: they are what the optimizer adds small steps to.
        a, b = (factors[name].weight.to(rows.dtype) for factors in (self.lora_A, self.lora_B))
        if torch.is_grad_enabled():
            out: torch.Tensor = AdaptedProduct.apply(rows, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
        else:
            out = add_adapter(base(rows), rows, a, b, self.scaling[name])
        return out.view(*x.shape[:-1], base.out_features)


@contextmanager
def packed_weights(lm: nn.Module, *, keep: bool) -> Iterator[None]:
    """Multiply by packed copies of the weights, without gradients; those to `keep` are there the next time."""
    layers = [m for m in lm.modules() if isinstance(m, Linear) and can_pack(m.weight)]
    stale = [m for m in layers if m.packed is None or not m.packed.is_of(m.weight)]
    if stale:
        # Copies ask for twice the memory that they fill, and take the place of what training has freed.
        return_freed_memory()
    with pages_of_its_own():
        for layer in stale:
            layer.packed = PackedWeight(layer.weight)
    try:
        yield
    finally:
        if not keep:
            for layer in layers:
                layer.packed = None


def use_fast_products(lm: nn.Module) -> None:
    """Give every plain linear layer of `lm`, adapted or not, the classes above; parameters stay as and where they are.

    Adapters are those of `models.load`: plain LoRA without dropout.
    """
    for module in lm.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is nn.Embedding and module.max_norm is None and not module.sparse:
            module.__class__ = Embedding
        elif type(module) is lora.Linear and isinstance(module.base_layer, nn.Linear):
            module.__class__ = LoraLinear
