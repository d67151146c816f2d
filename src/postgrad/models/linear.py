"""Linear layers by the fastest product there is, the same one when sampling and when training."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import nn

from postgrad.ops.product import AdaptedProduct, Product


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and another product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out: torch.Tensor = Product.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)


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
        out: torch.Tensor = AdaptedProduct.apply(  # type: ignore[no-untyped-call]
            rows, base.weight, base.bias, a, b, self.scaling[name]
        )
        return out.view(*x.shape[:-1], base.out_features)


def use_fast_products(lm: nn.Module) -> None:
    """Give every plain linear layer of `lm`, adapted or not, the classes above; parameters stay as and where they are.

    Adapters are those of `models.load`: plain LoRA without dropout.
    """
    for module in lm.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is lora.Linear:
            module.__class__ = LoraLinear
