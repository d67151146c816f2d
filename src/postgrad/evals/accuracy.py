"""How often answers to held-out questions are right, and whether that has changed, with 95% intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from postgrad.evals.arena import clustered_mean
from postgrad.feedback.intervals import wilson_interval
from postgrad.types import Group

RESAMPLES = 2000


def answer_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a question from groups of a single answer: what was asked, said and thought of it.

    An answer is right where the first grader gives at least 1; one that it could not grade is not right.
    """
    rows = []
    for group in groups:
        (trajectory,) = group.trajectories
        completion = trajectory.turns[-1].completion
        scores = {score.grader: score.value for score in trajectory.scores}
        first = next(iter(scores.values()), None)
        rows.append(
            {
                "id": group.example.id,
                "question": group.example.prompt.messages[-1].content,
                "target": group.example.target,
                "answer": completion.text,
                "tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "scores": scores,
                "right": first is not None and first >= 1,
            }
        )
    return rows


def accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of right answers with its Wilson interval; mean of every grader's scores, and how many are missing."""
    right = sum(row["right"] for row in rows)
    low, high = wilson_interval(right, len(rows))
    summary: dict[str, Any] = {"accuracy": right / len(rows), "low": low, "high": high, "questions": len(rows)}
    for name in dict.fromkeys(name for row in rows for name in row["scores"]):
        given = [row["scores"][name] for row in rows if row["scores"].get(name) is not None]
        summary[f"score_{name}"] = sum(given) / len(given) if given else None
        summary[f"unscored_{name}"] = len(rows) - len(given)
    summary["truncated_frac"] = sum(row["finish_reason"] == "length" for row in rows) / len(rows)
    return summary


def change(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy after minus before on the same questions, with a paired bootstrap over them (Efron, 1979)."""
    assert [row["id"] for row in before] == [row["id"] for row in after], "the same questions in the same order"
    differences = np.array([float(b["right"]) - float(a["right"]) for a, b in zip(before, after, strict=True)])
    num = len(differences)
    draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
    found = clustered_mean(differences, draws)
    assert found is not None
    mean, low, high = found
    return {"change": mean, "low": low, "high": high}


def constant_answer(targets: Sequence[str | None], train: Sequence[str | None]) -> dict[str, Any]:
    """What always giving the commonest answer of the training questions would reach on the held-out ones."""
    known = [target for target in train if target is not None]
    if not known:
        return {"answer": None, "accuracy": None}
    common = max(sorted(set(known)), key=known.count)
    return {"answer": common, "accuracy": sum(target == common for target in targets) / len(targets)}
