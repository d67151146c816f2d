"""A byte-level model behind the real engine."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.engine.local import LocalEngine, OnToken, _Sequence
from postgrad.models.policy import PolicyModel
from postgrad.testing import byte_tokenizer
from postgrad.text import Renderer
from postgrad.types import Completion, GenerationRequest

CONTEXT = 1024
CHARACTERS = "abcdefghijklmno éä→🎓"
VOCABULARY = 258
WIDTH = 264


class ObservedEngine(LocalEngine):
    """The local engine, telling what befalls its requests, known by their seeds."""

    def __init__(self, model: PolicyModel, renderer: Renderer) -> None:
        self.on_step: Callable[[int, int], None] = lambda seed, num: None
        """Called from the engine's thread with a seed and its number of tokens, each time there is one more."""
        self.queued = threading.Semaphore(0)
        """Released for every call whose requests the engine has."""
        self.left = threading.Event()
        """Set once a call has been cancelled."""
        self.ends: queue.Queue[tuple[str, int]] = queue.Queue()
        """Why and with how many tokens."""
        super().__init__(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
        self.ends = queue.Queue()  # without what the engine tried itself with

    async def generate(
        self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None
    ) -> list[Completion]:
        call = asyncio.ensure_future(super().generate(requests, on_token))
        await asyncio.sleep(0)
        self.queued.release()
        try:
            return await call
        except asyncio.CancelledError:
            self.left.set()
            raise

    def completion(self, sequence: _Sequence) -> Completion:
        answer = super().completion(sequence)
        self.ends.put((answer.finish_reason, len(answer.token_ids)))
        return answer

    def advance(self, sequence: _Sequence, token: int, logprob: float) -> None:
        self.on_step(sequence.request.seed, len(sequence.ids) + 1)
        super().advance(sequence, token, logprob)


def tiny_engine(*, ends: bool = True) -> tuple[ObservedEngine, Renderer]:
    """Babble of whole characters: the next byte depends on the last one alone, by a table in the output matrix.

    Without `ends` the answer never stops by itself.
    """
    renderer = Renderer(byte_tokenizer())
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
        )
    )
    follow: dict[int, list[int]] = {}
    for character in CHARACTERS:
        for byte, following in itertools.pairwise(character.encode()):
            follow.setdefault(byte, []).append(following)
    first = [character.encode()[0] for character in CHARACTERS] + [renderer.end_id] * ends
    table = torch.full((VOCABULARY, VOCABULARY), -40.0)
    for byte in range(VOCABULARY):
        table[follow.get(byte, first), byte] = 0.0
    with torch.no_grad():
        lm.model.layers[0].self_attn.o_proj.weight.zero_()
        lm.model.layers[0].mlp.down_proj.weight.zero_()
        lm.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, WIDTH))
        # The final norm scales a one-hot vector to length sqrt(WIDTH).
        lm.lm_head.weight.copy_(torch.nn.functional.pad(table, (0, WIDTH - VOCABULARY)) / WIDTH**0.5)
    return ObservedEngine(PolicyModel(lm), renderer), renderer
