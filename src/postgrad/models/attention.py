"""The attention that transformers' own layers call: what the forward pass's plan says, or plain SDPA without one."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from postgrad.errors import DataError

NAME = "postgrad"
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
    ) -> torch.Tensor:
        """Attention of one layer, [1, H, N, D]; `layer.layer_idx` says which.

        Args:
            layer: the attention module that asks.
            q_1HND: queries, rotated.
            k_1KND: keys, rotated; several query heads may share one.
            v_1KND: values.
            scale: of the scores.
            window: tokens back that the layer sees, themselves included; None is all of them.
        """
        ...


def use_plans(lm: Any) -> None:
    """Let forward passes of `lm` bring a plan; without one they are as before.

    Raises:
        DataError: transformers has no exchangeable attention for this architecture, or its layers squash attention
            scores, which no plan does.
    """
    config = lm.config.get_text_config()
    lm.set_attn_implementation(NAME)
    if config._attn_implementation != NAME or getattr(config, "attn_logit_softcapping", None):
        raise DataError(f"the attention of {config.model_type!r} models cannot be exchanged; use another architecture")


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(module, query, key, value, scale=scale, window=sliding_window)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
