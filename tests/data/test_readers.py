import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postgrad.data import read_examples, read_rows
from postgrad.errors import ConfigError, DataError
from postgrad.types import Conversation, Example, Message, ToolCall

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
SAID = (Message("user", "Q"),)


def jsonl(directory: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def problem(directory: Path, row: Any, **options: Any) -> str:
    path = jsonl(directory, row)
    with pytest.raises(DataError) as raised:
        read_examples(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{str(path)!r}: mend or remove 1 of 1 rows: line 1: ")
    assert "\n" not in message
    return message.split("line 1: ")[1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, Example("rows-1", Conversation((*SAID, *answer("A"))))),
        ({"prompt": "Q"}, Example("rows-1", Conversation(SAID))),
        ({"prompt": "Q", "completion": "A"}, Example("rows-1", Conversation(SAID), answer("A"))),
        ({"id": 7, "prompt": [USER], "completion": [ANSWER]}, Example("7", Conversation(SAID), answer("A"))),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2},
            Example("rows-1", Conversation(SAID), answer("A"), answer("B"), metadata={"margin": 2}),
        ),
        (
            {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "B"}]},
            Example("rows-1", Conversation(SAID), answer("A"), answer("B")),
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "B"}]},
            Example("rows-1", Conversation(SAID), answer("A"), answer("B")),
        ),
        ({"prompt": "Q", "target": "42", "completion": None}, Example("rows-1", Conversation(SAID), target="42")),
    ],
)
def test_a_row_of_every_shape_becomes_an_example(row: dict[str, Any], expected: Example, tmp_path: Path) -> None:
    assert read_examples(jsonl(tmp_path, row)) == [expected]


def test_a_quickstart_row_keeps_its_reference_constraints_and_split(tmp_path: Path) -> None:
    row = {
        "id": "dolly-123",
        "prompt": "What is rain? Answer in one sentence.",
        "reference": "Water.",
        "constraints": [{"kind": "one_sentence"}],
        "split": "rl",
        "source": "dolly_partial",
    }
    assert read_examples(jsonl(tmp_path, row)) == [
        Example(
            "dolly-123",
            Conversation((Message("user", "What is rain? Answer in one sentence."),)),
            target="Water.",
            metadata={"constraints": [{"kind": "one_sentence"}], "split": "rl", "source": "dolly_partial"},
        )
    ]


def test_a_pair_may_hold_a_conversation_with_a_system_message(tmp_path: Path) -> None:
    history = [{"role": "system", "content": "S"}, {**USER, "content": "first"}, ANSWER, USER]
    row = {"prompt": "first", "chosen": [*history, ANSWER], "rejected": [*history, {**ANSWER, "content": "B"}]}
    (example,) = read_examples(jsonl(tmp_path, row))
    assert [m.content for m in example.prompt.messages] == ["S", "first", "A", "Q"]
    assert (example.completion, example.rejected) == (answer("A"), answer("B"))


def test_tool_calls_keep_their_raw_arguments(tmp_path: Path) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x":  1}'}},
        {"name": "now", "arguments": {"zone": "é"}},
    ]
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        ANSWER,
    ]
    (example,) = read_examples(jsonl(tmp_path, {"messages": messages, "tools": [{"name": "add"}]}))
    assert example.prompt.tools == ({"name": "add"},)
    assert example.prompt.messages[1:3] == (
        Message("assistant", "", (ToolCall("c1", "add", '{"x":  1}'), ToolCall("", "now", '{"zone": "é"}'))),
        Message("tool", "", tool_call_id="c1"),
    )


BAD_ROWS: list[tuple[Any, str]] = [
    ([], "a JSON list where an object belongs"),
    (3, "a JSON number where an object belongs"),
    ({}, "no known shape: needs 'messages', 'prompt' with 'completion'"),
    ({"text": "x"}, "no known shape"),
    ({"messages": []}, "'messages' has no messages"),
    ({"messages": "x"}, "'messages' is a JSON string where text or a list"),
    ({"messages": [USER]}, "'messages' has no assistant turn"),
    ({"messages": [ANSWER, USER]}, "'messages' starts with an assistant turn"),
    ({"messages": [USER, [ANSWER]]}, "'messages[1]' is a JSON list where a message belongs"),
    ({"messages": [{"role": "human", "content": "x"}]}, "unknown role 'human'; use system, user, assistant, tool"),
    ({"messages": [{"role": ["user"] * 99, "content": "x"}]}, "unknown role ['user', 'user'"),
    ({"messages": [USER, {"role": "assistant"}]}, "'messages[1].content' is a JSON null"),
    ({"messages": [USER, {**ANSWER, "content": " \n"}]}, "'messages[1].content' is empty"),
    ({"messages": [USER, {**ANSWER, "content": [{"type": "text"}]}]}, "'messages[1].content' is a JSON list"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "'messages[0].tool_calls' must be a list, in an assistant"),
    ({"messages": [USER, {**ANSWER, "tool_calls": ["x"]}]}, "'messages[1].tool_calls[0]' is no tool call"),
    ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": 1}]}]}, "tool_calls[0].name' is a JSON number"),
    ({"messages": [USER, ANSWER], "prompt": "x"}, "both 'messages' and 'prompt'"),
    ({"prompt": ""}, "'prompt' is empty"),
    ({"prompt": "a\x00b"}, "'prompt' contains a NUL character"),
    ({"prompt": "a\ud83d"}, "'prompt' contains half a surrogate pair"),
    ({"prompt": [USER, ANSWER]}, "'prompt' must start with a system or user message and end with a user message"),
    ({"prompt": "Q", "completion": " "}, "'completion' is empty"),
    ({"prompt": "Q", "completion": [USER, ANSWER]}, "'completion' must start and end with an assistant turn"),
    ({"completion": "A"}, "no known shape"),
    ({"prompt": "Q", "chosen": "A"}, "no 'rejected'"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "'chosen' and 'rejected' are the same"),
    ({"chosen": "A", "rejected": "B"}, "no 'prompt'"),
    ({"prompt": "Q", "chosen": [USER], "rejected": "B"}, "'chosen' must start and end with an assistant turn"),
    (
        {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "other"}, ANSWER]},
        "the prompts of 'chosen' and 'rejected' differ",
    ),
    (
        {"prompt": "other", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "B"}]},
        "'prompt' differs from the messages that 'chosen' answers",
    ),
    ({"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B"}, "both 'completion' and 'chosen'"),
    ({"prompt": "Q", "target": 3}, "'target' is a JSON number where text belongs"),
    ({"prompt": "Q", "tools": {"a": 1}}, "'tools' must be a list of objects"),
    ({"prompt": "Q", "id": [1]}, "'id' must be text or a whole number"),
    ({"prompt": {"a": [{"b": [[[]]]}]}}, "'prompt' is a JSON object where text or a list of messages belongs"),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_bad_row_is_told_by_line_and_reason(row: Any, expected: str, tmp_path: Path) -> None:
    assert expected in problem(tmp_path, row)


@pytest.mark.parametrize(
    ("needs", "row", "expected"),
    [
        ("demonstration", {"prompt": "Q"}, "no assistant turn to learn from; add 'completion'"),
        ("demonstration", {"prompt": [USER, ANSWER, USER]}, "no assistant turn to learn from"),
        ("pair", {"prompt": "Q", "completion": "A"}, "no 'chosen' and 'rejected'"),
    ],
)
def test_a_row_lacks_what_is_needed_of_it(needs: str, row: Any, expected: str, tmp_path: Path) -> None:
    assert expected in problem(tmp_path, row, needs=needs)
    assert len(read_examples(jsonl(tmp_path, row))) == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"prompt": "a",}', "line 2: not JSON (Illegal trailing comma"),
        (b"prompt", "line 2: not JSON (Expecting value at column 1)"),
        (b'{"prompt": "a\x00"}', "line 2: not JSON (Invalid control character"),
        (b'{"prompt": "\xff"}', "line 2: not UTF-8 at byte 13"),
        (b'{"prompt": NaN}', "line 2: not JSON (NaN is no JSON number)"),
        (b"[" * 200_000, "line 2: nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "line 2: not JSON (Exceeds the limit"),
        (b'{"prompt": "' + b"x" * (16 * 2**20) + b'"}', "line 2: longer than 16 MiB"),
    ],
    ids=["comma", "bare", "nul", "utf8", "nan", "deep", "digits", "huge"],
)
def test_a_hostile_line_is_one_bad_row_and_the_rest_is_still_read(raw: bytes, expected: str, tmp_path: Path) -> None:
    if sys.version_info < (3, 13):
        expected = expected.replace("Illegal trailing comma", "Expecting property name")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + raw + b'\n{"prompt": ""}\n')
    with pytest.raises(DataError) as raised:
        read_examples(path)
    assert "mend or remove 2 of 3 rows: " + expected in str(raised.value)
    assert str(raised.value).endswith("; line 3: 'prompt' is empty")
    assert len(str(raised.value)) < 400


def test_byte_order_mark_crlf_blank_lines_and_a_missing_last_break_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\\u2028"}\r\n\r\n  \n{"prompt": "b\xe2\x80\xa8"}')
    assert [(line, row["prompt"]) for line, row in read_rows(path)] == [(1, "a\u2028"), (4, "b\u2028")]


def test_a_byte_order_mark_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_examples(path)


def test_twenty_bad_rows_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "ok"}, *([{"prompt": ""}] * 25))
    with pytest.raises(DataError) as raised:
        read_examples(path)
    message = str(raised.value)
    assert "mend or remove 25 of 26 rows: line 2: " in message
    assert message.count("line ") == 20
    assert message.endswith("line 21: 'prompt' is empty; and 5 more")


def test_an_id_used_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "a", "prompt": "x"}, {"prompt": "y"}, {"id": "a", "prompt": "z"})
    with pytest.raises(DataError, match="line 3: id 'a' is that of line 1 too"):
        read_examples(path)


def test_rows_are_given_before_the_lines_without_json_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{\n{"a": 2}\n')
    rows = read_rows(path)
    assert [next(rows), next(rows)] == [(1, {"a": 1}), (3, {"a": 2})]
    with pytest.raises(DataError, match="mend or remove 1 of 3 rows: line 2: not JSON"):
        next(rows)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_data_set_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rows.jsonl' holds no rows; give it at least one"):
        read_examples(path)


def test_missing_files_directories_and_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    for path, message in [
        (tmp_path / "no.jsonl", "no.jsonl' does not exist; correct its path"),
        (tmp_path / "no.parquet", "no.parquet' does not exist"),
        (tmp_path, "is a directory; name one"),
        (tmp_path / "rows.csv", "is no .jsonl, .jsonl.gz or .parquet file and no hub data set; convert it"),
    ]:
        with pytest.raises(DataError, match=message):
            read_examples(path)


def test_gzip_files_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(json.dumps({"prompt": "a" * 500, "id": None}).encode())
    path.write_bytes(whole)
    assert read_examples(path) == [Example("rows-1", Conversation((Message("user", "a" * 500),)))]
    for damaged in (whole[:-9], b"no gzip", whole[:12] + b"\xff\xff" + whole[14:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="is not a complete gzip file"):
            read_examples(path)


def test_parquet_rows_are_the_same_as_json_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "p", "messages": [USER, ANSWER], "reference": None, "score": 0.5},
        {"id": "q", "messages": [USER, ANSWER, USER, ANSWER], "reference": "R", "score": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_examples(tmp_path / "rows.parquet") == read_examples(jsonl(tmp_path, *rows))


def test_bad_parquet_rows_and_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a"}, {"prompt": " "}]), path)
    with pytest.raises(DataError, match="mend or remove 1 of 2 rows: line 2: 'prompt' is empty"):
        read_examples(path)
    for damaged in (b"", b"PAR1 no PAR1", path.read_bytes()[:-20]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read_examples(path)


def test_a_hub_data_set_without_the_extra_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"'owner/name' is no local file, .* pip install 'postgrad\[hub\]'"):
        read_examples("owner/name:test")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"split 'test' of it cannot be read from the hub .* check the name"
    ) as raised:
        read_examples("owner/there-is-no-such-name:test")
    assert "\n" not in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function", "id", "name"]), inner)
    ),
    max_leaves=8,
)
keys = st.sampled_from(["id", "messages", "prompt", "completion", "chosen", "rejected", "target", "tools", "x"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(keys, json_values) | json_values, min_size=1, max_size=3))
def test_garbage_is_an_example_or_a_told_row_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = jsonl(tmp_path_factory.mktemp("rows"), *rows)
    told = ""
    num_examples = 0
    try:
        num_examples = len(read_examples(path))
    except DataError as e:
        told = str(e)
    assert num_examples == len(rows) or "line " in told
    assert "\n" not in told
