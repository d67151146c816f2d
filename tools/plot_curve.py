"""Held-out accuracy over the steps of RL runs, one line a seed, as a PNG beside a Markdown table.

python tools/plot_curve.py curve.png WORKSPACE...      # each with one finished run of `postgrad run reasoning`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from postgrad.rounds.manifest import find_round

MODES = ("greedy", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png", type=Path)
    parser.add_argument("workspaces", type=Path, nargs="+")
    options = parser.parse_args()
    runs = {workspace.name: points(workspace) for workspace in options.workspaces}
    plot(runs, options.png)
    sys.stdout.write(table(runs))


def points(workspace: Path) -> list[dict[str, Any]]:
    curve = find_round(workspace, "latest").stage_directory("rl") / "curve.json"
    found: list[dict[str, Any]] = json.loads(curve.read_text(encoding="utf-8"))["points"]
    return found


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(MODES), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, mode in zip(axes, MODES, strict=True):
        for i, (name, found) in enumerate(runs.items()):
            line = [p for p in found if p["mode"] == mode]
            steps = [p["step"] + (i - len(runs) / 2) / 3 for p in line]
            low = [p["accuracy"] - p["low"] for p in line]
            high = [p["high"] - p["accuracy"] for p in line]
            axis.errorbar(steps, [p["accuracy"] for p in line], [low, high], label=name, marker="o", ms=4, capsize=3)
        axis.set(xlabel="training step", title=mode, ylim=(0, None))
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out answers right")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    steps = sorted({p["step"] for found in runs.values() for p in found})
    rows = ["| run | mode | " + " | ".join(f"step {step}" for step in steps) + " |", "|---" * (len(steps) + 2) + "|"]
    for name, found in runs.items():
        for mode in MODES:
            cells = {
                p["step"]: f"{p['accuracy']:.1%} [{p['low']:.1%}, {p['high']:.1%}]" for p in found if p["mode"] == mode
            }
            rows.append(f"| {name} | {mode} | " + " | ".join(cells.get(step, "") for step in steps) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
