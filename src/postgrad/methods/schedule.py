"""Learning rates as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from postgrad.config.sections import Schedule

FLOOR = 0.1
"""Share of the peak that linear and cosine schedules end at."""


def rate_share(schedule: Schedule, step: int, num_steps: int, *, warmup_frac: float) -> float:
    """Share of the peak learning rate at `step`, counted from 0: up in a line over the warmup, then as named.

    cosine: half a period, Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5. The step after the last would be at
    `FLOOR`; the first is never at zero.
    """
    warmup = max(1, int(warmup_frac * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    fallen = progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - FLOOR) * fallen
