"""A reward model that is planted to love length, and what it says once that is taken from it."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from postgrad.errors import DataError
from postgrad.graders.certificate import length_trend
from postgrad.graders.reward_model import LengthTrend, RewardModelGrader
from postgrad.methods.reward import Ranked, Verdict
from postgrad.rounds.certify import Exam, examine
from postgrad.testing import CHAT_TEMPLATE, byte_tokenizer
from postgrad.text.template import Renderer
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn

LOVE = 0.25
"""Reward a token."""
PROMPT = (72, 73, 74)
RENDERER = Renderer(byte_tokenizer(CHAT_TEMPLATE, special_tokens=("<start>", "<end>"), eos_token="<end>"))
END = RENDERER.stop_ids[0]


class Planted(torch.nn.Module):
    """Its reward is the quality that an answer's first token names, and `LOVE` for every token; an end is worth 5."""

    context = 512

    def ensemble_rewards(
        self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor, *, prefix_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        rows = zip(input_ids_BT.tolist(), lengths_B.tolist(), prefix_lengths_B.tolist(), strict=True)
        return torch.tensor([[self.reward(ids[:n], start)] for ids, n, start in rows])

    def reward(self, ids: list[int], start: int) -> float:
        return quality(ids[start:]) + LOVE * (len(ids) - start) + 5 * (ids[-1] == END)


def quality(answer: Any) -> float:
    return answer[0] / 64


def answers(num: int, dice: random.Random, *, cut: int = 0) -> tuple[tuple[int, ...], ...]:
    """Of any length, whatever their quality; the last `cut` do not come to an end."""
    found = []
    for i in range(num):
        body = [dice.randrange(64, 128), *[65] * dice.randrange(2, 30)]
        found.append((*PROMPT, *body, *((END,) if i < num - cut else (65,) * 40)))
    return tuple(found)


def ranked(num: int, *, cut: int = 0) -> list[Ranked]:
    dice = random.Random(0)
    groups = []
    for _ in range(num):
        given = answers(4, dice, cut=cut)
        best = sorted(range(4), key=lambda i: quality(given[i][len(PROMPT) :]))
        verdicts = tuple(Verdict(best[-1 - i], best[0]) for i in range(3) if given[best[-1 - i]] != given[best[0]])
        groups.append(Ranked(len(PROMPT), given, verdicts))
    return groups


def exam(groups: list[Ranked], *, residualise: bool) -> Exam:
    return Exam(RENDERER, groups, [], 8, lambda *_: lambda *_: None, residualise=residualise)


def graded(given: tuple[tuple[int, ...], ...], trend: LengthTrend | None) -> list[Any]:
    """Scores of answers to one prompt."""
    turns = [Turn(PROMPT, Completion(a[3:], (-1.0,) * len(a[3:]), "stop", 0, "")) for a in given]
    group = Group(
        Example("e", Conversation((Message("user", "?"),))),
        tuple(Trajectory(str(i), (turn,), "completed") for i, turn in enumerate(turns)),
    )
    return list(asyncio.run(RewardModelGrader(Planted(), length=trend).grade(group)))  # type: ignore[arg-type]


def test_the_planted_slope_is_within_its_interval_and_without_it_quality_ranks() -> None:
    groups = ranked(150)
    raw = examine(Planted(), exam(groups, residualise=False))  # type: ignore[arg-type]
    slope = raw["length"]["slope"]
    assert slope["low"] < LOVE < slope["high"]
    assert slope["high"] - slope["low"] < 0.02
    assert slope["num"] == 150
    assert raw["length"]["num_answers"] == 600
    assert raw["length"]["explained"] > 0.9
    assert not raw["length"]["residualised"]
    assert raw["accuracy"] < 0.75

    less = examine(Planted(), exam(groups, residualise=True))  # type: ignore[arg-type]
    assert less["length"] == raw["length"] | {"residualised": True}
    assert less["accuracy"] > 0.95
    padded = {row["kind"]: row["gain"]["value"] for row in less["probes"]}
    assert abs(padded["length"]) < 0.5 * {row["kind"]: row["gain"]["value"] for row in raw["probes"]}["length"]

    trend = LengthTrend(slope["value"], raw["length"]["centre"])
    given = answers(40, random.Random(5))
    by_quality = [quality(a[3:]) for a in given]
    scores = [s.value for s in graded(given, trend)]
    assert torch.corrcoef(torch.tensor([scores, by_quality]))[0, 1] > 0.99
    assert torch.corrcoef(torch.tensor([[s.value for s in graded(given, None)], by_quality]))[0, 1] < 0.7


def test_both_parts_stand_in_the_explanation_and_off_is_the_reward_as_it_is_read() -> None:
    given = answers(5, random.Random(2))
    off = graded(given, None)
    assert [s.value for s in off] == [Planted().reward(list(a), 3) for a in given]
    assert {s.explanation for s in off} == {""}
    on = graded(given, LengthTrend(0.5, 10.0))
    for before, after, answer in zip(off, on, given, strict=True):
        tokens = len(answer) - 3
        assert after.value == pytest.approx(before.value - 0.5 * (tokens - 10))
        taken = f"less {0.5 * (tokens - 10):+.3f} for {tokens} tokens"
        assert after.explanation == f"{before.value:.3f} as read, {taken}"


def test_answers_that_were_cut_off_say_nothing_of_length() -> None:
    """They are the longest and, cut off, the worst: with them the slope would be near zero."""
    slope = examine(Planted(), exam(ranked(100, cut=1), residualise=False))["length"]["slope"]  # type: ignore[arg-type]
    assert slope["low"] < LOVE < slope["high"]
    assert slope["value"] == pytest.approx(LOVE, abs=0.01)


def test_where_nothing_shows_what_length_predicts_it_cannot_be_taken() -> None:
    cut = ranked(30, cut=4)
    assert examine(Planted(), exam(cut, residualise=False))["length"] is None  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"what length predicts is unknown; .* remove 'reward\.residualise_length'"):
        examine(Planted(), exam(cut, residualise=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "trend"),
    [
        (None, None),
        ({"slope": {"value": 0.5}, "centre": 9.0, "residualised": False}, None),
        ({"slope": {"value": 0.5}, "centre": 9.0, "residualised": True}, LengthTrend(0.5, 9.0)),
    ],
)
def test_the_certificate_says_whether_it_is_taken(tmp_path: Path, length: Any, trend: LengthTrend | None) -> None:
    assert length_trend(tmp_path) is None
    (tmp_path / "certificate.json").write_text(json.dumps({"length": length}))
    assert length_trend(tmp_path) == trend


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text(json.dumps({"length": {"residualised": True}}))
    with pytest.raises(DataError, match=r"is no certificate .*train the reward model again"):
        length_trend(tmp_path)
