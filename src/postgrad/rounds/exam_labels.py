"""What people say of an examined policy: their comparisons of its answers with the SFT policy's.

The score of a prompt is the share of its labels that prefer the examined policy, a tie being half; the SFT policy
itself, and an answer that is the same, is at one half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from postgrad.db.engine import sqlite_url
from postgrad.evals.arena import outcome
from postgrad.evals.overoptimisation import point
from postgrad.feedback.store import LabelStore
from postgrad.run import read_json_lines

EVEN: Final = 0.5
Row = Mapping[str, Any]
"""A prompt of an examination: "question" is the id of its comparison, SFT policy first, or empty."""


def win_rates(store: LabelStore, rows: Sequence[Row], *, round_id: str) -> list[float]:
    """Of the examined policy, by prompt; NaN where nobody has answered yet. Model judges do not count."""
    given: dict[str, list[float]] = {}
    for judged in store.preferences(purpose="exam", round_id=round_id):
        if judged.preference.tiers:
            given.setdefault(judged.comparison.id, []).append(1 - outcome(judged.preference))
    return [fmean(given.get(row["question"], [math.nan])) if row["question"] else EVEN for row in rows]


def exam_point(step: int, rows: Sequence[Row], gold: Sequence[float]) -> dict[str, Any]:
    """Both scores and the distance from the reference after so many steps."""
    kl = float(np.mean([row["kl"][0] for row in rows]))
    return {"step": step, **point(kl, [row["proxy"][0] for row in rows], gold)}


def labelled_points(stage: Path, workspace: Path, *, round_id: str) -> list[dict[str, Any]]:
    """The points of a stage's examinations with the labels that are there by now, in the workspace's store."""
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        points = []
        for path in sorted((stage / "exam").glob("step-*.jsonl")):
            rows = read_json_lines(path)
            step = int(path.stem.removeprefix("step-"))
            points.append(exam_point(step, rows, win_rates(store, rows, round_id=round_id)))
        return points
