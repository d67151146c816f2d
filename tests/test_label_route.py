"""`postgrad label route` and `postgrad label stats` with a reward model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from sqlalchemy import select
from tiny_round import call

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import TaskRow
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.routing import uncertainty
from postgrad.feedback.store import LabelStore
from postgrad.models.load import load_policy, load_reward_model, save_reward_model
from postgrad.ops.packing import pad
from postgrad.text import Renderer, load_tokenizer
from postgrad.types import Comparison, Conversation, Example, Message, Preference, SamplingParams

Capture = pytest.CaptureFixture[str]
ROUND = "0001-test"
NUM = 9


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path) -> Path:
    torch.manual_seed(0)
    model = load_policy(tiny_model_directory, heads=("reward",))
    with torch.no_grad():
        model.heads["reward"].weight.normal_(std=0.5)  # type: ignore[operator, union-attr]
    path = tmp_path_factory.mktemp("reward") / "model"
    save_reward_model(model, path, tokenizer_from=tiny_model_directory, canaries=[(1, 2, 3)])
    return path


def sample(prompt: str, text: str, ids: tuple[int, ...] = ()) -> Sample:
    return Sample(
        prompt_id=prompt, round_id=ROUND, stage="sft", checkpoint="ab" * 32, policy_version=0,
        params=SamplingParams(max_tokens=8), seed=1, text=text, token_ids=ids, finish_reason="stop",
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path, reward_model: Path) -> Path:
    """Comparisons in the queue; ada prefers the longer answer; the last one's answers fit no context."""
    encode = load_tokenizer(reward_model).encode
    with LabelStore(sqlite_url(tmp_path / "postgrad.db")) as store:
        store.add_round(ROUND, recipe="test")
        store.add_raters("human", {"ada": {}})
        names = [f"p{i}" for i in range(NUM)]
        store.add_prompts(Example(n, Conversation((Message("user", f"Say {n}."),))) for n in names)
        texts = [("x" * (1 + i), "yes, of course " * (1 + i % 3)) for i in range(NUM - 1)] + [("z" * 900, "w" * 900)]
        pairs = [
            # What another tokenizer sampled is told by its text; this one's ids may end without an end token.
            store.add_samples([sample(n, a, tuple(encode(a))), sample(n, b, (999, 998))])
            for n, (a, b) in zip(names, texts, strict=True)
        ]
        ids = store.ask(pairs, purpose="train", round_id=ROUND)
        store.answer(Submission(Preference(i, "ada", ((1,), (0,))), (0, 1)) for i in ids)
    return tmp_path


def rewards(comparison: Comparison, path: Path) -> list[float]:
    """As they are by definition: template, then the model, one answer at a time."""
    renderer, model = Renderer(load_tokenizer(path)), load_reward_model(path)
    prompt = renderer.render_prompt(comparison.prompt)
    ends = ((), (renderer.end_id,))
    encode = renderer.tokenizer.encode
    rows = [(*prompt, *encode(text), *end) for text, end in zip(comparison.answers, ends, strict=True)]
    with torch.no_grad():
        return [float(model.sequence_rewards(*pad([row]))) for row in rows]


def turns(workspace: Path) -> dict[str, int]:
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store, store.reading() as session:
        rows = session.execute(select(TaskRow.comparison_id, TaskRow.turn))
        return {str(row.comparison_id): row.turn for row in rows}


def test_uncertainty_by_hand() -> None:
    p = 1 / (1 + math.exp(-1.5))
    assert uncertainty([2.0, 0.5]) == pytest.approx(4 * p * (1 - p))
    assert uncertainty([0.5, 2.0, 2.0]) == pytest.approx((1 + 8 * p * (1 - p)) / 3)


def test_the_least_sure_comparisons_come_first(workspace: Path, reward_model: Path, capsys: Capture) -> None:
    route = ("label", "route", "--workspace", workspace, "--reward-model", reward_model)
    code, _, err = call(capsys, *route)
    assert (code, err) == (2, "error: no comparison waits in the queue; fill it with `postgrad label add ROUND`\n")
    call(capsys, "label", "add", ROUND, "--workspace", workspace)
    code, out, err = call(capsys, *route)
    assert (code, err) == (0, "")
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        asked = {c.id: c for c in store.comparisons(purpose="train")}
    exact = {i: uncertainty(rewards(c, reward_model)) for i, c in asked.items() if len(c.answers[0]) < 900}
    truth = {i: -round(100 * exact.get(i, 0)) for i in asked}
    assert turns(workspace) == truth
    assert len(set(truth.values())) > 4
    assert f"{sum(map(bool, truth.values()))} tasks have a new priority" in out
    assert "left as they were: 1 comparisons" in out
    assert f"0.8 to 1.0 │ {sum(value >= 0.8 for value in exact.values())} " in " ".join(out.split())
    assert "0 tasks have a new priority" in call(capsys, *route)[1]


def test_stats_hold_a_reward_model_against_people(workspace: Path, reward_model: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "label", "stats", "--workspace", workspace, "--reward-model", reward_model, "--json")
    assert (code, err) == (0, "")
    pairs = {(a["first"], a["second"]): a["measures"] for a in json.loads(out)["agreement"]}
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        given = [rewards(c, reward_model) for c in store.comparisons(purpose="train") if len(c.answers[0]) < 900]
    raw = pairs["human", "reward model"]["raw"]
    assert raw["num"] == NUM - 1
    assert raw["value"] == pytest.approx(sum(b > a for a, b in given) / (NUM - 1))


@pytest.mark.parametrize(
    ("name", "said"),
    [("7", "no round '7' in workspace"), ("{tiny}", "is not a reward model: heads.safetensors or canaries.json")],
)
def test_what_is_no_reward_model_is_named(
    workspace: Path, tiny_model_directory: Path, capsys: Capture, name: str, said: str
) -> None:
    call(capsys, "label", "add", ROUND, "--workspace", workspace)
    for command in ("route", "stats"):
        code, _, err = call(
            capsys, "label", command, "--workspace", workspace, "--reward-model", name.format(tiny=tiny_model_directory)
        )
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
