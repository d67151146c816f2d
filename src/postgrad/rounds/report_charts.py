"""The report's charts: matplotlib drawings as inline SVG whose colours and fonts are the page's own (CSS variables)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

# Matplotlib wants colours, the page has themes: each stand-in becomes a CSS variable in the finished drawing.
ACCENT, MUTED, GRID = "#aa0001", "#aa0002", "#aa0003"
_VARIABLES: Mapping[str, str] = {ACCENT: "var(--accent)", MUTED: "var(--muted)", GRID: "var(--line)"}
# Inches, at 72 units an inch: about the size at which the page shows them, so that their text has the page's size.
_NARROW, _HALF, _WIDE = (4.4, 2.35), (6.2, 3.4), 7.0
_TEXT = 11
_CLEANUPS = (
    (r"<!--.*?-->\n?", ""),
    (r"<style.*?</style>", ""),  # it would style the whole page
    (r'<g id="[^"]*"', "<g"),  # the same in every chart
    (r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px"),
    (r"font-family: [^;\"]+;? ?", ""),
)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def line_chart(steps: Sequence[float], values: Sequence[float], *, over: str, label: str, share: bool) -> Markup:
    """One quantity as a stage went on.

    Args:
        steps: at least one; where there are more than 30, a moving average is drawn over the faint raw line.
        values: one a step.
        over: what a step is called.
        label: what a screen reader says.
        share: the quantity lies in [0, 1] and is shown in percent.
    """
    figure, axes = _canvas(_NARROW)
    window = max(1, len(values) // 15) if len(values) > 30 else 1
    if window > 1:
        axes.plot(steps, values, color=ACCENT, linewidth=1, alpha=0.3)
    smooth = _moving_average(values, window)
    axes.plot(steps, smooth, color=ACCENT, linewidth=2, solid_joinstyle="round", solid_capstyle="round")
    axes.plot(steps[-1:], smooth[-1:], "o", color=ACCENT, markersize=5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.margins(x=0.03, y=0.14)
    if share:
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.set_xlabel(over, color=MUTED, fontsize=_TEXT, loc="right", labelpad=1)
    return _svg(figure, label)


def reliability_chart(calibration: Sequence[Mapping[str, Any]], *, label: str, log: bool = False) -> Markup:
    """Observed share against predicted probability; a dot's area shows the size of its bin.

    Source: reliability diagrams, Guo et al. 2017, arXiv 1706.04599, section 2.

    Args:
        calibration: bins, with "predicted", "observed" and "n".
        label: what a screen reader says.
        log: logarithmic axes, on which a bin where nothing came true has no place.
    """
    figure, axes = _canvas((7.0, 6.2))
    rows = [row for row in calibration if row["n"] > 0 and (row["observed"] > 0 or not log)]
    predicted = [row["predicted"] for row in rows]
    observed = [row["observed"] for row in rows]
    most = max(row["n"] for row in rows)
    low, high = min(0.0 if min(predicted, default=0.5) < 0.5 else 0.5, *observed) - 0.04, 1.04
    if log:
        low, high = min(*predicted, *observed) / 2, 2.0
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(predicted, observed, color=ACCENT, linewidth=2)
    axes.scatter(predicted, observed, s=[25 + 150 * row["n"] / most for row in rows], color=ACCENT, zorder=3)
    if log:
        axes.loglog()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=8) if log else MaxNLocator(nbins=5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda x, _: f"{x:g}" if log else f"{x:.0%}")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("predicted", color=MUTED, fontsize=_TEXT, loc="right", labelpad=1)
    axes.set_title("observed", color=MUTED, fontsize=_TEXT, loc="left", pad=6)
    return _svg(figure, label)


def distance_chart(curves: Mapping[str, Sequence[Mapping[str, Any]]], quantity: str, *, label: str) -> Markup:
    """A score against sqrt(KL) in nats, with its intervals, one line for each way of optimising.

    Args:
        curves: name -> points with "sqrt_kl", `quantity`, and its "_low" and "_high".
        quantity: "proxy" or "gold".
        label: what a screen reader says.
    """
    figure, axes = _canvas(_HALF)
    for (name, points), colour, marker in zip(curves.items(), (ACCENT, MUTED), ("o", "s"), strict=False):
        x, y = [p["sqrt_kl"] for p in points], [p[quantity] for p in points]
        reach = [
            [p[quantity] - p[f"{quantity}_low"] for p in points],
            [p[f"{quantity}_high"] - p[quantity] for p in points],
        ]
        axes.errorbar(x, y, reach, color=colour, marker=marker, markersize=5, linewidth=2, elinewidth=1, label=name)
    axes.legend(frameon=False, labelcolor=MUTED, fontsize=_TEXT, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("\u221aKL from the reference, \u221anats", color=MUTED, fontsize=_TEXT, loc="right", labelpad=1)
    return _svg(figure, label)


def interval_chart(
    rows: Sequence[Mapping[str, Any]],
    *,
    label: str,
    mark: float,
    low: float,
    high: float,
    form: Callable[[float | None], str],
) -> Markup:
    """A dot with its interval for each row, its name above it, first row on top.

    Args:
        rows: with "name", "value", "low" and "high".
        label: what a screen reader says.
        mark: where a line stands for nothing to see.
        low: left end of the axis.
        high: right end.
        form: writes a number.
    """
    figure, axes = _canvas((_WIDE, 0.55 + 0.52 * len(rows)))
    axes.grid(visible=False)
    places = [float(len(rows) - i) for i in range(len(rows))]
    axes.axvline(mark, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for place, row in zip(places, rows, strict=True):
        axes.plot([row["low"], row["high"]], [place, place], color=ACCENT, linewidth=5, alpha=0.35)
        axes.plot([row["value"]], [place], "o", color=ACCENT, markersize=7)
        axes.annotate(str(row["name"]), (low, place + 0.36), color=MUTED, fontsize=_TEXT, va="center")
        axes.annotate(form(row["value"]), (high, place + 0.36), color=MUTED, fontsize=_TEXT, va="center", ha="right")
    axes.set_xlim(low, high)
    axes.set_ylim(0.5, len(rows) + 0.6)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(lambda x, _: form(x))
    return _svg(figure, label)


def _canvas(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=MUTED, pad=5)
    return figure, axes


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    half = window // 2
    spans = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]


def _svg(figure: Figure, label: str) -> Markup:
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    drawing = file.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    for stand_in, variable in _VARIABLES.items():
        body = body.replace(stand_in, variable)
    for pattern, replacement in _CLEANUPS:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">')
    return opening.format(label, width, height) + Markup(body)
