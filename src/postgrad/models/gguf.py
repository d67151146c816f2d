"""GGUF files to Hugging Face directories: float32 safetensors, tokenizer, chat template."""

from __future__ import annotations

import contextlib
import io
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from postgrad.errors import DataError, StoreError

_STRING = 8  # value type code of the GGUF specification


def convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise `gguf` through transformers' own reader into the directory `out`.

    Raises:
        DataError: not a GGUF file, a damaged one, or an architecture that transformers does not read.
        StoreError: the disk is full.
    """
    pre_tokenizer = _pre_tokenizer(gguf)
    import torch
    from safetensors import SafetensorError
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, EOFError, struct.error) as e:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise DataError(
                f"{gguf} cannot be read as a GGUF model ({reason}); download it again, or use the model's own "
                "Hugging Face directory"
            ) from None
        if pre_tokenizer == "smollm":
            # transformers leaves out that SmolLM splits off every digit, so blanks before numbers came out wrong.
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
        # The weights are dequantised by now, but `save_pretrained` refuses whatever still carries a quantizer.
        model.hf_quantizer = None
        del model.config.quantization_config
        try:
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
        except SafetensorError as e:
            raise StoreError(f"cannot write the converted model to {out}: {e}; free space and try again") from None


def _pre_tokenizer(gguf: Path) -> str:
    """The file's `tokenizer.ggml.pre`; found by its bytes, since parsing all metadata takes ten seconds."""
    with open(gguf, "rb") as file:
        if file.read(4) != b"GGUF":
            raise DataError(f"{gguf} is not a GGUF file: it does not start with 'GGUF'; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            key = b"tokenizer.ggml.pre"
            at = data.find(key) + len(key)
            if at < len(key) or at + 12 > len(data):
                return ""
            kind, length = struct.unpack_from("<IQ", data, at)
            return data[at + 12 : at + 12 + length].decode("utf-8", "replace") if kind == _STRING else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and notes of transformers and huggingface_hub off the terminal; errors are raised as ever."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        # Some of the bars can be had off only by taking away where they are drawn.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
