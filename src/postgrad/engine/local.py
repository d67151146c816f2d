"""Generation in this process, through the very modules that train.

Continuous batching: a finished sequence leaves at once and a waiting one takes its place in the same forward pass that
continues the others, be it of another call. Not here: speculative decoding, more than one device.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress

import torch

from postgrad.engine.memory import Memory
from postgrad.engine.sampling import next_tokens
from postgrad.errors import EngineError
from postgrad.models.architecture import probe, refusing, require_same
from postgrad.models.attention import NO_MASK
from postgrad.models.linear import packed_weights
from postgrad.models.policy import PolicyModel
from postgrad.protocols import Weights
from postgrad.types import Completion, FinishReason, GenerationRequest, SamplingParams

OnToken = Callable[[int, int], bool]
MIN_ROWS = 12
"""Products with fewer rows go through other kernels, whose sums end in other bits than the trainer's: oneDNN's with
one row, MKL's, which adapters use, with less than twelve."""
PROMPT_TOKENS = 1024
"""New prompts' tokens that join one forward pass; a longer prompt joins alone."""


class _Sequence:
    """One request under way."""

    def __init__(
        self, index: int, request: GenerationRequest, stop_ids: frozenset[int], on_token: OnToken | None
    ) -> None:
        self.index = index
        self.request = request
        self.stop_ids = stop_ids | set(request.params.stop_ids)
        self.on_token = on_token
        self.answer: Future[Completion] = Future()
        """Cancelled when nobody waits for it any more."""
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
        cache_tokens: most tokens whose keys and values are held, padding and limits included, unless one request
            alone needs more.

    Raises:
        DataError: tokens sampled one after the other have other logprobs than the whole sequence, as in an architecture
            that remembers more than keys and values.
    """

    def __init__(
        self,
        model: PolicyModel,
        *,
        stop_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        max_batch: int = 128,
        cache_tokens: int = 32_768,
    ) -> None:
        self.model = model
        self.version = 0
        self.max_batch = max_batch
        self.cache_tokens = cache_tokens
        self._stop_ids = frozenset(stop_ids)
        self._decode = decode
        self._waiting: deque[_Sequence] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._check_decoding()

    @torch.inference_mode()
    def _check_decoding(self) -> None:
        lm, (first, *_) = self.model.lm, probe(self.model.lm)[0].tolist()
        params = SamplingParams(max_tokens=min(4, self.model.context - 1), temperature=0.0)
        with refusing(lm):
            sampled = self.sample([GenerationRequest((first,), params, seed=0)])[0]
        ids_1T = torch.tensor([[first, *sampled.token_ids]])
        mask_1T = torch.ones_like(ids_1T, dtype=torch.bool)
        mask_1T[0, 0] = False
        lengths_1 = torch.tensor([ids_1T.shape[1]])
        whole_1T, _, _ = self.model.token_outputs(ids_1T, lengths_1, mask_1T, temperature=1.0)
        require_same(lm, whole_1T.cpu()[mask_1T], torch.tensor(sampled.logprobs), where="tokens sampled one by one")

    async def generate(
        self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Args:
            requests: prompts with their sampling parameters and seeds.
            on_token: called from the engine's thread with (request index, token id); False cancels the request. Such
                calls may overlap: their requests share the forward passes, and to cancel a call is to cancel its
                requests. Without it nobody waits beside the work, and it is done in the calling thread, whose thread
                pools are warm: 513 against 348 tokens/s for 32 answers of a 135M model.

        Raises:
            EngineError: a prompt and its tokens do not fit the model's context.
        """
        if on_token is None:
            return self.sample(requests)
        sequences = self._sequences(requests, on_token)
        self._waiting.extend(_in_order(sequences))
        self._thread.submit(self._run)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(s.answer) for s in sequences))
        finally:
            for sequence in sequences:
                sequence.answer.cancel()

    def _run(self) -> None:
        """Serve those who wait, if the call before has not done so already."""
        try:
            _Batch(self, self._waiting).run()
        finally:
            if self._waiting:
                self._thread.submit(self._run)

    async def load_weights(self, weights: Weights, *, version: int) -> None:
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                if name.startswith("heads.") and name not in own:
                    continue  # a critic's head; sampling has no use for it
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def sample(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """As `generate`, in the calling thread."""
        sequences = self._sequences(requests, None)
        _Batch(self, deque(_in_order(sequences))).run()
        return [s.answer.result() for s in sequences]

    def _sequences(self, requests: Sequence[GenerationRequest], on_token: OnToken | None) -> list[_Sequence]:
        for request in requests:
            self._check(request)
        return [_Sequence(i, r, self._stop_ids, on_token) for i, r in enumerate(requests)]

    def _check(self, request: GenerationRequest) -> None:
        need = len(request.prompt_ids) + request.params.max_tokens
        if not request.prompt_ids or need > self.model.context:
            raise EngineError(
                f"a prompt of {len(request.prompt_ids)} tokens plus {request.params.max_tokens} to generate does "
                f"not fit the model's context of {self.model.context}; shorten the prompt or lower max_tokens"
            )

    def advance(self, sequence: _Sequence, token: int, logprob: float) -> None:
        """Append a sampled token and see whether it was the last."""
        sequence.ids.append(token)
        sequence.logprobs.append(logprob)
        params = sequence.request.params
        if token in sequence.stop_ids or (params.stop and self._stopped(sequence)):
            sequence.finish = "stop"
        elif len(sequence.ids) == params.max_tokens:
            sequence.finish = "length"
        wanted = not sequence.answer.cancelled()
        if wanted and sequence.on_token is not None:
            wanted = sequence.on_token(sequence.index, token)
        if not wanted and sequence.finish is None:
            sequence.finish = "cancelled"

    def _stopped(self, sequence: _Sequence) -> bool:
        text = self._decode(sequence.ids)
        return any(stop in text for stop in sequence.request.params.stop)

    def completion(self, sequence: _Sequence) -> Completion:
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


def _in_order(sequences: Sequence[_Sequence]) -> list[_Sequence]:
    """Siblings together, after prompts of their length: what lies in memory is padded to the longest."""
    return sorted(sequences, key=lambda s: (len(s.request.prompt_ids), s.request.prompt_ids))


class _Batch:
    """The sequences under way and those that wait. Row r of the memory belongs to `alive[r]`.

    Other threads may add to `waiting`.
    """

    def __init__(self, engine: LocalEngine, waiting: deque[_Sequence]) -> None:
        self._engine = engine
        self._model = engine.model
        self._waiting = waiting
        self._alive: list[_Sequence] = []
        self._memory = Memory(len(self._model.layers), self._model.device, exact=self._model.trains)
        self._prompt_states: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def run(self) -> None:
        """Until nobody is left; what a forward pass raises is the answer of those in it, while the waiting wait on."""
        self._model.eval()
        with packed_weights(self._model.lm, keep=not self._model.trains):
            self._serve()

    def _serve(self) -> None:
        while self._alive or self._waiting:
            admitted = self._admit()
            try:
                if self._alive or admitted:
                    self._forward(admitted)
            except BaseException as e:
                for sequence in (*self._alive, *admitted):
                    with suppress(InvalidStateError):
                        sequence.answer.set_exception(e)
                raise

    def _admit(self) -> list[_Sequence]:
        """Waiting sequences for which there is room now."""
        admitted: list[_Sequence] = []
        reserved = [(s.request.prompt_ids, s.request.params.max_tokens) for s in self._alive]
        new_tokens = 0
        while self._waiting and len(reserved) < self._engine.max_batch:
            if self._waiting[0].answer.cancelled():
                self._waiting.popleft()
                continue
            prompt, limit = self._waiting[0].request.prompt_ids, self._waiting[0].request.params.max_tokens
            prompts = {p for p, _ in reserved} | {prompt}
            held = len(prompts) * max(map(len, prompts)) + (len(reserved) + 1) * max(
                limit, *(n for _, n in reserved), 0
            )
            fresh = prompt not in self._prompt_states and prompt not in {s.request.prompt_ids for s in admitted}
            if reserved and (
                held > self._engine.cache_tokens or (fresh and new_tokens + len(prompt) > PROMPT_TOKENS and new_tokens)
            ):
                break
            new_tokens += len(prompt) if fresh else 0
            reserved.append((prompt, limit))
            admitted.append(self._waiting.popleft())
        return admitted

    def _forward(self, admitted: list[_Sequence]) -> None:
        """Read the last token of every row and the prompts that are new, then sample one token for each sequence."""
        prompts = list(dict.fromkeys(s.request.prompt_ids for s in admitted))
        fresh = [p for p in prompts if p not in self._prompt_states]
        last_states = []
        if self._alive or fresh:
            rows = max(len(self._alive), MIN_ROWS) if self._alive else 0
            states_ND = self._read([s.ids[-1] for s in self._alive], rows, fresh)
            last_states.append(states_ND[: len(self._alive)])
            place = rows - 1
            for prompt in fresh:
                place += len(prompt)
                self._prompt_states[prompt] = states_ND[place]
        last_states += [self._prompt_states[s.request.prompt_ids][None] for s in admitted]
        self._memory.add_rows([self._memory.prompts.index(s.request.prompt_ids) for s in admitted])
        self._alive += admitted
        self._sample(torch.cat(last_states))

    def _read(self, tokens: list[int], rows: int, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        """Last hidden states of `rows` rows, idle ones included, and of the prompts' tokens, [N, D]."""
        device = self._model.device
        plan = self._memory.plan(rows, prompts)
        ids = [*tokens, *[0] * (rows - len(tokens)), *(token for prompt in prompts for token in prompt)]
        out = self._model.body(
            input_ids=torch.tensor([ids], device=device),
            attention_mask=NO_MASK.to(device),
            position_ids=torch.tensor([plan.positions], device=device),
            use_cache=False,
            plan=plan,
        )
        self._memory.lengths = [length + 1 for length in self._memory.lengths]
        states: torch.Tensor = out.last_hidden_state[0]
        return states

    def _sample(self, states_BD: torch.Tensor) -> None:
        params = [s.request.params for s in self._alive]
        uniforms = [s.uniforms[len(s.ids)] for s in self._alive]
        tokens, logprobs = next_tokens(states_BD, self._model.unembedding, params, uniforms)
        for sequence, token, logprob in zip(self._alive, tokens, logprobs, strict=True):
            self._engine.advance(sequence, token, logprob)
            if sequence.finish is not None:
                with suppress(InvalidStateError):
                    sequence.answer.set_result(self._engine.completion(sequence))
        finished = [row for row, s in enumerate(self._alive) if s.finish is not None]
        if finished:
            for source, row in self._memory.drop_rows(finished, keep=self._next_prompts()):
                self._alive[row] = self._alive[source]
            del self._alive[len(self._memory.lengths) :]
            self._prompt_states = {p: self._prompt_states[p] for p in self._memory.prompts}

    def _next_prompts(self) -> set[tuple[int, ...]]:
        """Prompts of those who come next, not to be read twice."""
        return {self._waiting[0].request.prompt_ids} if self._waiting else set()
