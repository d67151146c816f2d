"""Reports as tables: for the terminal, and as Markdown for a page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from postgrad.bench.compare import Record, Report

Result = Mapping[str, Any]
Measure = Callable[[Result], float | None]

NOTES = {
    "trl grpo": "TRL's GRPO recomputes activations in the backward pass (gradient checkpointing is its default), "
    "evaluates the reference but not the old logprobs, and computes a prompt for every answer to it. Answers are "
    "sampled on each side and end where they end: compare tokens/s beside seconds.",
    "trl sft": "TRL's SFT pads every row to the longest of its batch; real tokens are counted on both sides, padding "
    "on neither. Both train every token of the conversation.",
    "trl sft packed": "TRL's packing makes rows of 1,024 tokens out of several conversations, one a step: its steps "
    "hold other conversations than ours and fewer tokens, so the optimizer's share of the time is larger.",
    "transformers": "transformers' generate keeps a row in its batch until the longest is done; ragged requests are "
    "sorted and batched at the best of three sizes. It returns no logprobs, which ours always does.",
    "vllm": "vLLM brings compiled kernels of its own, and its engine is a second process, whose memory is not "
    "known; on the CPU it runs eagerly. It was asked for no logprobs, which ours always returns.",
    "postgrad ppo": "PPO is compared with TRL's GRPO: it trains a critic besides.",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A table before it is drawn; the first column is text, the others are numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better we are than a peer, pair by pair of neighbouring processes."""

    workload: str
    ours: str
    peer: str
    quantity: str
    values: tuple[float, ...]


def tables(report: Report, *, spread: bool) -> list[Rows]:
    """Those that the report has something for; `spread` adds least and greatest to the median of the processes."""
    found = [
        _table(report, "rl-", "Reinforcement learning: seconds of a step", _RL_SECONDS, spread),
        _table(report, "rl-", "Reinforcement learning: rates, shares of the matrix peak, memory", _RL_RATES, spread),
        _table(report, "decode-", "Decoding", _DECODE, spread),
        _table(report, "sft", "Supervised fine-tuning", _SFT, spread),
        _ratio_rows(ratios(report)),
    ]
    return [table for table in found if table.rows]


def ratios(report: Report) -> list[Ratio]:
    """Of every side of ours to every peer: time and memory theirs through ours, rates ours through theirs."""
    runs = _grouped(report.records)
    found = []
    for (workload, ours), own in runs.items():
        if not _is_ours(ours):
            continue
        for (other, peer), theirs in runs.items():
            if other != workload or _is_ours(peer):
                continue
            pairs = [(own[i], theirs[i]) for i in sorted(own.keys() & theirs.keys())]
            for quantity, measure, bigger_is_better in _QUANTITIES[workload.partition("-")[0]]:
                measured = [(measure(a), measure(b)) for a, b in pairs]
                values = tuple(
                    a / b if bigger_is_better else b / a for a, b in measured if a is not None and b is not None
                )
                if values:
                    found.append(Ratio(workload, ours, peer, quantity, values))
    return found


def remarks(report: Report) -> list[str]:
    """What was not comparable, and what the reader has to know."""
    sides = {record.side for record in report.records}
    found = [NOTES[side] for side in NOTES if side in sides and any(not _is_ours(s) for s in sides)]
    by_workload: dict[str, dict[str, int]] = {}
    for record in report.records:
        if "prompt_tokens" in record.result:
            by_workload.setdefault(record.workload, {})[record.side] = record.result["prompt_tokens"]
    for workload, lengths in by_workload.items():
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{side} {n}" for side, n in lengths.items())
            found.append(f"The prompt of {workload} was not the same length everywhere: {said} tokens.")
    return found


def heading(report: Report) -> str:
    """Machine, model and versions in a few sentences."""
    m = report.machine
    versions: dict[str, dict[str, None]] = {}
    for record in report.records:
        for name, version in record.result.get("versions", {}).items():
            versions.setdefault(name, {})[version] = None
    peaks = [s["matrix_peak"] for r in report.records for s in r.result["steps"] if "matrix_peak" in s]
    peak = f" Matrix peak {_spread([p / 1e9 for p in peaks])} GFLOP/s." if peaks else ""
    kind = "bfloat16 on CUDA" if m["device"] == "cuda" else "float32 on the CPU"
    listed = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    repeats = max((record.repeat for record in report.records), default=-1) + 1
    model = report.model.rstrip("/").rpartition("/")[2]
    return (
        f"{model}, {kind}; {m['processor']}, {m['threads']} of {m['cores']} cores, "
        f"{m['memory_bytes'] / 1e9:.0f} GB; processes a side: {repeats}, in turn.{peak} {listed}."
    )


def rich_table(table: Rows) -> Table:
    drawn = Table(title=table.title, title_justify="left")
    for i, header in enumerate(table.headers):
        drawn.add_column(header, justify="right" if i >= _texts(table) else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def markdown(report: Report) -> str:
    """Heading, tables and remarks."""
    parts = [heading(report)]
    for table in tables(report, spread=True):
        rule = ["---" if i < _texts(table) else "---:" for i in range(len(table.headers))]
        lines = [f"### {table.title}", "", *(_line(cells) for cells in (table.headers, rule, *table.rows))]
        parts.append("\n".join(lines))
    if notes := remarks(report):
        parts.append("### Not comparable\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _texts(table: Rows) -> int:
    return sum(header in ("work", "side", "against", "quantity") for header in table.headers)


def _table(report: Report, prefix: str, title: str, columns: Mapping[str, Measure], spread: bool) -> Rows:
    rows = []
    for (workload, side), runs in _grouped(report.records).items():
        if workload.startswith(prefix):
            cells = []
            for measure in columns.values():
                values = [value for value in map(measure, runs.values()) if value is not None]
                cells.append(_spread(values, ends=spread))
            rows.append((workload, side, *cells))
    shown = [i for i in range(2 + len(columns)) if i < 2 or any(row[i] != "-" for row in rows)]
    headers = ("work", "side", *columns)
    return Rows(title, tuple(headers[i] for i in shown), tuple(tuple(row[i] for i in shown) for row in rows))


def _ratio_rows(found: Sequence[Ratio]) -> Rows:
    return Rows(
        "Ratios: how many times better",
        ("work", "side", "against", "quantity", "min", "median", "max"),
        tuple(
            (
                r.workload,
                r.ours,
                r.peer,
                r.quantity,
                *(_number(f(r.values)) for f in (min, statistics.median, max)),
            )
            for r in found
        ),
    )


def _grouped(records: Sequence[Record]) -> dict[tuple[str, str], dict[int, Result]]:
    """(workload, side) -> repetition -> result, in the order of the report."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for record in records:
        found.setdefault((record.workload, record.side), {})[record.repeat] = record.result
    return found


def _is_ours(side: str) -> bool:
    return side.partition(" ")[0] == "postgrad"


def _number(value: float) -> str:
    """Three digits."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def _spread(values: Sequence[float], *, ends: bool = True) -> str:
    """Median, and between which values it lies."""
    if not values:
        return "-"
    low, middle, high = (_number(f(values)) for f in (min, statistics.median, max))
    return middle if low == high or not ends else f"{middle} ({low}–{high})"


def _mean(key: str) -> Measure:
    """Of a step's number; None where this side does not state it."""

    def measure(result: Result) -> float | None:
        values = [step[key] for step in result["steps"] if key in step]
        return statistics.fmean(values) if values else None

    return measure


def _rate(result: Result) -> float | None:
    tokens, seconds = (sum(float(step[key]) for step in result["steps"]) for key in ("tokens", "seconds"))
    return tokens / seconds


def _share(seconds: str, *flops: str) -> Measure:
    """Counted FLOPs through what the measured peak could have done in that time, the median of the steps."""

    def measure(result: Result) -> float | None:
        shares = [
            100 * sum(step[key] for key in flops) / (step[seconds] * step["matrix_peak"])
            for step in result["steps"]
            if flops[0] in step
        ]
        return statistics.median(shares) if shares else None

    return measure


def _bandwidth_share(result: Result) -> float | None:
    if "bandwidth" not in result:
        return None
    shares = [100 * s["bytes"] / (s["seconds"] * result["bandwidth"]) for s in result["steps"] if "bytes" in s]
    return statistics.median(shares) if shares else None


def _memory(result: Result) -> float | None:
    """Of the GPU where it was used, else of the process."""
    held = result.get("gpu_bytes") or result["resident_bytes"]
    return None if held is None else float(held) / 1e9


def _logprob_diff(result: Result) -> float | None:
    found = [float(s["logprob_diff_max"]) for s in result["steps"] if "logprob_diff_max" in s]
    return max(found, default=None)


_RL_SECONDS = {
    "step": _mean("seconds"),
    "sample": _mean("sample_s"),
    "score": _mean("score_s"),
    "train": _mean("train_s"),
    "publish": _mean("publish_s"),
}
_RL_RATES = {
    "tokens": _mean("tokens"),
    "tokens/s": _rate,
    "train, %": _share("train_s", "train_flops"),
    "+ attention, %": _share("train_s", "train_flops", "attention_flops"),
    "GB": _memory,
    "logprob diff.": _logprob_diff,
}
_DECODE = {
    "tokens/s": _rate,
    "of peak, %": _share("seconds", "forward_flops"),
    "of bandwidth, %": _bandwidth_share,
    "GB": _memory,
}
_SFT = {
    "tokens": _mean("tokens"),
    "tokens/s": _rate,
    "of peak, %": _share("train_s", "train_flops"),
    "+ attention, %": _share("train_s", "train_flops", "attention_flops"),
    "GB": _memory,
}
_QUANTITIES: Mapping[str, tuple[tuple[str, Measure, bool], ...]] = {
    "rl": (("time a step", _mean("seconds"), False), ("tokens/s", _rate, True), ("memory", _memory, False)),
    "decode": (("tokens/s", _rate, True),),
    "sft": (("tokens/s", _rate, True), ("memory", _memory, False)),
}
