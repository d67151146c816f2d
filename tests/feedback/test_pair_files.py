"""Other people's files as pairs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from postgrad.config.pairs import PairSourceConfig
from postgrad.errors import DataError
from postgrad.feedback.pair_files import read_pair_file
from postgrad.feedback.pairs import Found, Pair, Verdict
from postgrad.types import Message, ToolCall


def read(tmp_path: Path, rows: list[dict[str, Any]], **cfg: Any) -> list[Found]:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return read_pair_file(path, PairSourceConfig(path=path.name, **cfg), stop=True).found


def said(pair: Pair) -> tuple[list[str], str, str]:
    return [m.content for m in pair.prompt.messages], pair.better.text, pair.worse.text


def test_hh_keeps_the_turns_before_the_last_answers(tmp_path: Path) -> None:
    start = "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Bye\n\nAssistant:"
    same, other = read(
        tmp_path,
        [
            {"chosen": f"{start} Goodbye.", "rejected": f"{start} No."},
            {"chosen": f"{start} Goodbye.", "rejected": "\n\nHuman: Hello\n\nAssistant: "},
        ],
        format="hh",
        weight=2.0,
        domain="harmless",
    )
    assert said(same.label) == (["Hello", "Hi!", "Bye"], "Goodbye.", "No.")
    assert [m.role for m in same.label.prompt.messages] == ["user", "assistant", "user"]
    assert (same.label.weight, same.label.domain, same.label.source) == (2.0, "harmless", "rows.jsonl.gz")
    assert (same.where, same.prompts_differ) == ("rows.jsonl.gz line 1", False)
    assert (other.prompts_differ, other.label.worse.text) == (True, "")


def test_webgpt_grades_by_its_score_and_ties_at_zero(tmp_path: Path) -> None:
    quotes = {"title": ["T"], "extract": ["E"]}
    rows = [
        {
            "question": {"full_text": "Why?"}, "answer_0": "first", "answer_1": "second", "quotes_0": quotes,
            "quotes_1": {"title": [], "extract": []}, "score_0": score, "score_1": -score,
        }
        for score in (-1.0, 0.5, 0.25, 0)
    ]  # fmt: skip
    found = [f.label for f in read(tmp_path, rows, format="webgpt")]
    cited = "first\n\n[1] T\nE"
    assert [(p.better.text, p.strength, p.tie) for p in found] == [
        ("second", 3, False), (cited, 2, False), (cited, 1, False), (cited, 1, True),
    ]  # fmt: skip


def test_helpsteer_compares_the_answers_to_one_prompt_by_one_score(tmp_path: Path) -> None:
    rows = [
        {"prompt": "A?", "response": text, "helpfulness": score, "verbosity": -score}
        for text, score in (("x", 1), ("y", 4), ("z", 1))
    ] + [{"prompt": "B?", "response": "alone", "helpfulness": 2, "verbosity": 0}]
    found = [f.label for f in read(tmp_path, rows, format="helpsteer")]
    assert [(p.better.text, p.worse.text, p.tie, p.strength) for p in found] == [
        ("y", "x", False, 3), ("x", "z", True, 1), ("y", "z", False, 3),
    ]  # fmt: skip
    assert read(tmp_path, rows, format="helpsteer", attribute="verbosity")[0].label.better.text == "x"


@pytest.mark.parametrize(("score", "better", "strength"), [(-3, "one", 3), (2, "two", 2), (1, "two", 1)])
def test_helpsteer3_prefers_the_first_below_zero(tmp_path: Path, score: int, better: str, strength: int) -> None:
    context = [{"role": "user", "content": "Q?"}]
    row = {"context": context, "response1": "one", "response2": "two", "overall_preference": score, "domain": "code"}
    (found,) = read(tmp_path, [row], format="helpsteer3", domain="other")
    assert (found.label.better.text, found.label.strength, found.label.tie) == (better, strength, False)
    assert found.label.domain == "code"
    (tie,) = read(tmp_path, [row | {"overall_preference": 0}], format="helpsteer3")
    assert tie.label.tie


def test_pairs_take_text_messages_and_prompts_within_the_sides(tmp_path: Path) -> None:
    user, yes, no = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "yes"), ("assistant", "no")))
    rows = [
        {"prompt": "Q?", "chosen": "yes", "rejected": "no", "rank_chosen": 0, "rank_rejected": 2, "p": 0.9},
        {"prompt": [user], "chosen": [yes], "rejected": [no], "p": 0.95},
        {"chosen": [user, yes], "rejected": [user, no], "rater": "ada", "p": 1},
        {"chosen": [user, yes], "rejected": [{**user, "content": "R?"}, no], "p": 1},
        {"prompt": "Q?", "chosen": "yes", "rejected": "no", "p": 0.5},
    ]
    found = read(tmp_path, rows, format="pairs", at_least={"p": 0.9})
    assert [said(f.label) for f in found] == [(["Q?"], "yes", "no")] * 4
    assert [f.prompts_differ for f in found] == [False, False, False, True]
    assert [f.label.strength for f in found] == [2, 1, 1, 1]
    assert [f.label.rater for f in found] == ["", "", "ada", ""]
    assert found[0].label.prompt.messages == (Message("user", "Q?"),)
    assert len({f.label.prompt_id for f in found}) == 1
    path = tmp_path / "rows.jsonl.gz"
    assert (
        read_pair_file(path, PairSourceConfig(format="pairs", path="x", at_least={"p": 0.9}), stop=True).left_out == 1
    )
    assert len(read(tmp_path, rows, format="pairs", max_pairs=2)) == 2


def test_a_prompt_that_is_not_the_one_the_sides_answer_is_another_prompt(tmp_path: Path) -> None:
    said = [{"role": "user", "content": text} for text in ("A?", "B?")]
    turns = [said[0], {"role": "assistant", "content": "a"}, said[1]]
    sides = {"chosen": [*turns, {"role": "assistant", "content": "b"}], "rejected": [*turns, turns[1]]}
    rows = [{"prompt": prompt, **sides} for prompt in ("A?", "B?", turns, "C?")]
    assert [f.prompts_differ for f in read(tmp_path, rows, format="pairs")] == [False, False, False, True]


def test_a_verdict_is_on_one_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?", "completion": "yes", "label": True},
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": [{"role": "assistant", "content": "no"}]}
        | {"label": False, "rater": "ada", "domain": "code"},
    ]
    good, bad = (f.label for f in read(tmp_path, rows, format="unpaired", weight=0.5, domain="other"))
    assert isinstance(good, Verdict)
    assert isinstance(bad, Verdict)
    assert (good.answer.text, good.good, good.rater, good.domain, good.weight) == ("yes", True, "", "other", 0.5)
    assert (bad.answer.text, bad.good, bad.rater, bad.domain, bad.source) == (
        "no",
        False,
        "ada",
        "code",
        "rows.jsonl.gz",
    )
    assert good.prompt_id == bad.prompt_id
    two_turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
    bad_rows = [
        {"prompt": "Q?", "completion": "yes"},
        {"prompt": "Q?", "completion": two_turns, "label": True},
        {"completion": "yes", "label": True},
    ]
    with pytest.raises(
        DataError, match=r"line 1: 'label' must be .* line 2: 'completion' must be .* line 3: 'prompt' is"
    ):
        read(tmp_path, bad_rows, format="unpaired")


def test_tools_and_calls_stay_in_the_prompt(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    prompt = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    (found,) = read(tmp_path, [{"prompt": prompt, "chosen": "2", "rejected": "3", "tools": tools}], format="pairs")
    asked = found.label.prompt
    assert asked.tools == tuple(tools)
    assert asked.messages[1].tool_calls == (ToolCall("1", "add", '{"a": 1}'),)
    assert asked.messages[2].tool_call_id == "1"


def test_parquet_is_read_and_its_nulls_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [
        {"prompt": "Q?", "chosen": "yes", "rejected": "no", "rater": "ada", "rank_chosen": 0, "rank_rejected": 3},
        {"prompt": "R?", "chosen": "yes", "rejected": "no", "rater": None, "rank_chosen": None, "rank_rejected": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_pair_file(path, PairSourceConfig(path=path.name, format="pairs"), stop=True).found
    assert [(f.label.rater, f.label.strength, f.where) for f in found if isinstance(f.label, Pair)] == [
        ("ada", 3, "rows.parquet line 1"), ("", 1, "rows.parquet line 2"),
    ]  # fmt: skip


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?", "chosen": "yes"},
        {"chosen": "yes", "rejected": "no"},
        {"prompt": "Q?", "chosen": "yes", "rejected": [{"role": "boss", "content": "no"}]},
    ]
    with pytest.raises(DataError) as error:
        read(tmp_path, rows, format="pairs")
    path = tmp_path / "rows.jsonl.gz"
    counted = read_pair_file(path, PairSourceConfig(path=path.name, format="pairs"), stop=False)
    assert (counted.found, counted.unreadable) == ([], [f"rows.jsonl.gz line {i}" for i in (1, 2, 3)])
    for said_ in (
        "mend or remove 3 of 3 rows",
        "line 1",
        "line 2: no 'prompt'",
        "line 3: 'rejected[0]' has the unknown",
    ):
        assert said_ in str(error.value)
