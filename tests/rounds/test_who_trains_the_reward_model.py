"""The reward model learns from what people, or their simulated stand-ins, decided."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_round import write_recipe

from postgrad.config.load import load_recipe
from postgrad.config.queue import QueueConfig
from postgrad.config.round import LabelTreatmentConfig, Recipe
from postgrad.db.engine import sqlite_url
from postgrad.db.tables import AssignmentRow
from postgrad.errors import DataError
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.raters import make_pool
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import Assigned, NewTask
from postgrad.methods.reward import Ranked
from postgrad.rounds.context import Context, read_splits
from postgrad.rounds.frame import open_round
from postgrad.rounds.round_pairs import reward_lessons
from postgrad.rounds.stages import _rater
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Conversation, Example, Message, Preference, SamplingParams


@contextmanager
def compared(tmp_path: Path, model: Path, *overrides: str) -> Iterator[tuple[Context, list[str]]]:
    """A round with one comparison for each of its prompts, and the ids of those."""
    path = write_recipe(tmp_path, model)
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, Recipe)
    source = tmp_path / "rows.jsonl"
    renderer = Renderer(load_tokenizer(model))
    examples = read_splits(source, recipe.data.system)["rm"]
    with (
        open_round(recipe, workspace=tmp_path / "w", model={"name": "tiny", "sha256": "0"}, asks_a_person=True) as m,
        LabelStore(sqlite_url(tmp_path / "labels.db")) as store,
    ):
        ctx = Context(recipe, m, model, source, store, renderer, bar=lambda *_: lambda *_: None)
        store.add_round(ctx.round_id, recipe="tiny")
        store.add_prompts(examples)
        pairs = [store.add_samples([answer(ctx, e.id, text) for text in "ab"]) for e in examples]
        yield ctx, store.ask(pairs, purpose="train", round_id=ctx.round_id)


def learned_from(ctx: Context) -> tuple[list[Ranked], list[Ranked]]:
    lessons = reward_lessons(ctx, "train", conversations=True)
    return lessons.training, lessons.validation


def test_neither_abstentions_nor_model_judges_train_it(tmp_path: Path, tiny_model_directory: Path) -> None:
    with compared(tmp_path, tiny_model_directory) as (ctx, ids):
        store = ctx.store
        store.add_raters("human", {"ada": {}, "bob": {}})
        store.add_raters("model", {"judge": {}})
        store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids[:-1])
        before = learned_from(ctx)
        assert sum(len(group.verdicts) for part in before for group in part) == len(ids) - 1
        store.answer(Submission(Preference(i, "bob", (), rationale="I cannot tell."), (0, 1)) for i in ids)
        store.answer(Submission(Preference(i, "judge", ((1,), (0,))), order) for i in ids for order in ((0, 1), (1, 0)))
        assert learned_from(ctx) == before


def test_a_careless_rater_weighs_less_and_a_labels_own_weight_multiplies(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    dice = random.Random(0)
    with compared(tmp_path, tiny_model_directory) as (ctx, ids):
        ctx.store.add_raters("human", {name: {} for name in ("ada", "bob", "careless")})
        for name in ("ada", "bob", "careless"):
            for i, comparison_id in enumerate(ids):
                winner = dice.randrange(2) if name == "careless" else 0
                given = Preference(comparison_id, name, ((winner,), (1 - winner,)), weight=0.5 if i == 0 else 1.0)
                ctx.store.answer([Submission(given, (0, 1))])
        weights = reward_lessons(ctx, "train", conversations=True).rater_weights
        assert weights["careless"] < 0.8 < 1.0 < weights["ada"]
        found = [sorted(v.weight for v in group.verdicts) for part in learned_from(ctx) for group in part]
        whole = sorted(weights.values())
        assert sorted(found)[0] == pytest.approx([weight / 2 for weight in whole])
        assert sorted(found)[1:] == [pytest.approx(whole)] * (len(ids) - 1)


def test_a_ranking_is_a_pair_of_every_two_answers(tmp_path: Path, tiny_model_directory: Path) -> None:
    with compared(tmp_path, tiny_model_directory) as (ctx, ids):
        ctx.store.add_raters("human", {"ada": {}})
        ctx.store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids[:-1])
        about = next(c for c in ctx.store.comparisons(purpose="train") if c.id == ids[-1]).sources[0]
        (sample,) = ctx.store.samples_of([about])
        three = ctx.store.add_samples([answer(ctx, sample.prompt_id, text) for text in "xyz"])
        (ranking,) = ctx.store.ask([three], purpose="train", round_id=ctx.round_id)
        ctx.store.answer([Submission(Preference(ranking, "ada", ((2,), (0, 1))), (0, 1, 2))])
        (ranked,) = (g for part in learned_from(ctx) for g in part if len(g.answers) == 3)
        texts = [bytes(ids[ranked.prompt_length :]) for ids in ranked.answers]
        said = [(texts[v.better], texts[v.worse], v.tie) for v in ranked.verdicts]
        assert said == [(b"z", b"x", False), (b"z", b"y", False), (b"x", b"y", True)]


def talk(store: LabelStore, turns: list[tuple[str, str, str]], *opened: Message) -> None:
    """A conversation of ada's, each turn a message, the reply that went on and the one that did not."""
    name = f"talk {len(opened)}"
    opening = Example(name, Conversation(opened))
    store.ensure_round("talks", made_by="test")
    store.add_prompts([opening])
    queue = LabelQueue(store, QueueConfig(gold_frac=0, repeat_frac=0))
    queue.add([NewTask("converse", name, {"number": len(turns)})], round_id="talks")
    got = queue.claim("ada")
    assert isinstance(got, Assigned)
    said = []
    for message, *replies in turns:
        live = [replace(ANSWER, prompt_id=name, round_id="talks", text=text, token_ids=()) for text in replies]
        ids = store.add_samples(live)
        said.append({"message": message, "candidates": ids, "order": [1, 0], "chosen": 0, "strength": 2})
    with store.writing() as session:
        session.get_one(AssignmentRow, got.id).draft = {"turns": said}
    queue.submit(got.id, "ada", {"turns": len(said)}, client_key=got.id)


def test_what_was_chosen_in_a_conversation_is_a_pair_whose_prompt_is_the_conversation(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    with compared(tmp_path, tiny_model_directory) as (ctx, ids):
        ctx.store.add_raters("human", {"ada": {}, "bob": {}, "cyd": {}})
        ctx.store.answer(
            Submission(Preference(one, ("ada", "bob", "cyd")[i % 3], ((0,), (1,))), (0, 1)) for i, one in enumerate(ids)
        )
        kind = Message("system", "You are kind.")
        talk(ctx.store, [("Hello", "hi", "go away"), ("And you?", "fine", "no")], kind)
        talk(ctx.store, [("x" * 2000, "hi", "ho")])
        talk(ctx.store, [("Bye", "bye", "no"), ("Bye?", "bye!", "no!")])
        lessons = reward_lessons(ctx, "train", conversations=True)
        opened = (kind, Message("user", "Hello"))
        asked = Conversation((*opened, Message("assistant", "hi"), Message("user", "And you?")))
        prompt = ctx.renderer.render_prompt(asked)
        (last,) = (g for g in (*lessons.training, *lessons.validation) if g.answers[0][: g.prompt_length] == prompt)
        assert [bytes(answer[len(prompt) : -1]) for answer in last.answers] == [b"fine", b"no"]
        (verdict,) = last.verdicts
        assert (verdict.better, verdict.worse, verdict.strength, verdict.domain) == (0, 1, 2, "conversations")
        first = ctx.renderer.render_prompt(Conversation(opened))
        parts = [{g.answers[0][: g.prompt_length] for g in part} for part in (lessons.training, lessons.validation)]
        assert any({first, prompt} <= part for part in parts), "one conversation is on one side of the split"
        brief = Conversation((Message("system", "Be brief."), Message("user", "Bye")))
        assert any(ctx.renderer.render_prompt(brief) in part for part in parts), "as every prompt of the round begins"
        assert [(s["source"], s["pairs"]) for s in lessons.counts["sources"]] == [
            ("labels", len(ids)), ("conversations", 5),
        ]  # fmt: skip
        assert next(o for o in lessons.counts["odd"] if o["problem"] == "too_long")["count"] == 1
        alone = reward_lessons(ctx, "train", conversations=False)
        assert [s["source"] for s in alone.counts["sources"]] == ["labels"]


def test_odd_labels_of_a_round_are_counted_and_treated_as_its_recipe_says(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    with compared(tmp_path, tiny_model_directory) as (ctx, ids):
        store = ctx.store
        store.add_raters("human", {"ada": {}, "bob": {}})
        about = next(iter(store.samples(round_id=ctx.round_id))).prompt_id
        said = store.add_samples([replace(answer(ctx, about, ""), token_ids=()), answer(ctx, about, "something")])
        (empty,) = store.ask([said], purpose="train", round_id=ctx.round_id)
        store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in (*ids, empty))
        store.answer([Submission(Preference(ids[0], "bob", ((1,), (0,))), (0, 1))])

        def read(**odd: object) -> tuple[dict[str, tuple[int, int]], int]:
            labels = ctx.recipe.labels.model_copy(update={"odd": LabelTreatmentConfig.model_validate(odd)})
            recipe = ctx.recipe.model_copy(update={"labels": labels})
            found = reward_lessons(replace(ctx, recipe=recipe), "train", conversations=True)
            counts = {o["problem"]: (o["count"], o["dropped"]) for o in found.counts["odd"] if o["count"]}
            return counts, sum(len(g.verdicts) for g in (*found.training, *found.validation))

        num = len(ids) + 2
        expected = {"checkpoint_gone": (num, 0), "empty_answer": (1, 0), "contradictory": (2, 0)}
        assert read() == (expected | {"one_rater": (num - 2, 0)}, num)
        expected |= {"checkpoint_gone": (num - 1, 0), "empty_answer": (1, 1), "contradictory": (2, 2)}
        assert read(empty_answer="drop", contradictory="drop", max_rater_share=0.99) == (
            expected | {"one_rater": (num - 3, 0)},
            num - 3,
        )
        with pytest.raises(DataError, match=r"2 of .*'labels\.odd\.contradictory' to \"drop\" or \"keep\""):
            read(contradictory="stop")


@pytest.mark.parametrize("gold", ["raters", "ensemble"])
def test_a_held_out_ensemble_and_the_reward_model_learn_from_different_prompts(
    tmp_path: Path, tiny_model_directory: Path, gold: str
) -> None:
    exam = ("exam.every=1", "exam.num_prompts=8", f"exam.gold={gold}")
    with compared(tmp_path, tiny_model_directory, *exam) as (ctx, ids):
        ctx.store.add_raters("human", {"ada": {}})
        ctx.store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids)
        proxy = reward_lessons(ctx, "train", conversations=True)
        prompts = {group.answers[0] for group in proxy.training}
        held_out = {group.answers[0] for group in proxy.validation}
        if gold == "raters":
            assert len(prompts) + len(held_out) == 16
            return
        ensemble = reward_lessons(ctx, "gold", conversations=True)
        others = {group.answers[0] for group in ensemble.training}
        assert not prompts & others
        assert len(prompts) + len(others) + len(held_out) == 16
        assert min(len(prompts), len(others)) > 3
        assert ensemble.validation == proxy.validation


@pytest.mark.parametrize(("num_raters", "ratings"), [(8, 2), (8, 3), (4, 4), (3, 2), (5, 1)])
def test_simulated_raters_meet_everybody(num_raters: int, ratings: int) -> None:
    pool = make_pool(num_raters, seed=0, temperature=0.5, careless_frac=0.0, prefix="pool")
    given = [[_rater(pool, n, k).id for k in range(ratings)] for n in range(num_raters * num_raters)]
    assert all(len(set(names)) == ratings for names in given)
    met = {frozenset((a, b)) for names in given for a in names for b in names if a != b}
    assert len(met) == (num_raters * (num_raters - 1) // 2 if ratings > 1 else 0)
    answers = [sum(name == r.id for names in given for name in names) for r in pool]
    assert max(answers) - min(answers) <= ratings


ANSWER = Sample(
    prompt_id="", round_id="", stage="sft", checkpoint="ab" * 32, policy_version=1,
    params=SamplingParams(max_tokens=8), seed=1, text="", token_ids=(), finish_reason="stop",
)  # fmt: skip


def answer(ctx: Context, prompt_id: str, text: str) -> Sample:
    known = {"prompt_id": prompt_id, "round_id": ctx.round_id, "text": text, "token_ids": tuple(text.encode())}
    return replace(ANSWER, **known)
