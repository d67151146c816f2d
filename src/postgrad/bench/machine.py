"""What the machine can do: the denominators of the shares."""

from __future__ import annotations

import statistics
import time

import torch

from postgrad.models.placement import place

SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the product that is taken for the peak."""
_REPETITIONS = 5
_COPIED_BYTES = 2**30


class Machine:
    """Measures between the steps of a workload, because clocks drift while it runs.

    Args:
        device: "cpu" or "cuda"; measured in the type that models have there.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.placement = place(device)
        size = SIZE[device]
        generator = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(size, size, generator=generator).to(*self.placement) for _ in range(2))
        self._a @ self._b

    def now(self) -> float:
        """Seconds, once everything that was asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def matrix_peak(self) -> float:
        """FLOP/s of a square product, the median of a few."""
        seconds = []
        for _ in range(_REPETITIONS):
            began = self.now()
            self._a @ self._b
            seconds.append(self.now() - began)
        return 2.0 * len(self._a) ** 3 / statistics.median(seconds)

    def gpu_bytes(self) -> int:
        """Most that torch has held on the GPU so far, without the factors that the peak is measured with."""
        return max(0, torch.cuda.max_memory_allocated() - self._a.nbytes - self._b.nbytes)

    def bandwidth(self) -> float:
        """Bytes a second, read and written, of a copy within the device's memory."""
        source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = []
        for _ in range(_REPETITIONS):
            began = self.now()
            target.copy_(source)
            seconds.append(self.now() - began)
        return 2.0 * _COPIED_BYTES / statistics.median(seconds)
