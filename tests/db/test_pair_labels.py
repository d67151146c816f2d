"""Labels of the store as pairs, on every database."""

from __future__ import annotations

from pathlib import Path

import pytest
from workbench import ROUND, answer, claim, fill, plain, talked

from postgrad.config.pairs import PairsConfig, PairSourceConfig
from postgrad.errors import DataError
from postgrad.feedback.pair_labels import read_label_pairs
from postgrad.feedback.pair_sources import read_pairs, split_labels
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Edit, Preference

LABELS = PairSourceConfig(format="labels")


def test_comparisons_rankings_and_ties(url: str) -> None:
    with LabelStore(url) as store:
        first, second, _ = fill(store, 3)
        third = store.add_samples([answer("p2", text) for text in ("one", "two", "three")])
        (ranking,) = store.ask([third], purpose="train", round_id=ROUND)
        store.add_raters("model", {"judge": {}})
        store.answer(
            [
                Submission(Preference(first, "ada", ((1,), (0,)), strength=3, weight=0.5), (0, 1)),
                Submission(Preference(first, "bob", ((0, 1),)), (0, 1)),
                Submission(Preference(first, "dee", ((0, 1),), both_bad=True), (0, 1)),
                Submission(Preference(second, "bob", (), rationale="no idea"), (0, 1)),
                Submission(Preference(second, "judge", ((0,), (1,))), (0, 1)),
                Submission(Preference(ranking, "cyd", ((2,), (0, 1))), (0, 1, 2)),
            ]
        )
        pairs = [f.label for f in read_label_pairs(store, LABELS)]
        assert [(p.rater, p.better.text, p.worse.text, p.tie) for p in pairs] == [
            ("ada", "y p0", "x p0", False), ("bob", "x p0", "y p0", True), ("dee", "x p0", "y p0", True),
            ("cyd", "three", "one", False), ("cyd", "three", "two", False), ("cyd", "one", "two", True),
        ]  # fmt: skip
        assert (pairs[0].strength, pairs[0].weight) == (3, 0.5)
        assert [p.both_bad for p in pairs if p.tie] == [False, True, True], "the worst of a ranking are no good answers"
        assert (pairs[0].better.token_ids, pairs[0].better.checkpoint) == ((1, 2), "cd" * 32)
        assert read_label_pairs(store, PairSourceConfig(format="labels", rounds=("0002-other",))) == []
        assert len(read_label_pairs(store, PairSourceConfig(format="labels", kinds=("rank",)))) == 3


def test_an_edit_is_better_than_what_was_edited(url: str) -> None:
    with LabelStore(url) as store:
        fill(store, 1)
        (sample,) = store.add_samples([answer("p0", "a bad answer")])
        store.record_edits([Edit(sample, "ada", "a bad answer", "a good answer")])
        (found,) = read_label_pairs(store, LABELS)
        assert (found.label.better.text, found.label.worse.text) == ("a good answer", "a bad answer")
        assert (found.label.better.token_ids, found.label.worse.token_ids) == ((), (1, 2))
        assert found.label.prompt.messages[-1].content == "Say p0."
        assert read_label_pairs(store, PairSourceConfig(format="labels", rounds=(ROUND,))) == [found]
        assert read_label_pairs(store, PairSourceConfig(format="labels", rounds=("0002-other",))) == []


def test_every_turn_of_a_conversation_is_a_choice(url: str) -> None:
    with LabelStore(url) as store:
        fill(store, 2)
        ids = store.add_samples([answer("p0", text) for text in ("hi", "ho", "bye", "go")])
        queue = LabelQueue(store, plain())
        turns = [
            {"message": "Hello", "candidates": ids[:2], "order": [1, 0], "chosen": 1, "strength": 2},
            {"message": "Bye", "candidates": ids[2:], "order": [0, 1], "chosen": 0},
        ]
        queue.add([NewTask("converse", "p0")], round_id=ROUND)
        got = claim(queue, "ada")
        queue.submit(got.id, "ada", talked(store, got, turns), client_key=got.id)
        one, two = (f.label for f in read_label_pairs(store, LABELS))
        assert [m.content for m in one.prompt.messages] == ["Hello"]
        assert (one.better.text, one.worse.text, one.strength) == ("ho", "hi", 2)
        assert [(m.role, m.content) for m in two.prompt.messages] == [
            ("user", "Hello"), ("assistant", "ho"), ("user", "Bye"),
        ]  # fmt: skip
        assert (two.better.text, two.worse.text) == ("bye", "go")
        assert len(read_label_pairs(store, PairSourceConfig(format="labels", rounds=(ROUND,)))) == 2
        assert read_label_pairs(store, PairSourceConfig(format="labels", rounds=("0002-other",))) == []


def test_a_mixture_weighs_its_sources_and_splits_by_the_first_message(url: str, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(
        "".join(f'{{"prompt": "Say p{i}.", "chosen": "good", "rejected": "bad"}}\n' for i in range(40))
    )
    cfg = PairsConfig.model_validate(
        {
            "system": "Be brief.",
            "sources": [{"format": "labels", "weight": 3}, {"format": "pairs", "path": "more.jsonl", "weight": 0.5}],
        }
    )
    with LabelStore(url) as store:
        ids = fill(store, 40)
        store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids)
        data = read_pairs(cfg, tmp_path, store, checkpoints=())
    assert [(s["source"], s["pairs"], s["weight"]) for s in data.sources] == [
        ("labels", 40, 3),
        ("more.jsonl", 40, 0.5),
    ]
    assert {p.weight for p in data.labels if p.source == "labels"} == {3}
    assert {p.prompt.messages[0].content for p in data.labels} == {"Be brief."}
    gone = next(o for o in data.oddities if o.problem == "checkpoint_gone")
    assert (gone.count, gone.dropped, gone.sources) == (40, 0, {"labels": 40})
    train, validation = split_labels(data.pairs, 0.3)
    sides = [{p.prompt.messages[-1].content for p in part} for part in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(train) == 2 * len(sides[0])
    assert 6 <= len(sides[1]) <= 18


def test_a_source_without_pairs_is_refused(url: str, tmp_path: Path) -> None:
    cfg = PairsConfig.model_validate({"sources": [{"format": "labels"}]})
    with LabelStore(url) as store, pytest.raises(DataError, match="source 'labels' has no pair to learn from"):
        read_pairs(cfg, tmp_path, store, checkpoints=())
