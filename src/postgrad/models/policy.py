"""A causal language model with optional heads, run over packed sequences.

The same modules sample and train, so the engine's logprobs and the trainer's differ only by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from postgrad.errors import DataError
from postgrad.models.architecture import context_of, own_logprobs, probe, refusing, require_same, unembedding_of
from postgrad.models.attention import NO_MASK, use_plans
from postgrad.models.layers import use_lean_layers
from postgrad.models.linear import use_fast_products
from postgrad.ops.attention import Plan, packed_attention, plan_attention, spans_mask
from postgrad.ops.logprobs import Unembedding, token_logprobs
from postgrad.ops.packing import pack

MASKED_ROW = 256
"""Tokens of a packed row where attention works from a mask and pays for the square of it."""


class PackedPlan:
    """Sequences laid end to end in one row; an `AttentionPlan`."""

    def __init__(self, plan: Plan, *, exact: bool) -> None:
        self._plan = plan
        self._exact = exact

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
        assert softcap is None, "the flash kernel squashes no scores"
        return packed_attention(q_1HND, k_1KND, v_1KND, self._plan, scale=scale, exact=self._exact)


class Listener:
    """An `AttentionPlan` that attends to nothing and remembers the windows that layers see."""

    def __init__(self) -> None:
        self.windows: set[int | None] = set()

    def attend(self, layer: Any, q_1HND: torch.Tensor, *kv: torch.Tensor, window: int | None, **_: Any) -> torch.Tensor:
        self.windows.add(window)
        return torch.zeros_like(q_1HND)


class PolicyModel(nn.Module):
    """Wraps a transformers causal LM; `value_head` reads the state before each token, `reward_head` the last state.

    Args:
        lm: any decoder-only `*ForCausalLM`.
        heads: names of scalar heads to add, out of "value" and "reward".
        adapter: the peft model that has put its layers into `lm`.
        num_rewards: rewards that the one head reads: an ensemble on a shared trunk, whose mean is the reward.

    Raises:
        DataError: `lm` does something that is not done here, and its logprobs would not be its own.
    """

    def __init__(
        self, lm: nn.Module, *, heads: tuple[str, ...] = (), adapter: Any = None, num_rewards: int = 1
    ) -> None:
        super().__init__()
        # Out of nn.Module's sight: its parameters are those of `lm` already.
        object.__setattr__(self, "adapter", adapter)
        self.adapter: Any
        config: Any = lm.config
        text_config = config.get_text_config()
        # A model without values, which only its sizes are asked of, says nothing.
        own_BT = None if next(lm.parameters()).is_meta else own_logprobs(lm.eval())
        use_plans(lm)
        use_fast_products(lm)
        use_lean_layers(lm)
        # transformers denies this token's embedding its gradient, and where it is the end token it has one to learn.
        lm.get_input_embeddings().padding_idx = None  # type: ignore[operator]
        self.lm = lm
        self.heads = nn.ModuleDict(
            {name: nn.Linear(text_config.hidden_size, num_rewards if name == "reward" else 1) for name in heads}
        )
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            # A critic starts from zero, a reward model from N(0, 1 / sqrt(d + 1)): Stiennon et al. 2020
            # (arXiv:2009.01325), appendix B, and Ziegler et al. 2019 (arXiv:1909.08593).
            nn.init.normal_(head.weight, std=0.0 if name == "value" else (text_config.hidden_size + 1) ** -0.5)
            nn.init.zeros_(head.bias)
        if own_BT is not None:
            self._check(own_BT)

    @torch.no_grad()
    def _check(self, own_BT: torch.Tensor) -> None:
        """Whether sequences in one row, two of them with a shared prefix, have the logprobs that transformers gives.

        The probe is shorter than a window, so the layers are asked for theirs.
        """
        ids_BT = probe(self.lm)
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        mask_BT[:2, : ids_BT.shape[1] // 2] = False
        mask_BT[2, 0] = False
        lengths_B = torch.full((len(ids_BT),), ids_BT.shape[1])
        with refusing(self.lm):
            found_BT, _, _ = self.token_outputs(ids_BT, lengths_B, mask_BT, temperature=1.0)
            zero_11, listener = torch.zeros_like(ids_BT[:1, :1], device=self.device), Listener()
            no_mask = NO_MASK.to(self.device)
            self.body(input_ids=zero_11, attention_mask=no_mask, position_ids=zero_11, use_cache=False, plan=listener)
            if listener.windows - {None} != {self.window} - {None}:
                raise DataError(f"its window is {self.window}, but its layers say {listener.windows}")
        require_same(self.lm, own_BT[mask_BT], found_BT.cpu()[mask_BT], where="packed sequences")

    @property
    def body(self) -> nn.Module:
        body: nn.Module = self.lm.get_decoder()  # type: ignore[operator]
        return body

    @property
    def layers(self) -> list[nn.Module]:
        return list(next(child for child in self.body.children() if isinstance(child, nn.ModuleList)))

    @property
    def vocabulary_VD(self) -> torch.Tensor:
        weight: torch.Tensor = self.lm.get_output_embeddings().weight  # type: ignore[operator]
        return weight

    @property
    def unembedding(self) -> Unembedding:
        return unembedding_of(self.lm)

    @property
    def trains(self) -> bool:
        return any(p.requires_grad for p in self.lm.parameters())

    @property
    def device(self) -> torch.device:
        return self.vocabulary_VD.device

    @property
    def context(self) -> int:
        return context_of(self.lm.config)

    @property
    def squashed(self) -> bool:
        """Whether attention scores are bounded, as in Gemma 2, which the flash kernel does not do."""
        config: Any = self.lm.config.get_text_config()  # type: ignore[operator, union-attr]
        return getattr(config, "attn_logit_softcapping", None) is not None

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
        all_seen = self.window is None or int(lengths_B.max()) <= self.window
        flash = self.device.type == "cpu" and not self.squashed and all_seen
        packed = pack(
            input_ids_BT, lengths_B, prefix_lengths_B=prefix_lengths_B, row_tokens=None if flash else MASKED_ROW
        )
        attention: dict[str, Any]
        tokens_RL, positions_RL = packed.input_ids_RL.to(self.device), packed.position_ids_RL.to(self.device)
        if flash:
            # Where a backward pass follows, logprobs are not read but moved, and speed counts.
            plan = PackedPlan(plan_attention(packed.spans), exact=not torch.is_grad_enabled())
            attention = {"attention_mask": NO_MASK, "plan": plan}
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

    def states_before(self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """The states that predict the tokens of the mask, row by row, [N, D]: of token t, the hidden state at t - 1.

        Sequences that share all tokens before their first masked one share the computation of them.
        """
        states_ND, place_BT = self.states(input_ids_BT, lengths_B, mask_BT.int().argmax(1))
        return states_ND[place_BT.roll(1, dims=1)[mask_BT].to(self.device)]

    def token_outputs(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, mask_BT: torch.Tensor, *, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Logprobs, entropy and, with a value head, values at the tokens of the mask, zero elsewhere; each [B, T].

        The vocabulary is only ever multiplied with states that predict a token of the mask.
        """
        before_ND = self.states_before(input_ids_BT, lengths_B, mask_BT)
        device = self.device
        targets_N = input_ids_BT[mask_BT].to(device)
        logprobs, entropy = token_logprobs(before_ND, self.unembedding, targets_N, temperature=temperature)
        values = self._read("value", before_ND).squeeze(-1) if "value" in self.heads else None
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
        """The reward of each sequence, [B]: the mean of its ensemble's."""
        return self.ensemble_rewards(input_ids_BT, lengths_B, prefix_lengths_B=prefix_lengths_B).mean(-1)

    def ensemble_rewards(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, *, prefix_lengths_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the reward head reads at each sequence's last token, [B, K]; equal prefixes are computed once."""
        rows_B = torch.arange(len(lengths_B))
        return self.rewards_at(input_ids_BT, lengths_B, rows_B, lengths_B - 1, prefix_lengths_B=prefix_lengths_B)

    def rewards_at(
        self,
        input_ids_BT: torch.Tensor,
        lengths_B: torch.Tensor,
        rows_N: torch.Tensor,
        places_N: torch.Tensor,
        *,
        prefix_lengths_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the reward head reads at token `places_N` of sequence `rows_N`, [N, K], as of a step's last one."""
        states_ND, place_BT = self.states(input_ids_BT, lengths_B, prefix_lengths_B)
        return self._read("reward", states_ND[place_BT[rows_N, places_N].to(self.device)])

    def _read(self, name: str, states_ND: torch.Tensor) -> torch.Tensor:
        """A head's numbers, [N, K], in its own float32 whatever the type of the states."""
        head = self.heads[name]
        assert isinstance(head, nn.Linear)
        numbers_NK: torch.Tensor = head(states_ND.to(head.weight.dtype))
        return numbers_NK
