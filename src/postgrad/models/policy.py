"""A causal language model with optional heads, run over packed sequences.

The same modules sample and train, so the engine's logprobs and the trainer's differ only by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from postgrad.errors import DataError
from postgrad.models.attention import NO_MASK, use_plans
from postgrad.models.linear import use_fast_products
from postgrad.ops.attention import Plan, packed_attention, plan_attention, spans_mask
from postgrad.ops.logprobs import token_logprobs
from postgrad.ops.packing import pack

MASKED_ROW = 256
"""Tokens of a packed row where attention works from a mask and pays for the square of it."""


class PackedPlan:
    """Sequences laid end to end in one row; an `AttentionPlan`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

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
        return packed_attention(q_1HND, k_1KND, v_1KND, self._plan, scale=scale)


class PolicyModel(nn.Module):
    """Wraps a transformers causal LM; `value_head` reads the state before each token, `reward_head` the last state.

    Args:
        lm: any decoder-only `*ForCausalLM`.
        heads: names of scalar heads to add, out of "value" and "reward".
        adapter: the peft model that has put its layers into `lm`.
    """

    def __init__(self, lm: nn.Module, *, heads: tuple[str, ...] = (), adapter: Any = None) -> None:
        super().__init__()
        # Out of nn.Module's sight: its parameters are those of `lm` already.
        object.__setattr__(self, "adapter", adapter)
        self.adapter: Any
        config: Any = lm.config
        text_config = config.get_text_config()
        if getattr(text_config, "final_logit_softcapping", None) or getattr(text_config, "logit_scale", None):
            raise DataError(
                f"{text_config.model_type!r} rescales its logits, which the chunked logprobs do not support"
            )
        use_plans(lm)
        use_fast_products(lm)
        # transformers denies this token's embedding its gradient, and where it is the end token it has one to learn.
        lm.get_input_embeddings().padding_idx = None  # type: ignore[operator]
        self.lm = lm
        self.heads = nn.ModuleDict({name: nn.Linear(text_config.hidden_size, 1) for name in heads})
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            # A critic starts from zero, a reward model from N(0, 1 / sqrt(d + 1)): Stiennon et al. 2020
            # (arXiv:2009.01325), appendix B, and Ziegler et al. 2019 (arXiv:1909.08593).
            nn.init.normal_(head.weight, std=0.0 if name == "value" else (text_config.hidden_size + 1) ** -0.5)
            nn.init.zeros_(head.bias)

    @property
    def body(self) -> nn.Module:
        body: nn.Module = self.lm.get_decoder()  # type: ignore[operator]
        return body

    @property
    def layers(self) -> list[nn.Module]:
        layers = self.body.layers
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    @property
    def vocabulary_VD(self) -> torch.Tensor:
        weight: torch.Tensor = self.lm.get_output_embeddings().weight  # type: ignore[operator]
        return weight

    @property
    def device(self) -> torch.device:
        return self.vocabulary_VD.device

    @property
    def context(self) -> int:
        return int(self.lm.config.get_text_config().max_position_embeddings)  # type: ignore[operator, union-attr]

    @property
    def window(self) -> int | None:
        """How many tokens back the layers with sliding attention see, themselves included; None where all see all."""
        config: Any = self.lm.config.get_text_config()  # type: ignore[operator, union-attr]
        kinds = getattr(config, "layer_types", None)
        if getattr(config, "sliding_window", None) is None or (kinds and "sliding_attention" not in kinds):
            return None
        return int(config.sliding_window)

    def states(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, prefix_lengths_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states of the packed tokens, [N, D], and where token t of sequence b sits among them, [B, T].

        Sequences are packed on the CPU, and the places stay there; so they are given, here and below, on the CPU.
        """
        flash = self.device.type == "cpu" and (self.window is None or int(lengths_B.max()) <= self.window)
        packed = pack(
            input_ids_BT, lengths_B, prefix_lengths_B=prefix_lengths_B, row_tokens=None if flash else MASKED_ROW
        )
        attention: dict[str, Any]
        tokens_RL, positions_RL = packed.input_ids_RL.to(self.device), packed.position_ids_RL.to(self.device)
        if flash:
            attention = {"attention_mask": NO_MASK, "plan": PackedPlan(plan_attention(packed.spans))}
        else:
            seen = spans_mask(packed.spans, *tokens_RL.shape).to(self.device)
            attention = {"attention_mask": self._layer_masks(seen, positions_RL)}
        out = self.body(input_ids=tokens_RL, position_ids=positions_RL, use_cache=False, **attention)
        states: torch.Tensor = out.last_hidden_state.flatten(0, 1)
        return states, packed.place_BT

    def _layer_masks(self, seen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """The mask as the body takes it: transformers adds no sliding window to a mask that it is given."""
        if self.window is None:
            return seen
        near = seen & (positions[:, None, :, None] - positions[:, None, None, :] < self.window)
        kinds = getattr(self.lm.config.get_text_config(), "layer_types", None)  # type: ignore[operator, union-attr]
        return {"full_attention": seen, "sliding_attention": near} if kinds else near

    def token_outputs(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, mask_BT: torch.Tensor, *, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logprobs, entropy and, with a value head, values at the tokens of the mask, zero elsewhere; each [B, T].

        The state that predicts token t is the hidden state at t - 1; the vocabulary is only ever multiplied
        with states that predict a token of the mask. Sequences that share all tokens before their first masked
        one share the computation of them.
        """
        states_ND, place_BT = self.states(input_ids_BT, lengths_B, mask_BT.int().argmax(1))
        device = self.device
        before_ND = states_ND[place_BT.roll(1, dims=1)[mask_BT].to(device)]
        logprobs, entropy = token_logprobs(
            before_ND, self.vocabulary_VD, input_ids_BT[mask_BT].to(device), temperature=temperature
        )
        values = self._read("value", before_ND) if "value" in self.heads else None
        zeros_BT = torch.zeros(mask_BT.shape, device=device)
        mask_BT = mask_BT.to(device)
        return (
            zeros_BT.masked_scatter(mask_BT, logprobs),
            zeros_BT.masked_scatter(mask_BT, entropy),
            None if values is None else zeros_BT.masked_scatter(mask_BT, values),
        )

    def sequence_rewards(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, *, prefix_lengths_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The reward head's reading of each sequence's last token, [B]; equal prefixes are computed once."""
        states_ND, place_BT = self.states(input_ids_BT, lengths_B, prefix_lengths_B)
        last_B = place_BT[torch.arange(len(lengths_B)), lengths_B - 1]
        return self._read("reward", states_ND[last_B.to(self.device)])

    def _read(self, name: str, states_ND: torch.Tensor) -> torch.Tensor:
        """A head's numbers, [N], in its own float32 whatever the type of the states."""
        head = self.heads[name]
        assert isinstance(head, nn.Linear)
        numbers_N1: torch.Tensor = head(states_ND.to(head.weight.dtype))
        return numbers_N1.squeeze(-1)
