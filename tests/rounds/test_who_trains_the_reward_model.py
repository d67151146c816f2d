"""The reward model learns from what people, or their simulated stand-ins, decided."""

from __future__ import annotations

from pathlib import Path

from tiny_round import write_recipe

from postgrad.config.load import load_recipe
from postgrad.config.round import Recipe
from postgrad.db.engine import sqlite_url
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.rounds.context import Context, read_splits
from postgrad.rounds.frame import open_round
from postgrad.rounds.stages import _ranked
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Preference, SamplingParams


def test_neither_abstentions_nor_model_judges_train_it(tmp_path: Path, tiny_model_directory: Path) -> None:
    path = write_recipe(tmp_path, tiny_model_directory)
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe)
    source = tmp_path / "rows.jsonl"
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    examples = read_splits(source, recipe.data.system)["rm"]
    with (
        open_round(recipe, workspace=tmp_path / "w", model={"name": "tiny", "sha256": "0"}, asks_a_person=True) as m,
        LabelStore(sqlite_url(tmp_path / "labels.db")) as store,
    ):
        ctx = Context(recipe, m, tiny_model_directory, source, store, renderer, bar=lambda *_: lambda *_: None)
        store.add_round(ctx.round_id, recipe="tiny")
        store.add_prompts(examples)
        store.add_raters("human", {"ada": {}, "bob": {}})
        store.add_raters("model", {"judge": {}})
        pairs = [store.add_samples([answer(ctx, e.id, text) for text in "ab"]) for e in examples]
        ids = store.ask(pairs, purpose="train", round_id=ctx.round_id)
        store.answer(Submission(Preference(i, "ada", ((0,), (1,))), (0, 1)) for i in ids[:-1])
        before = _ranked(ctx)
        assert sum(len(group.verdicts) for part in before for group in part) == len(ids) - 1
        store.answer(Submission(Preference(i, "bob", (), rationale="I cannot tell."), (0, 1)) for i in ids)
        store.answer(Submission(Preference(i, "judge", ((1,), (0,))), order) for i in ids for order in ((0, 1), (1, 0)))
        assert _ranked(ctx) == before


def answer(ctx: Context, prompt_id: str, text: str) -> Sample:
    return Sample(
        prompt_id=prompt_id, round_id=ctx.round_id, stage="sft", checkpoint="ab" * 32, policy_version=1,
        params=SamplingParams(max_tokens=8), seed=1, text=text, token_ids=tuple(text.encode()), finish_reason="stop",
    )  # fmt: skip
