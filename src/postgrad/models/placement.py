"""Where a model lives, and the type of its weights."""

from __future__ import annotations

from typing import NamedTuple

import torch

from postgrad.errors import ConfigError


class Placement(NamedTuple):
    device: torch.device
    dtype: torch.dtype


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """The recipe's words made definite: the GPU where torch sees one, bfloat16 there and float32 on the CPU.

    Raises:
        ConfigError: a GPU is asked for and torch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "'model.device' = 'cuda', but torch sees no GPU; install torch's CUDA build and the driver, or set 'auto'"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Placement(torch.device(device), {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])
