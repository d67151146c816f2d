from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from listening import running
from stored import ROUND, fill
from transformers import LlamaConfig, LlamaForCausalLM

from postgrad.db.engine import sqlite_url
from postgrad.engine.local import LocalEngine
from postgrad.feedback.endpoint_judge import EndpointJudge
from postgrad.feedback.judge_prompt import RUBRIC, Verdict, question
from postgrad.feedback.judges import JudgeSummary, judge_comparisons, judge_id
from postgrad.feedback.local_judge import LocalJudge
from postgrad.feedback.store import LabelStore
from postgrad.models.load import load_policy
from postgrad.models.policy import PolicyModel
from postgrad.serve.api import create_app
from postgrad.testing import byte_tokenizer, tiny_model
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Conversation, Message

WIDTH, VOCABULARY = 264, 258
PROMPT = Conversation((Message("user", "Why?"),))


def reciter(sentence: str, *, context: int = 8192) -> LocalJudge:
    """Says one sentence whose characters all differ, then stops: each byte decides the next by a table."""
    renderer = Renderer(byte_tokenizer())
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=False,
        )
    )
    spoken = [*sentence.encode(), renderer.end_id]
    follow = dict(zip([ord("\n"), *spoken[:-1]], spoken, strict=True))
    table = torch.full((VOCABULARY, VOCABULARY), -40.0)
    for byte in range(VOCABULARY):
        table[follow.get(byte, ord("?")), byte] = 0.0
    with torch.no_grad():
        lm.model.layers[0].self_attn.o_proj.weight.zero_()
        lm.model.layers[0].mlp.down_proj.weight.zero_()
        lm.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, WIDTH))
        lm.lm_head.weight.copy_(torch.nn.functional.pad(table, (0, WIDTH - VOCABULARY)) / WIDTH**0.5)
    engine = LocalEngine(PolicyModel(lm), stop_ids=renderer.stop_ids, decode=renderer.decode)
    return LocalJudge(engine, renderer, context=context, model="reciter", checkpoint="ab" * 32, rubric=RUBRIC)


def test_a_local_judge_is_asked_and_read_as_any_other(tmp_path: Path) -> None:
    judge = reciter("Verdict: A")
    assert asyncio.run(judge.judge(PROMPT, "one", "two")) == Verdict("first", "Verdict: A")
    with LabelStore(sqlite_url(tmp_path / "labels.db")) as store:
        ids = fill(store)
        comparisons = list(store.comparisons(purpose="train", round_id=ROUND))
        rater_id = judge_id(judge)
        summary = asyncio.run(judge_comparisons(store, judge, comparisons, rater_id=rater_id, concurrency=8))
        assert summary == JudgeSummary(judged=8, abstained={}, flips=4, combined=dict.fromkeys(ids, ((0, 1),)))
        rows = list(store.preferences(purpose="train", rater_id=rater_id))
        assert {j.preference.rationale for j in rows} == {"Verdict: A"}


def test_the_same_checkpoint_behind_our_own_server_says_the_same() -> None:
    local = reciter("Verdict: B")
    app = create_app(local._speaker._engine, local._speaker._renderer, model_name="reciter", context=8192)

    async def run(url: str) -> Verdict:
        async with EndpointJudge(f"{url}/v1", model="reciter", rubric=RUBRIC) as judge:
            return await judge.judge(PROMPT, "one", "two")

    with running(app) as url:
        assert (
            asyncio.run(run(url)) == asyncio.run(local.judge(PROMPT, "one", "two")) == Verdict("second", "Verdict: B")
        )


def test_what_a_random_model_writes_is_an_abstention_with_all_of_it(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "tiny")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    renderer = Renderer(load_tokenizer(directory))
    model = load_policy(directory).requires_grad_(False)
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
    asked = Conversation((Message("user", question(PROMPT, "one", "two", rubric="Be kind.")),))
    context = len(renderer.render_prompt(asked)) + 20
    judge, reseeded = (
        LocalJudge(engine, renderer, context=context, model="tiny", checkpoint="", rubric="Be kind.", seed=seed)
        for seed in (0, 1)
    )
    verdict = asyncio.run(judge.judge(PROMPT, "one", "two"))
    assert verdict.winner is None
    assert verdict.raw
    assert verdict.reason == "the judge's answer was cut off before its end"
    assert asyncio.run(reseeded.judge(PROMPT, "one", "two")) == verdict, "greedy, so the seed changes nothing"


@pytest.mark.parametrize(("answer", "said"), [("x" * 9000, "fills the model's context"), ("<eos>", "control token")])
def test_a_question_that_the_model_cannot_read_is_an_abstention(answer: str, said: str) -> None:
    verdict = asyncio.run(reciter("Verdict: B").judge(PROMPT, answer, "two"))
    assert (verdict.winner, verdict.raw) == (None, None)
    assert said in verdict.reason
