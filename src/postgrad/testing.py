"""Small stand-ins for tests: nothing here needs a network or a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
