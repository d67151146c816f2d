"""Pairs as token ids, grouped by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from postgrad.config.reward import PairRewardConfig
from postgrad.feedback.pairs import Answered, Pair, label_to_json, pair_from_json
from postgrad.methods.reward_data import rank_pairs, rater_weights_of
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Conversation, Message


def pair(better: Answered | str, worse: Answered | str, prompt: str = "Q?", **known: Any) -> Pair:
    sides = (Answered(side) if isinstance(side, str) else side for side in (better, worse))
    return Pair(
        prompt, Conversation((Message("user", prompt),)), *sides,
        **({"rater": "ada", "rater_kind": "human", "source": "labels"} | known),
    )  # fmt: skip


@pytest.fixture(scope="module")
def renderer(tiny_model_directory: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_model_directory))


def test_answers_are_computed_once_however_often_they_were_compared(renderer: Renderer) -> None:
    cfg = PairRewardConfig(soft_labels=(0.7, 0.8, 0.9))
    pairs = [pair("a", "b"), pair("b", "c", strength=3, weight=2.0, rater="bob", domain="x"), pair("a", "c", tie=True)]
    (group,), long = rank_pairs(pairs, renderer, cfg, max_tokens=99, rater_weights={"bob": 0.5})
    assert long == []
    assert [bytes(ids[group.prompt_length : -1]) for ids in group.answers] == [b"a", b"b", b"c"]
    assert {ids[-1] for ids in group.answers} == {renderer.end_id}
    assert group.answers[0][: group.prompt_length] == renderer.render_prompt(pairs[0].prompt)
    first, second, third = group.verdicts
    assert (first.better, first.worse, first.label, first.weight, first.domain) == (0, 1, 0.7, 1.0, "labels")
    assert (second.better, second.worse, second.label, second.weight, second.domain) == (1, 2, 0.9, 1.0, "x")
    assert (third.tie, third.better, third.worse) == (True, 0, 2)
    (group,), _ = rank_pairs(pairs, renderer, PairRewardConfig(margin_per_grade=0.5), max_tokens=99, rater_weights={})
    assert [(v.margin, v.label) for v in group.verdicts] == [(0, 1), (1, 1), (0, 1)]


def test_sampled_tokens_are_kept_and_those_of_another_tokenizer_are_not(renderer: Renderer) -> None:
    cut, other = Answered("cut of", tuple(b"cut of")), Answered("hello", (17, 4, 9))
    (group,), _ = rank_pairs([pair(cut, other)], renderer, PairRewardConfig(), max_tokens=99, rater_weights={})
    kept, rendered = (ids[group.prompt_length :] for ids in group.answers)
    assert kept == tuple(b"cut of")  # cut at the token limit: it has no end token
    assert rendered == (*b"hello", renderer.end_id)


def test_what_is_too_long_is_given_back(renderer: Renderer) -> None:
    pairs = [pair("a", "b"), pair("a", "x" * 50), pair("y" * 50, "z", prompt="R?")]
    groups, long = rank_pairs(pairs, renderer, PairRewardConfig(), max_tokens=50, rater_weights={})
    assert (len(groups), len(groups[0].answers), long) == (1, 2, pairs[1:])


def test_raters_who_agree_with_the_others_count_more() -> None:
    pairs = [
        pair(*(("a", "b") if rater != "odd" or i % 2 else ("b", "a")), prompt=f"{i}?", rater=rater)
        for i in range(40)
        for rater in ("ada", "bob", "odd")
    ]
    weights = rater_weights_of([*pairs, pair("a", "b", rater="")])
    assert weights["ada"] > 1 > weights["odd"]
    assert set(weights) == {"ada", "bob", "odd"}
    alone = [pair("a", "b", prompt="s?", rater=f"sim {i}", rater_kind="simulated") for i in range(2)]
    among = rater_weights_of([*pairs, *alone, pair("a", "b", prompt="other?", rater="new")])
    assert {rater: among[rater] for rater in weights} == weights, "another kind of raters changes nothing"
    assert among["new"] == 1.0, "who shared no question with anybody"
    assert among["sim 0"] == pytest.approx(1.0)


def test_a_pair_survives_its_file() -> None:
    one = pair(Answered("a", (1, 2), "ab" * 32), "b", tie=True, strength=2, weight=0.5, domain="d")
    assert pair_from_json(label_to_json(one)) == one
