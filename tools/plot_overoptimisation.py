"""Proxy and gold score against sqrt(KL), by RL and by best of n, as a PNG beside Markdown tables.

python tools/plot_overoptimisation.py figure.png WORKSPACE      # with one run of `postgrad run overoptimise`

The run need not be finished. The table of RL also says what no score pays for: the share of a reference's content words
that the answers have, and how many prompts get the commonest answer. `--reference-weight` asks of the same answers what
they are worth to raters that pay so much for the reference, in place of the run's own gold score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from postgrad.config.round import RatersConfig
from postgrad.evals.overoptimisation import best_of_n_curve, peak, point
from postgrad.feedback.utility import measures, utility
from postgrad.recipes import quickstart_rows
from postgrad.rounds.context import wanted
from postgrad.rounds.exam_labels import exam_point
from postgrad.rounds.manifest import find_round
from postgrad.run import read_json_lines

SCORES = ("proxy", "gold")
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png", type=Path)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--reference-weight", type=float)
    options = parser.parse_args()
    manifest = find_round(options.workspace, "latest")
    stage = manifest.stage_directory("rl")
    sheets = {int(path.stem[5:]): read_json_lines(path) for path in sorted((stage / "exam").glob("step-*.jsonl"))}
    best_of = read_json_lines(stage / "exam" / "best-of.jsonl")
    if options.reference_weight is not None:
        recipe = json.loads((manifest.directory / "recipe.json").read_text(encoding="utf-8"))
        for rows in (*sheets.values(), best_of):
            read_again(rows, options.reference_weight, recipe["rl"]["max_tokens"])
    golds = {step: [row["gold"][0] for row in rows] for step, rows in sheets.items()}
    points = [exam_point(step, rows, golds[step]) for step, rows in sheets.items()]
    of_n = best_of_n_curve(*(np.array([row[score] for row in best_of]) for score in SCORES))
    plot({"RL": points, "best of n": of_n}, options.png)
    seen: list[tuple[str, ...]] = [(f"{content(rows):.1%}", commonest(rows)) for rows in sheets.values()]
    heads = ("content of the reference", "commonest answer")
    sys.stdout.write(table(points, "step", heads, seen) + "\n")
    sys.stdout.write(table(of_n, "n", (), [()] * len(of_n)) + "\n")
    best, last = points[peak(points)]["step"], max(sheets)
    for before, after in ((0, best), (best, last)):
        gain = point(0.0, [], [b - a for a, b in zip(golds[before], golds[after], strict=True)])
        changed = f"{gain['gold']:+.2f} [{gain['gold_low']:.2f}, {gain['gold_high']:.2f}]"
        sys.stdout.write(f"gold, step {before} to {after}: {changed}\n")


def read_again(rows: Rows, weight: float, max_tokens: int) -> None:
    """Put the utility of every answer in place of its gold score; one of `max_tokens` counts as cut off."""
    weights = wanted(RatersConfig(reference_weight=weight))
    for row in rows:
        ends = ("length" if num == max_tokens else "stop" for num in row["tokens"])
        found = (measured(row["prompt_id"], text, end) for text, end in zip(row["answers"], ends, strict=True))
        row["gold"] = [utility(each, weights) for each in found]


def content(rows: Rows) -> float:
    """Mean share of a reference's content words in the answer, where there is a reference."""
    found = (measured(row["prompt_id"], row["answers"][0], "stop")["reference_contained"] for row in rows)
    return fmean(share for share in found if share is not None)


PROMPTS = {row["id"]: row for row in quickstart_rows()}


def measured(prompt_id: str, text: str, finish_reason: str) -> dict[str, float | None]:
    asked = PROMPTS[prompt_id]
    return measures(
        text,
        finish_reason=finish_reason,
        reference=asked["reference"],
        constraints=asked["constraints"],
        prompt=asked["prompt"],
    )


def commonest(rows: Rows) -> str:
    ((answer, times),) = Counter(" ".join(row["answers"][0].split()) for row in rows).most_common(1)
    return f"{times} of {len(rows)}" if times == 1 else f'{times} of {len(rows)}, "{answer}"'


def plot(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(SCORES), figsize=(9, 3.6), sharex=True, layout="constrained")
    for axis, score in zip(axes, SCORES, strict=True):
        for name, points in curves.items():
            values = [p[score] for p in points]
            low = [p[score] - p[f"{score}_low"] for p in points]
            high = [p[f"{score}_high"] - p[score] for p in points]
            x = [p["sqrt_kl"] for p in points]
            axis.errorbar(x, values, [low, high], label=name, marker="o", ms=4, lw=1.5, elinewidth=0.8, capsize=2)
        axis.set(xlabel="sqrt(KL from the SFT policy), KL in nats an answer", title=f"{score} score")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def table(points: list[dict[str, Any]], first: str, heads: tuple[str, ...], seen: list[tuple[str, ...]]) -> str:
    names = [first, "KL, nats", *SCORES, *heads]
    rows = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for p, more in zip(points, seen, strict=True):
        scores = [f"{p[s]:.2f} [{p[f'{s}_low']:.2f}, {p[f'{s}_high']:.2f}]" for s in SCORES]
        rows.append("| " + " | ".join([str(p[first]), f"{p['kl']:.2f}", *scores, *more]) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
