"""Pool the arenas of several seeds: win rates over the seeds' prompts, with one cluster per prompt.

Usage: python tools/pool_arena.py WORKSPACE WORKSPACE ...; the newest round of each. Prints Markdown.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from postgrad.db.engine import sqlite_url
from postgrad.evals.arena import clustered_mean, outcome
from postgrad.feedback.store import LabelStore
from postgrad.rounds.manifest import Manifest, find_round

RESAMPLES = 10_000
MATCHES = (("rl", "initial"), ("rl", "sft"), ("sft", "initial"))
MEASURES = ("constraints_met", "ends_properly", "words", "reference_f1", "question_echo", "unseen_constraints_met")


def scores(workspace: Path, manifest: Manifest) -> dict[tuple[str, str], dict[str, float]]:
    """Mean score of the first of each pair on every prompt, over raters and display orders."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        for judged in store.preferences(purpose="arena", round_id=manifest.record.id):
            first, second = judged.stages
            score = outcome(judged.preference)
            found[first, second][judged.prompt_id].append(score)
            found[second, first][judged.prompt_id].append(1 - score)
    return {pair: {p: float(np.mean(s)) for p, s in by_prompt.items()} for pair, by_prompt in found.items()}


def main(workspaces: list[Path]) -> None:
    rounds = [find_round(workspace, "latest") for workspace in workspaces]
    per_seed = [scores(w, m) for w, m in zip(workspaces, rounds, strict=True)]
    names = [f"seed {m.record.seed}" for m in rounds]
    print("| match | " + " | ".join(names) + " | pooled |")
    print("|---" * (len(names) + 2) + "|")
    for pair in MATCHES:
        prompts = sorted({p for found in per_seed for p in found[pair]})
        means = np.array([np.mean([found[pair][p] for found in per_seed if p in found[pair]]) for p in prompts])
        draws = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
        pooled = clustered_mean(means, draws)
        assert pooled is not None
        arenas = [next(p for p in m.find("arena").summary["pairs"] if (p["a"], p["b"]) == pair) for m in rounds]  # type: ignore[union-attr]
        cells = [f"{p['win_rate']:.1%} [{p['low']:.1%}, {p['high']:.1%}]" for p in arenas]
        cells.append(f"**{pooled[0]:.1%} [{pooled[1]:.1%}, {pooled[2]:.1%}]**")
        print(f"| {pair[0]} against {pair[1]} | " + " | ".join(cells) + " |")
    print()
    print("| change, rl minus initial | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for measure in MEASURES:
        rows = [
            next(
                d
                for d in m.find("arena").summary["deltas"]
                if (d["measure"], d["a"], d["b"]) == (measure, "rl", "initial")
            )  # type: ignore[union-attr]
            for m in rounds
        ]
        print(
            f"| {measure} | "
            + " | ".join(f"{d['delta']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in rows)
            + " |"
        )
    print()
    print("| stage | " + " | ".join(f"{n}, s" for n in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for i, stage in enumerate(rounds[0].record.stages):
        print(f"| {stage.name} | " + " | ".join(f"{m.record.stages[i].seconds:.0f}" for m in rounds) + " |")
    totals = [sum(s.seconds for s in m.record.stages) for m in rounds]
    print("| all | " + " | ".join(f"{t:.0f}" for t in totals) + " |")
    peaks = [max(s.peak_memory_bytes for s in m.record.stages) / 1e9 for m in rounds]
    print("| peak memory, GB | " + " | ".join(f"{p:.1f}" for p in peaks) + " |")
    print(json.dumps({"verdicts": [m.find("gate").summary["verdict"] for m in rounds]}))  # type: ignore[union-attr]


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
