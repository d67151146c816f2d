"""Accuracy of answer sheets, by hand."""

from __future__ import annotations

import pytest

from postgrad.evals.accuracy import accuracy, answer_rows, change, constant_answer
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn


def sheet(*scored, finish="stop"):
    """One question an entry; each entry is the scores that its answer got."""
    groups = []
    for i, scores in enumerate(scored):
        turn = Turn((1,), Completion((2,), (0.0,), finish, 0, f"answer {i}"))
        given = tuple(Score(name, value) for name, value in scores.items())
        example = Example(f"q{i}", Conversation((Message("user", f"question {i}"),)), target="7")
        groups.append(Group(example, (Trajectory(str(i), (turn,), "completed", scores=given),)))
    return answer_rows(groups)


def test_an_answer_is_right_where_the_first_grader_gives_at_least_one():
    rows = sheet({"a": 1.0, "b": 0.0}, {"a": 0.99, "b": 1.0}, {"a": None, "b": 1.0}, {"a": 1.5, "b": None})
    assert [row["right"] for row in rows] == [True, False, False, True]
    assert rows[0] == {
        "id": "q0",
        "question": "question 0",
        "target": "7",
        "answer": "answer 0",
        "tokens": 1,
        "finish_reason": "stop",
        "scores": {"a": 1.0, "b": 0.0},
        "right": True,
    }
    summary = accuracy(rows)
    assert summary["accuracy"] == 0.5
    assert summary["score_a"] == pytest.approx((1 + 0.99 + 1.5) / 3)
    assert (summary["unscored_a"], summary["unscored_b"]) == (1, 1)
    assert summary["score_b"] == pytest.approx(2 / 3)
    # Wilson, 2 of 4 at z = 1.96: (0.5 + 0.4802) / 1.9604 +- 1.96 / 1.9604 sqrt(0.0625 + 0.060025).
    assert (summary["low"], summary["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)


def test_a_grader_that_never_answered_and_answers_cut_off_show():
    summary = accuracy(sheet({"a": None}, {"a": None}, finish="length"))
    assert (summary["accuracy"], summary["score_a"], summary["unscored_a"]) == (0, None, 2)
    assert summary["truncated_frac"] == 1


def test_change_is_paired():
    before = sheet(*[{"a": 0.0}] * 60, *[{"a": 1.0}] * 40)
    after = sheet(*[{"a": 1.0}] * 20, *[{"a": 0.0}] * 40, *[{"a": 1.0}] * 40)
    found = change(before, after)
    assert found["change"] == pytest.approx(0.2)
    # 20 of 100 changed, all for the better: a bootstrap of a share of 0.2, whose deviation is 0.04.
    assert found["low"] == pytest.approx(0.2 - 1.96 * 0.04, abs=0.02)
    assert found["high"] == pytest.approx(0.2 + 1.96 * 0.04, abs=0.02)
    assert change(before, before) == {"change": 0, "low": 0, "high": 0}
    with pytest.raises(AssertionError, match="the same questions"):
        change(before, after[1:])


def test_the_commonest_training_answer_is_a_floor_to_beat():
    assert constant_answer(["2", "1", "2", "5"], ["2", "1", "2"]) == {"answer": "2", "accuracy": 0.5}
    assert constant_answer(["2"], [None]) == {"answer": None, "accuracy": None}
