"""A causal language model with optional heads, run over packed sequences.

The same modules sample and train, so the engine's logprobs and the trainer's differ only by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from postgrad.errors import DataError
from postgrad.ops.logprobs import token_logprobs
from postgrad.ops.packing import Packed, pack


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

    def layer_masks(
        self, seen: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The attention mask as the body takes it: transformers adds no sliding window to a mask that it is given.

        Args:
            seen: [R, 1, Q, K] bool, which keys the queries may see.
            query_positions: [R, Q], each token's place in its own sequence.
            key_positions: [R, K], or [1, K].
        """
        config: Any = self.lm.config.get_text_config()  # type: ignore[operator, union-attr]
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if window is None or (kinds and "sliding_attention" not in kinds):
            return seen
        near = seen & (query_positions[:, None, :, None] - key_positions[:, None, None, :] < window)
        return {"full_attention": seen, "sliding_attention": near} if kinds else near

    def states(self, packed: Packed) -> torch.Tensor:
        """Last hidden states of packed tokens, [R * L, D]."""
        positions = packed.position_ids_RL
        out = self.body(
            input_ids=packed.input_ids_RL,
            attention_mask=self.layer_masks(packed.attention_mask, positions, positions),
            position_ids=positions,
            use_cache=False,
        )
        states: torch.Tensor = out.last_hidden_state.flatten(0, 1)
        return states

    def token_outputs(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, mask_BT: torch.Tensor, *, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logprobs, entropy and, with a value head, values at the tokens of the mask, zero elsewhere; each [B, T].

        The state that predicts token t is the hidden state at t - 1; the vocabulary is only ever multiplied
        with states that predict a token of the mask. Sequences that share all tokens before their first masked
        one share the computation of them.
        """
        packed = pack(input_ids_BT, lengths_B, prefix_lengths_B=mask_BT.int().argmax(1))
        before_ND = self.states(packed)[packed.place_BT.roll(1, dims=1)[mask_BT]]
        logprobs, entropy = token_logprobs(
            before_ND, self.vocabulary_VD, input_ids_BT[mask_BT], temperature=temperature
        )
        values = self.heads["value"](before_ND).squeeze(-1) if "value" in self.heads else None
        zeros_BT = torch.zeros(mask_BT.shape, device=before_ND.device)
        return (
            zeros_BT.masked_scatter(mask_BT, logprobs),
            zeros_BT.masked_scatter(mask_BT, entropy),
            None if values is None else zeros_BT.masked_scatter(mask_BT, values),
        )

    def sequence_rewards(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, *, prefix_lengths_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The reward head's reading of each sequence's last token, [B]; equal prefixes are computed once."""
        packed = pack(input_ids_BT, lengths_B, prefix_lengths_B=prefix_lengths_B)
        last_B = packed.place_BT[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]
        rewards: torch.Tensor = self.heads["reward"](self.states(packed)[last_B]).squeeze(-1)
        return rewards
