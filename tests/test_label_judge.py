"""`postgrad label judge` through the real command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from judging import playing, prefers_x
from tiny_round import call

from postgrad.db.engine import sqlite_url
from postgrad.feedback.records import Sample, Submission
from postgrad.feedback.store import LabelStore
from postgrad.types import Conversation, Example, Message, Preference, SamplingParams

Capture = pytest.CaptureFixture[str]
ROUND = "0001-test"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def sample(prompt: str, text: str) -> Sample:
    return Sample(
        prompt_id=prompt, round_id=ROUND, stage="sft", checkpoint="ab" * 32, policy_version=0,
        params=SamplingParams(max_tokens=8), seed=1, text=text, token_ids=(1,), finish_reason="stop",
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Four comparisons of two answers and one of three; ada has answered three of them."""
    with LabelStore(sqlite_url(tmp_path / "postgrad.db")) as store:
        store.add_round(ROUND, recipe="test")
        store.add_raters("human", {"ada": {}})
        names = [f"p{i}" for i in range(5)]
        store.add_prompts(Example(n, Conversation((Message("user", f"Say {n}."),))) for n in names)
        groups = [store.add_samples([sample(n, f"x {n}"), sample(n, f"y {n}")]) for n in names[:4]]
        groups.append(store.add_samples([sample("p4", text) for text in "xyz"]))
        ids = store.ask(groups, purpose="train", round_id=ROUND)
        for i, tiers in zip(ids, (((0,), (1,)), ((0,), (1,)), ((1,), (0,))), strict=False):
            store.answer([Submission(Preference(i, "ada", tiers), (0, 1))])
    return tmp_path


def rows_of(table: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, value in re.findall(r"│ (.*?) │ (.*?) │", table)}


def test_an_endpoint_judges_a_round_and_the_table_says_how_it_went(workspace: Path, capsys: Capture) -> None:
    with playing(prefers_x) as endpoint:
        arguments = ("label", "judge", "--workspace", workspace, "--endpoint", endpoint.url, "--model", "m[1]")
        code, out, err = call(capsys, *arguments)
        assert (code, err) == (0, "")
        shown = rows_of(out)
        assert shown["comparisons"] == "4, each in both orders"
        assert shown["judged"] == "8 of 8 verdicts"
        assert shown["abstained"] == "0"
        assert shown["flips"] == "0 of 4 (0.0%, 95% 0.0% to 49.0%)"
        assert shown["agrees with people"] == "2 of 3 (66.7%, 95% 20.8% to 93.9%)"
        assert "judge-m[1]-" in out
        assert "left out: 1 comparisons of more than two answers" in out
        assert len(endpoint.bodies) == 8
        assert rows_of(call(capsys, *arguments, "--round", ROUND)[1]) == shown
        assert len(endpoint.bodies) == 8, "a second run asks nothing again"
    with LabelStore(sqlite_url(workspace / "postgrad.db")) as store:
        assert {j.preference.rater_id for j in store.preferences(purpose="train")} == {"ada"}


def test_abstentions_are_listed_with_what_the_endpoint_said(workspace: Path, capsys: Capture) -> None:
    with playing(lambda a, b, times: (400, "[/bold] too long")) as endpoint:
        code, out, _ = call(
            capsys, "label", "judge", "--workspace", workspace, "--endpoint", endpoint.url, "--model", "m"
        )
    assert code == 0
    assert "8: HTTP 400: [/bold] too long" in out
    assert rows_of(out)["flips"] == "nothing to compare"


def test_another_rubric_is_sent_and_is_another_rater(workspace: Path, capsys: Capture) -> None:
    rubric = workspace / "rubric.txt"
    rubric.write_text("Prefer rhymes.\n", encoding="utf-8")
    with playing(prefers_x) as endpoint:
        arguments = ("label", "judge", "--db", sqlite_url(workspace / "postgrad.db"), "--model", "m", "--endpoint")
        call(capsys, *arguments, endpoint.url)
        code, _, _ = call(capsys, *arguments, endpoint.url, "--rubric", rubric, "--concurrency", 2)
        assert code == 0
        assert len(endpoint.bodies) == 16
        assert sum("Prefer rhymes." in body["messages"][0]["content"] for body in endpoint.bodies) == 8


def test_a_checkpoint_judges_in_this_process(workspace: Path, tiny_model_directory: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "label", "judge", "--workspace", workspace, "--checkpoint", tiny_model_directory)
    assert (code, err) == (0, "")
    assert rows_of(out)["abstained"] == "8"
    assert "fills the model's context of 512" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name a judge: --endpoint URL with --model NAME, or --checkpoint DIR"),
        (("--endpoint", "http://h/v1"), "name a judge"),
        (("--model", "m"), "name a judge"),
        (("--checkpoint", "d", "--model", "m"), "name a judge"),
        (("--endpoint", "h", "--model", "m"), "the endpoint must be a URL"),
        (("--endpoint", "http://h/v1", "--model", "m", "--purpose", "fun"), "--purpose 'fun' is not one of train"),
        (
            ("--endpoint", "http://h/v1", "--model", "m", "--round", "9"),
            "there are no comparisons of two answers for 'train' in",
        ),
        (("--endpoint", "http://h/v1", "--model", "m", "--rubric", "none.txt"), "rubric 'none.txt' cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(workspace: Path, capsys: Capture, options: tuple[str, ...], said: str) -> None:
    code, _, err = call(capsys, "label", "judge", "--workspace", workspace, *options)
    assert code == 2
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("content", "said"), [(b"", "not 0"), (b"\xff\xfe", "is not UTF-8"), (b"a\0", "of text")])
def test_a_rubric_that_is_none_is_refused(workspace: Path, capsys: Capture, content: bytes, said: str) -> None:
    rubric = workspace / "rubric.txt"
    rubric.write_bytes(content)
    options = ("--endpoint", "http://h/v1", "--model", "m", "--rubric", rubric)
    code, _, err = call(capsys, "label", "judge", "--workspace", workspace, *options)
    assert code == 2
    assert said in err
