"""What people's answers to the questions of examinations add up to."""

from __future__ import annotations

import math
from typing import Any

from workbench import ROUND, fill

from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.rounds.exam_labels import win_rates
from postgrad.types import Preference


def test_a_prompts_score_is_the_share_of_its_labels_that_prefer_the_policy(labels_url: str) -> None:
    with LabelStore(labels_url) as store:
        questions = fill(store, 4, purpose="exam")
        store.add_raters("model", {"judge": {}})
        said: list[tuple[int, str, Any]] = [
            (0, "ada", ((1,), (0,))), (0, "bob", ((0, 1),)),
            (1, "ada", ((0,), (1,))), (1, "bob", ()),
            (2, "judge", ((1,), (0,))),
        ]  # fmt: skip
        store.answer(Submission(Preference(questions[i], who, tiers, rationale="?"), (0, 1)) for i, who, tiers in said)
        rows = [{"question": q} for q in ("", *questions)]
        even, mixed, lost, judged, unasked = win_rates(store, rows, round_id=ROUND)
    assert (even, mixed, lost) == (0.5, 0.75, 0.0)
    assert math.isnan(judged)
    assert math.isnan(unasked)
