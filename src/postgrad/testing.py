"""Small stand-ins for tests: nothing here needs a network or a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<start>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<end>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}"
)


def tiny_model(
    directory: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, chat_template: str | None = CHAT_TEMPLATE
) -> Path:
    """Write a Llama of some ten thousand random float32 weights and a byte tokenizer; returns `directory`.

    The same arguments give the same bytes, and the caller's random state is left alone. Weights are drawn ten times as
    wide as usual, because next to a uniform distribution every mistake in a logprob looks small.

    Args:
        directory: made if needed.
        seed: of the weights.
        hidden: a multiple of 8; four heads share two of keys and values.
        layers: transformer blocks.
        chat_template: Jinja source; None leaves the tokenizer without one.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(chat_template, special_tokens=("<start>", "<end>"), eos_token="<end>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = LlamaForCausalLM(config)
    lm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def byte_tokenizer(
    chat_template: str | None = None,
    *,
    special_tokens: Sequence[str] = ("<bos>", "<eos>"),
    eos_token: str = "<eos>",
    bos_token: str | None = None,
    pad_token: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token a byte: ids 0-255 are the bytes, `special_tokens` follow from 256 on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_chars())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special_tokens))
    names = {"eos_token": eos_token, "bos_token": bos_token, "pad_token": pad_token}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in names.items() if token is not None}
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _byte_chars() -> list[str]:
    """The printable stand-in of every byte in byte-level BPE: itself if printable Latin-1, else the next from 256."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]
