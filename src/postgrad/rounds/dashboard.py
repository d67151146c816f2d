"""A training stage as it is watched: progress, the metrics that matter with their recent course, warnings.

Reads metrics.jsonl, so that whatever trains need only write its metrics and report its steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import fmean, pstdev

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from postgrad.metrics import BETTER, METRIC_KEYS, TITLES
from postgrad.rounds.numbers import format_number, format_percent
from postgrad.run import RunDirectory
from postgrad.watch import OWN_RULE, Row, RunWarning, RunWatch, healthy, is_share, show

KEYS = (
    "loss/nll", "validation/nll", "teacher/kl", "loss/reverse_kl", "loss/bradley_terry", "loss/steps",
    "loss/preference", "preference/accuracy", "preference/margin", "preference/chosen_logprob", "preference/kl",
    "preference/kl_data", "reward/accuracy", "reward/mean", "policy/kl_ref", "policy/entropy",
    "rollout/completion_tokens", "rollout/truncated_frac", "policy/clip_frac", "value/explained_variance",
    "group/no_signal_frac", "optim/grad_norm", "sampler/logprob_diff_max", "validation/bits_per_byte",
    "time/tokens_per_s",
)  # fmt: skip
"""The most telling first: a low terminal shows those that fit."""

NARROW, WIDE, VERY_WIDE = 54, 72, 150
"""Columns of a terminal that has room for a curve, for healthy ranges and times, and for meanings."""
FIXED, RANGE, MEANING, LONGEST_CURVE = (3, 21, 8, 1), 14, 62, 48
"""Columns of the terminal for the mark, the name, the value and the trend; and for what comes after them."""
MOST_WARNINGS = 2
"""Shown while the stage runs."""
LINE_EVERY_S = 5.0
LINE_METRICS = 6
SPEED_OVER_S = 3600.0
"""The time that remains is judged by the steps of the last hour: one step may take minutes."""
BLOCKS = "▁▂▃▄▅▆▇█"
ARROWS = {1: "↗", 0: "→", -1: "↘"}
ASCII_ARROWS = {1: "+", 0: "", -1: "-"}


class Dashboard:
    """The live view of one stage; `stop` leaves its last picture and every warning on the screen."""

    def __init__(self, console: Console, title: str, run: RunDirectory) -> None:
        self._console = console
        self._watch = RunWatch(run)
        self._rows: Sequence[Row] = ()
        self._bar = progress_bar(console)
        self._task = self._bar.add_task(title, total=None)
        self._stopped = False
        self._live = Live(console=console, get_renderable=self._picture)
        self._live.start(refresh=True)

    def report(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        self._watch.update()
        self._rows = list(self._watch.rows)
        if done >= total:
            self.stop()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._live.stop()
            for warning in self._watch.warnings:
                self._console.print(warning_text(warning))

    def _picture(self) -> RenderableType:
        """Drawn by the thread of `Live` while a step is under way; what the step appends to is not touched here."""
        width, height = self._console.size
        warnings = () if self._stopped else tuple(self._watch.warnings)
        shown: list[RenderableType] = []
        taken = 0
        for warning in reversed(warnings[-MOST_WARNINGS:]):
            text = warning_text(warning)
            lines = len(self._console.render_lines(text, self._console.options))
            if shown and taken + lines > height // 2:
                break
            shown.insert(0, text)
            taken += lines
        if len(warnings) > len(shown):
            earlier = f"{len(warnings) - len(shown)} earlier in warnings.jsonl"
            shown.insert(0, Padding(Text(earlier, style="yellow dim"), (0, 0, 0, 3)))
        parts: list[RenderableType] = [self._bar.get_renderable()]
        if self._rows:
            most = max(2, height - taken - 5)
            parts.append(metrics_table(self._rows, width=width, most=most, ascii_only=self._console.options.ascii_only))
        return Group(*parts, *shown)


class Lines:
    """The same for a file or a pipe: a line every few seconds, and every warning as it comes."""

    def __init__(self, console: Console, title: str, run: RunDirectory) -> None:
        self._console = console
        self._watch = RunWatch(run)
        self._said_at = -math.inf
        self._say(f"   {title}")

    def report(self, done: int, total: int) -> None:
        new = self._watch.update()
        now = time.monotonic()
        if new or done >= total or now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            self._say(f"   {done}/{total}  {as_line(self._watch.rows)}")
        for warning in new:
            self._say(f"   {_headline(warning)} {_sentence(warning.advice)}")

    def stop(self) -> None:
        """Nothing is open."""

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def watch_stage(console: Console, title: str, run: RunDirectory) -> Dashboard | Lines:
    """The view that suits where the console writes to."""
    live = console.is_terminal and not console.is_dumb_terminal
    return Dashboard(console, title, run) if live else Lines(console, title, run)


def progress_bar(console: Console) -> Progress:
    """A bar with its count, and its times where there is room; not started."""
    columns: list[ProgressColumn] = [TextColumn("   {task.description}"), MofNCompleteColumn()]
    if console.width >= WIDE:
        columns[1:1] = [BarColumn(bar_width=24)]
        columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_S)


def metrics_table(rows: Sequence[Row], *, width: int, most: int, ascii_only: bool) -> Table:
    """One line a metric: its value, where it is going, its recent course, where a healthy run stays.

    Args:
        rows: of metrics.jsonl, oldest first; at least one.
        width: of the terminal; decides which columns there are.
        most: metrics that there is room for; those outside their healthy range are kept first.
        ascii_only: leave out the curve, and draw arrows as signs.
    """
    wide, very_wide = width >= WIDE, width >= VERY_WIDE
    room = width - sum(FIXED) - 2 * len(FIXED) - (RANGE + 2) * wide - MEANING * very_wide
    curve = 0 if ascii_only or width < NARROW else min(LONGEST_CURVE, room)
    table = Table.grid(padding=(0, 2, 0, 0))
    for columns in (*FIXED, *([curve] if curve else []), *([RANGE] if wide else [])):
        table.add_column(no_wrap=True, width=columns)
    table.columns[2].justify = "right"
    if very_wide:
        table.add_column(no_wrap=True)
    for key in _chosen(rows, most):
        values = [row[key] for row in rows if key in row]
        bad = _outside(key, values[-1])
        cells = [
            Text("  !" if bad else "", style="bold red"),
            Text(TITLES.get(key, key)),
            Text(_value(key, values[-1]), style="bold red" if bad else "bold"),
            _trend(key, values, ascii_only=ascii_only),
        ]
        if curve:
            cells.append(_curve(key, values[-curve:], curve))
        if wide:
            cells.append(Text(healthy_range(key), style="red" if bad else "dim"))
        if very_wide:
            meaning = Text(METRIC_KEYS[key].meaning, style="dim")
            meaning.truncate(MEANING + room - curve - 2, overflow="ellipsis")
            cells.append(meaning)
        table.add_row(*cells)
    return table


def warning_text(warning: RunWarning) -> Padding:
    """What was seen, and below it what to turn."""
    text = Text(_headline(warning), style="yellow")
    text.append("\n" + _sentence(warning.advice), style="dim")
    return Padding(text, (0, 1, 0, 3))


def as_line(rows: Sequence[Row]) -> str:
    """The last row in one line, by the metrics' keys; an exclamation mark where one is outside its healthy range."""
    last = rows[-1]
    keys = [key for key in _chosen(rows, LINE_METRICS) if key in last]
    shown = (f"{key} {_value(key, last[key])}{'!' if _outside(key, last[key]) else ''}" for key in keys)
    return "  ".join(shown).replace("\u2212", "-")


def healthy_range(key: str) -> str:
    """Such as "at most 30%" or "0.1 to 6"; nothing where every value is healthy."""
    low, high = METRIC_KEYS[key].low, METRIC_KEYS[key].high
    from_below = math.isinf(low) or low == 0
    if math.isinf(high):
        return "" if from_below else f"at least {show(key, low)}"
    return f"at most {show(key, high)}" if from_below else f"{show(key, low)} to {show(key, high)}"


def _chosen(rows: Sequence[Row], most: int) -> list[str]:
    """At most so many keys that the rows have, in the order of KEYS; the unhealthy ones have precedence."""
    last: dict[str, float] = {}
    for row in rows:
        last.update(row)
    del last["step"]
    bad = [key for key, value in last.items() if _outside(key, value)]
    keys = [key for key in KEYS if key in last] + [key for key in bad if key not in KEYS]
    kept = set(sorted(keys, key=lambda key: key not in bad)[:most])
    return [key for key in keys if key in kept]


def _outside(key: str, value: float) -> bool:
    """Whether to mark it; a fresh model's loss and a fresh critic are outside at first, and warned of if that lasts."""
    return key not in OWN_RULE and not healthy(key, value)


def _value(key: str, value: float) -> str:
    return format_percent(value) if is_share(key) else format_number(value)


def _trend(key: str, values: Sequence[float], *, ascii_only: bool) -> Text:
    """Up or down where the last few values differ from those before by more than their spread."""
    num = min(5, len(values) // 2)
    if num == 0:
        return Text("")
    before, after = fmean(values[-2 * num : -num]), fmean(values[-num:])
    change = after - before
    direction = 0 if abs(change) <= pstdev(values[-2 * num :]) else 1 if change > 0 else -1
    style = {1: "green", -1: "red", 0: "dim"}[direction * BETTER.get(key, 0)]
    return Text((ASCII_ARROWS if ascii_only else ARROWS)[direction], style=style)


def _curve(key: str, values: Sequence[float], width: int) -> Text:
    """A block a step, from the lowest to the highest value shown; red where it is outside the healthy range."""
    low, high = min(values), max(values)
    text = Text()
    for value in values:
        level = 0 if high == low else round((value - low) / (high - low) * (len(BLOCKS) - 1))
        text.append(BLOCKS[level], style="red" if _outside(key, value) else "cyan")
    return text.append(" " * (width - len(values)))


def _headline(warning: RunWarning) -> str:
    return f"warning, step {warning.step}: {warning.message}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
