"""A judge of two answers as a grader of many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from postgrad.feedback.judge_prompt import Verdict, Winner
from postgrad.graders.judge import JudgeGrader
from postgrad.rollout import grade_groups
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn

PROMPT = Conversation((Message("user", "Which?"),))


@dataclass
class Longest:
    """Likes the longer answer; where both are as long, the first, which both orders undo. Silent on empty ones."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    async def judge(self, prompt: Conversation, first: str, second: str) -> Verdict:
        assert prompt == PROMPT
        self.asked.append((first, second))
        await asyncio.sleep(0)
        if not first or not second:
            return Verdict(None, "?", "empty")
        winner: Winner = "second" if len(second) > len(first) else "first"
        return Verdict(winner, "!")


def group(*texts: str) -> Group:
    return Group(
        Example("e", PROMPT),
        tuple(
            Trajectory(str(i), (Turn((1,), Completion((2,), (0.0,), "stop", 0, text)),), "completed")
            for i, text in enumerate(texts)
        ),
    )


def test_every_two_answers_meet_in_both_orders() -> None:
    judge = Longest()
    grader = JudgeGrader(judge, name="j", weight=3.0)
    scores = asyncio.run(grader.grade(group("aaa", "b", "cc", "d")))
    grader.close()
    assert sorted(judge.asked) == sorted(
        (a, b) for a in ("aaa", "b", "cc", "d") for b in ("aaa", "b", "cc", "d") if a != b
    )
    assert [s.value for s in scores] == pytest.approx([1, 1 / 6, 2 / 3, 1 / 6])
    assert {(s.grader, s.weight, s.explanation) for s in scores} == {("j", 3.0, "judged in 6 of 6 meetings")}


def test_who_was_never_judged_has_no_score() -> None:
    grader = JudgeGrader(Longest())
    first, silent, third = asyncio.run(grader.grade(group("aa", "", "b")))
    assert (first.value, silent.value, third.value) == (1, None, 0)
    assert silent.explanation == "judged in 0 of 4 meetings"
    (alone,) = asyncio.run(grader.grade(group("a")))
    grader.close()
    assert alone.value is None


def test_groups_are_graded_from_threads_of_their_own() -> None:
    grader = JudgeGrader(Longest())
    graded = asyncio.run(grade_groups([group("aa", "b"), group("a", "bb")] * 3, [grader]))
    grader.close()
    assert [[t.reward for t in g.trajectories] for g in graded] == [[1, 0], [0, 1]] * 3
