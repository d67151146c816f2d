"""Numbers as people read them, in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def format_number(value: float | None) -> str:
    """About three significant digits: 12,345, 345, 34.5, 3.45, 0.345, 9.5e-07; an en dash where there is none."""
    if value is None:
        return "\u2013"
    size = abs(value)
    if size == 0 or (value == int(value) and size < 1000):
        text = f"{value:.0f}"
    elif size < 0.0005:
        text = f"{value:.1e}"
    else:
        text = f"{value:,.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"
    return text.replace("-", "\u2212", 1) if value < 0 else text


def format_signed(value: float | None) -> str:
    """As `format_number`, with a plus sign."""
    return ("+" if value is not None and value > 0 else "") + format_number(value)


def format_percent(value: float | None) -> str:
    """0.6321 is 63.2%."""
    return "\u2013" if value is None else f"{value:.1%}".replace("-", "\u2212")


def format_count(value: float | None) -> str:
    """12345 is 12,345."""
    return "\u2013" if value is None else f"{value:,.0f}"


def format_duration(seconds: float) -> str:
    """4.2 s, 12 min 34 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, value) of every number and word in a stage's summary: 2.1175 [2.0590, 2.1705] where it has an interval.

    From ten on one decimal is enough. The ends of `key`'s interval are `key`_low and `key`_high; lists are left out.
    """
    ends = {key: (f"{key}_low", f"{key}_high") for key in summary if {f"{key}_low", f"{key}_high"} <= summary.keys()}
    of_intervals = {end for pair in ends.values() for end in pair}
    found = []
    for key, value in summary.items():
        if isinstance(value, int | float | str) and key not in of_intervals:
            low_high = ",\u00a0".join(_finding(summary[end]) for end in ends.get(key, ()))
            interval = f" [{low_high}]" if low_high else ""
            found.append((key, _finding(value) + interval))
    return found


def _finding(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "\u2013"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\u2212")
    return format_number(value) if math.isfinite(value) and abs(value) >= 10 else f"{value:.4f}".replace("-", "\u2212")


def format_bytes(value: float) -> str:
    """Decimal units: 1,536,000,000 is 1.54 GB."""
    return f"{format_number(value / 1e9)} GB" if value >= 1e9 else f"{format_number(value / 1e6)} MB"
