"""Odd pairs are counted and treated as the recipe says."""

from __future__ import annotations

from typing import Any

import pytest

from postgrad.config.pairs import TreatmentConfig
from postgrad.errors import DataError
from postgrad.feedback.pair_checks import Oddity, check_pairs
from postgrad.feedback.pairs import Answered, Found, Pair, prompt_id_of
from postgrad.types import Conversation, Message

KNOWN = "ab" * 32


def found(better: str = "yes", worse: str = "no", *, prompt: str = "Q?", differ: bool = False, **known: Any) -> Found:
    conversation = Conversation((Message("user", prompt),))
    checkpoint = known.pop("checkpoint", "")
    pair = Pair(
        prompt_id_of(conversation), conversation, Answered(better, (), checkpoint), Answered(worse, (), checkpoint),
        **({"rater": "", "rater_kind": "human", "source": "labels"} | known),
    )  # fmt: skip
    return Found(pair, f"line {prompt} {better}", differ)


ODD = {
    "equal_sides": [found("same", "same")],
    "empty_answer": [found("  ", "no")],
    "prompts_differ": [found(differ=True)],
    "checkpoint_gone": [found(checkpoint="cd" * 32)],
    "contradictory": [found("no", "yes", prompt="C?"), found("yes", "no", prompt="C?")],
    "one_rater": [found(prompt=f"R{i}?", rater="ada") for i in range(6)],
}
GOOD = [
    found(prompt="fine?", checkpoint=KNOWN, rater="bob"), found("a", "b", prompt="tie?", tie=True, rater="cyd"),
    found("b", "a", prompt="tie?", rater="dee"),
]  # fmt: skip


def checked(problem: str, treatment: str) -> tuple[list[Pair], Oddity]:
    cfg = TreatmentConfig.model_validate({"max_rater_share": 0.4, "one_rater": "keep", problem: treatment})
    pairs, oddities = check_pairs([*GOOD, *ODD[problem]], cfg, checkpoints={KNOWN})
    assert {o.problem for o in oddities if o.count and o.problem not in (problem, "one_rater")} == set()
    return pairs, next(o for o in oddities if o.problem == problem)


@pytest.mark.parametrize("problem", ODD)
def test_kept_pairs_are_counted_all_the_same(problem: str) -> None:
    pairs, oddity = checked(problem, "keep")
    assert len(pairs) == len(GOOD) + len(ODD[problem])
    assert (oddity.count, oddity.dropped, oddity.treatment) == (
        4 if problem == "one_rater" else len(ODD[problem]),
        0,
        "keep",
    )
    assert oddity.sources == {"labels": oddity.count}
    assert oddity.examples[0].startswith("line ")


@pytest.mark.parametrize("problem", ODD)
def test_dropped_pairs_are_gone_and_counted(problem: str) -> None:
    pairs, oddity = checked(problem, "drop")
    assert len(pairs) == len(GOOD) + len(ODD[problem]) - oddity.dropped
    assert oddity.dropped == oddity.count > 0
    assert set(pairs) >= {f.label for f in GOOD}


@pytest.mark.parametrize("problem", ODD)
def test_a_stop_says_where_and_how_to_go_on(problem: str) -> None:
    with pytest.raises(DataError, match=rf"line .*'data\.odd\.{problem}' to \"drop\" or \"keep\""):
        checked(problem, "stop")
    cfg = TreatmentConfig.model_validate({**dict.fromkeys(ODD, "stop"), "max_rater_share": 0.9})
    pairs, oddities = check_pairs(GOOD, cfg, checkpoints={KNOWN})
    assert len(pairs) == len(GOOD)
    assert sum(o.count for o in oddities) == 0


def test_nobody_is_left_with_more_than_the_share() -> None:
    given = [
        found(prompt=f"{rater}{i}?", rater=rater)
        for rater, n in (("a", 60), ("b", 30), ("c", 5), ("d", 5))
        for i in range(n)
    ]
    pairs, _ = check_pairs(given, TreatmentConfig(one_rater="drop", max_rater_share=0.3), checkpoints=())
    counts = [sum(p.rater == rater for p in pairs) for rater in "abcd"]
    assert max(counts) <= 0.3 * sum(counts)
    assert counts[2:] == [5, 5]
    assert counts[0] >= 5


def test_labels_without_a_name_are_nobodys() -> None:
    _, oddities = check_pairs([found(prompt=f"{i}?") for i in range(9)], TreatmentConfig(), checkpoints=())
    assert next(o for o in oddities if o.problem == "one_rater").count == 0


def test_nothing_left_is_said_with_the_reasons() -> None:
    with pytest.raises(DataError, match=r"none of 2 pairs is left .*1 dropped because an answer is empty"):
        check_pairs([found("x", "x"), found("", "x")], TreatmentConfig(), checkpoints=())
