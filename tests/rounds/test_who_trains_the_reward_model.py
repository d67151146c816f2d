"""The reward model learns from what people, or their simulated stand-ins, decided."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_round import write_recipe

from postgrad.config.load import load_recipe
from postgrad.config.round import Recipe
from postgrad.db.engine import sqlite_url
from postgrad.feedback.competence import rater_weights
from postgrad.feedback.raters import make_pool
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.methods.reward import Ranked
from postgrad.rounds.context import Context, read_splits
from postgrad.rounds.frame import open_round
from postgrad.rounds.stages import _ranked, _rater
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Preference, SamplingParams


@contextmanager
def compared(tmp_path: Path, model: Path) -> Iterator[tuple[Context, list[str]]]:
    """A round with one comparison for each of its prompts, and the ids of those."""
    path = write_recipe(tmp_path, model)
    recipe = load_recipe(path)
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
    decided = [j for j in ctx.store.preferences(purpose="train", round_id=ctx.round_id) if j.preference.tiers]
    return _ranked(ctx, decided, rater_weights(decided))


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
        weights = rater_weights(list(ctx.store.preferences(purpose="train")))
        assert weights["careless"] < 0.8 < 1.0 < weights["ada"]
        found = [sorted(v.weight for v in group.verdicts) for part in learned_from(ctx) for group in part]
        whole = sorted(weights.values())
        assert sorted(found)[0] == pytest.approx([weight / 2 for weight in whole])
        assert sorted(found)[1:] == [pytest.approx(whole)] * (len(ids) - 1)


@pytest.mark.parametrize(("num_raters", "ratings"), [(8, 2), (8, 3), (4, 4), (3, 2), (5, 1)])
def test_simulated_raters_meet_everybody(num_raters: int, ratings: int) -> None:
    pool = make_pool(num_raters, seed=0, temperature=0.5, careless_frac=0.0, prefix="pool")
    given = [[_rater(pool, n, k).id for k in range(ratings)] for n in range(num_raters * num_raters)]
    assert all(len(set(names)) == ratings for names in given)
    met = {frozenset((a, b)) for names in given for a in names for b in names if a != b}
    assert len(met) == (num_raters * (num_raters - 1) // 2 if ratings > 1 else 0)
    answers = [sum(name == r.id for names in given for name in names) for r in pool]
    assert max(answers) - min(answers) <= ratings


def answer(ctx: Context, prompt_id: str, text: str) -> Sample:
    return Sample(
        prompt_id=prompt_id, round_id=ctx.round_id, stage="sft", checkpoint="ab" * 32, policy_version=1,
        params=SamplingParams(max_tokens=8), seed=1, text=text, token_ids=tuple(text.encode()), finish_reason="stop",
    )  # fmt: skip
