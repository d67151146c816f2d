"""How the process deals with memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
_MMAP_MAX = 65536  # its default
_LARGE = 128 * 1024
"""Bytes from which memory is mapped where that is allowed; glibc's default, which it raises to 32 MB by itself."""
# oneDNN and torch's binding of it each keep what they compiled for the last 1024 shapes, half a megabyte apiece. Packed
# batches seldom have as many rows as an earlier one, and 64 do for the layers of one. Read at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor of its size instead of giving it back.

    A page that comes fresh from the system costs more than writing to it: filling 40 MB went at 5 GB/s where the
    memory was new each time, at 72 GB/s where it was kept. Elsewhere than under glibc this does nothing.
    """
    if mallopt := _libc("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def pages_of_its_own() -> Iterator[None]:
    """What is allocated here and is large is not taken from kept memory, and goes back to the system when freed."""
    mallopt = _libc("mallopt")
    if mallopt:
        mallopt(_M_MMAP_MAX, _MMAP_MAX)
    yield
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)


def return_freed_memory() -> None:
    """Give it back after all, once: what a stage of a round used is not counted as the next one's."""
    if malloc_trim := _libc("malloc_trim"):
        malloc_trim(0)


def _libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
