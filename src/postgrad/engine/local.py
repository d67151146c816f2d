"""Generation in this process, through the very modules that train.

Prompts shared by siblings are computed once. Finished sequences leave the batch, so a step costs what its
living sequences cost. Not here: paged memory, speculative decoding, more than one device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from postgrad.errors import EngineError
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Weights
from postgrad.types import Completion, FinishReason, GenerationRequest

OnToken = Callable[[int, int], bool]


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, one row a sequence, written at each row's own length."""

    is_sliding = False

    def __init__(self, slots: _Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self.slots.capacity, width)
        self.values = value_states.new_zeros(rows, heads, self.slots.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys[:, :, : key_states.shape[2]] = key_states
            self.values[:, :, : key_states.shape[2]] = value_states
            return key_states, value_states
        rows, lengths = self.slots.rows, self.slots.lengths
        self.keys[rows, :, lengths] = key_states[:, :, 0]
        self.values[rows, :, lengths] = value_states[:, :, 0]
        width = self.slots.width
        return self.keys[:, :, :width], self.values[:, :, :width]

    def select(self, index: torch.Tensor) -> None:
        self.keys, self.values = self.keys[index], self.values[index]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.width, 0

    def get_seq_length(self) -> int:
        return self.slots.width

    def get_max_length(self) -> int:
        return self.slots.capacity


class _Slots:
    """The batch's key-value memory and where each row stands in it."""

    def __init__(self, num_layers: int, prompt_lengths: torch.Tensor, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = prompt_lengths
        self.layers = [_Layer(self) for _ in range(num_layers)]
        self.cache = Cache(layers=self.layers)

    @property
    def rows(self) -> torch.Tensor:
        return torch.arange(len(self.lengths), device=self.lengths.device)

    @property
    def width(self) -> int:
        return int(self.lengths.max()) + 1

    def select(self, index: torch.Tensor) -> None:
        self.lengths = self.lengths[index]
        for layer in self.layers:
            layer.select(index)


class _Sequence:
    """One request under way."""

    def __init__(self, index: int, request: GenerationRequest, stop_ids: frozenset[int]) -> None:
        self.index = index
        self.request = request
        self.stop_ids = stop_ids | set(request.params.stop_ids)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: FinishReason | None = None
        generator = torch.Generator().manual_seed(request.seed)
        self.uniforms = torch.rand(request.params.max_tokens, generator=generator, dtype=torch.float64).tolist()


class LocalEngine:
    """A `RolloutEngine` over a `PolicyModel`.

    Args:
        model: shared with the trainer; then publishing weights is bumping the version.
        stop_ids: tokens that end a turn; sampled ones are part of the completion.
        decode: token ids to text, special tokens removed.
        max_batch: most sequences decoded together.
    """

    def __init__(
        self,
        model: PolicyModel,
        *,
        stop_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        max_batch: int = 128,
    ) -> None:
        self.model = model
        self.version = 0
        self.max_batch = max_batch
        self._stop_ids = frozenset(stop_ids)
        self._decode = decode

    async def generate(
        self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Args:
            requests: prompts with their sampling parameters and seeds.
            on_token: called from the generating thread with (request index, token id); False cancels the request.

        Raises:
            EngineError: a prompt and its tokens do not fit the model's context.
        """
        return await asyncio.to_thread(self.sample, requests, on_token)

    async def load_weights(self, weights: Weights, *, version: int) -> None:
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                if name.startswith("heads.") and name not in own:
                    continue  # a critic's head; sampling has no use for it
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    @torch.inference_mode()
    def sample(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Completion]:
        for request in requests:
            need = len(request.prompt_ids) + request.params.max_tokens
            if not request.prompt_ids or need > self.model.context:
                raise EngineError(
                    f"a prompt of {len(request.prompt_ids)} tokens plus {request.params.max_tokens} to generate does "
                    f"not fit the model's context of {self.model.context}; shorten the prompt or lower max_tokens"
                )
        self.model.eval()
        sequences = [_Sequence(i, r, self._stop_ids) for i, r in enumerate(requests)]
        # Similar lengths decode together: the key-value memory of a batch is as wide as its longest row.
        waiting = sorted(sequences, key=lambda s: len(s.request.prompt_ids))
        for start in range(0, len(waiting), self.max_batch):
            self._run(waiting[start : start + self.max_batch], on_token)
        return [self._completion(s) for s in sequences]

    def _run(self, alive: list[_Sequence], on_token: OnToken | None) -> None:
        slots, states_BD = self._prefill(alive)
        while True:
            tokens = self._next_tokens(alive, states_BD)
            for sequence, token in zip(alive, tokens, strict=True):
                self._advance(sequence, token, on_token)
            keep = [i for i, s in enumerate(alive) if s.finish is None]
            if not keep:
                return
            if len(keep) < len(alive):
                slots.select(torch.tensor(keep, device=slots.lengths.device))
                alive = [alive[i] for i in keep]
            states_BD = self._decode_step(slots, [s.ids[-1] for s in alive])

    def _prefill(self, alive: list[_Sequence]) -> tuple[_Slots, torch.Tensor]:
        prompts = list(dict.fromkeys(s.request.prompt_ids for s in alive))
        device = self.model.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        width = int(lengths.max())
        input_ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            input_ids[row, : len(prompt)] = torch.tensor(prompt)
        capacity = max(len(s.request.prompt_ids) + s.request.params.max_tokens for s in alive) + 1
        slots = _Slots(len(self.model.layers), lengths, max(capacity, width))
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        states = self._body(input_ids.to(device), causal.expand(len(prompts), 1, -1, -1), slots)
        last_states = states[torch.arange(len(prompts), device=device), lengths - 1]
        place = {prompt: row for row, prompt in enumerate(prompts)}
        siblings = torch.tensor([place[s.request.prompt_ids] for s in alive], device=device)
        slots.select(siblings)
        return slots, last_states[siblings]

    def _decode_step(self, slots: _Slots, tokens: list[int]) -> torch.Tensor:
        input_ids = torch.tensor(tokens, device=slots.lengths.device)[:, None]
        columns = torch.arange(slots.width, device=slots.lengths.device)
        seen = (columns <= slots.lengths[:, None])[:, None, None]
        states = self._body(input_ids, seen, slots, positions=slots.lengths[:, None])
        slots.lengths = slots.lengths + 1
        return states[:, 0]

    def _body(
        self, input_ids: torch.Tensor, mask: torch.Tensor, slots: _Slots, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        out = self.model.body(
            input_ids=input_ids,
            attention_mask=self.model.layer_masks(
                mask, positions, torch.arange(mask.shape[-1], device=mask.device)[None]
            ),
            position_ids=positions,
            past_key_values=slots.cache,
            use_cache=True,
        )
        states: torch.Tensor = out.last_hidden_state
        return states

    def _next_tokens(self, alive: list[_Sequence], states_BD: torch.Tensor) -> list[int]:
        """Sample by inverting the cumulative distribution at one uniform number per sequence and position."""
        params = [s.request.params for s in alive]
        # W @ h.T is the faster layout for a skinny product on the CPU.
        logits_BV = (self.model.vocabulary_VD @ states_BD.T).T.float().contiguous()
        temperatures = torch.tensor([p.temperature or 1.0 for p in params], device=logits_BV.device)
        logits_BV /= temperatures[:, None]
        weights_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
        weights_BV.exp_()
        totals_B = weights_BV.sum(-1, dtype=torch.float64)
        kept_BV = _truncate(weights_BV, alive)
        cumulative_BV = kept_BV.cumsum(-1)
        uniforms = torch.tensor([s.uniforms[len(s.ids)] for s in alive], device=logits_BV.device)
        last_B = cumulative_BV[:, -1]
        # Strictly below the total, or rounding could pick a token of weight zero.
        picks_B = torch.minimum((uniforms * last_B).float(), torch.nextafter(last_B, torch.zeros_like(last_B)))
        tokens_B = torch.searchsorted(cumulative_BV, picks_B[:, None], right=True).squeeze(1)
        greedy = torch.tensor([p.temperature == 0 for p in params], device=logits_BV.device)
        tokens_B = torch.where(greedy, logits_BV.argmax(-1), tokens_B)
        chosen_B = weights_BV.gather(1, tokens_B[:, None]).squeeze(1)
        logprobs = (chosen_B.double().log() - totals_B.log()).tolist()
        for sequence, logprob in zip(alive, logprobs, strict=True):
            sequence.logprobs.append(logprob)
        tokens: list[int] = tokens_B.tolist()
        return tokens

    def _advance(self, sequence: _Sequence, token: int, on_token: OnToken | None) -> None:
        sequence.ids.append(token)
        params = sequence.request.params
        if token in sequence.stop_ids or (params.stop and self._stopped(sequence)):
            sequence.finish = "stop"
        elif len(sequence.ids) == params.max_tokens:
            sequence.finish = "length"
        if on_token is not None and not on_token(sequence.index, token) and sequence.finish is None:
            sequence.finish = "cancelled"

    def _stopped(self, sequence: _Sequence) -> bool:
        text = self._decode(sequence.ids)
        return any(stop in text for stop in sequence.request.params.stop)

    def _completion(self, sequence: _Sequence) -> Completion:
        ids = sequence.ids
        text = self._decode(ids[:-1] if ids and ids[-1] in sequence.stop_ids else ids)
        cuts = [at for at in (text.find(stop) for stop in sequence.request.params.stop) if at >= 0]
        assert sequence.finish is not None
        return Completion(
            token_ids=tuple(ids),
            logprobs=tuple(sequence.logprobs),
            finish_reason=sequence.finish,
            policy_version=self.version,
            text=text[: min(cuts)] if cuts else text,
        )


def _truncate(weights_BV: torch.Tensor, alive: list[_Sequence]) -> torch.Tensor:
    """Zero what top-k and nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751) leave out."""
    rows = [i for i, s in enumerate(alive) if s.request.params.top_p < 1 or s.request.params.top_k > 0]
    if not rows:
        return weights_BV
    kept = weights_BV.clone()
    for i in rows:
        params = alive[i].request.params
        ordered, index = kept[i].sort(descending=True)
        share_before = (ordered.cumsum(0) - ordered) / ordered.sum()
        drop = share_before >= params.top_p
        if params.top_k > 0:
            drop[params.top_k :] = True
        drop[0] = False
        kept[i, index[drop]] = 0
    return kept
