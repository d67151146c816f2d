"""The attention that transformers' own layers call: what the forward pass's plan says, or plain SDPA without one."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from postgrad.errors import DataError
from postgrad.ops.attention import masked_attention

NAME = "postgrad"
BEYOND = ("s_aux", "sinks", "position_bias", "block_indices")
"""What some layers hand to their attention besides a window and a softcap, and no plan knows of."""
NO_MASK = torch.empty(1, 1, 0, 0)
"""Given to a body whose plan knows who sees whom: transformers then builds no mask of its own."""


class AttentionPlan(Protocol):
    """Who sees whom in one forward pass; handed to the body as `plan` and passed on by it to every layer."""

    def attend(
        self,
        layer: Any,
        q_1HND: torch.Tensor,
        k_1KND: torch.Tensor,
        v_1KND: torch.Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of one layer, [1, H, N, D]; `layer.layer_idx` says which.

        Args:
            layer: the attention module that asks.
            q_1HND: queries, rotated.
            k_1KND: keys, rotated; several query heads may share one.
            v_1KND: values.
            scale: of the scores.
            window: tokens back that the layer sees, themselves included; None is all of them.
            softcap: bound that the scores are squashed to before the mask; None where they are not.
        """
        ...


def use_plans(lm: Any) -> None:
    """Let forward passes of `lm` bring a plan; without one they are as before.

    Raises:
        DataError: transformers has no exchangeable attention for this architecture.
    """
    config = lm.config.get_text_config()
    lm.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:
        raise DataError(f"the attention of {config.model_type!r} models cannot be exchanged; use another architecture")
    if others := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise DataError(f"{config.model_type!r} models have layers of {min(others)!r}, which do not run here")


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if given := [name for name in BEYOND if kwargs.get(name) is not None]:
        raise DataError(f"its attention has {given[0]!r}")
    if plan is None and attention_mask is not None and not attention_mask.numel():
        raise DataError("its layers keep what a forward pass brings from their attention")
    if plan is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plan is not None:
        out = plan.attend(module, query, key, value, scale=scale, window=sliding_window, softcap=softcap)
    else:
        seen = attention_mask
        if seen is None:
            length, keys = query.shape[2], key.shape[2]
            seen = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)
        out = masked_attention(query, key, value, seen, scale=scale, softcap=softcap)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
