"""Files and hub data sets to examples. Every bad row is reported, with its line, before the first one is used."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from postgrad.errors import ConfigError, DataError
from postgrad.types import Conversation, Example, Message, Role, ToolCall

Needs = Literal["prompt", "demonstration", "pair"]

_ROLES: tuple[Role, ...] = get_args(Role)
_MAX_LINE_BYTES = 16 * 2**20
_MAX_LISTED = 20
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>\w+))?")
_SHAPE_KEYS = ("id", "messages", "prompt", "completion", "chosen", "rejected", "target", "reference", "tools")
_SHAPES = "'messages', 'prompt' with 'completion', 'prompt' with 'chosen' and 'rejected', or 'prompt'"


class _BadRow(ValueError):
    """What is wrong with one row; collected, never seen outside."""


def read_rows(source: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a .jsonl, .jsonl.gz or .parquet file, or of a hub data set "owner/name" or "owner/name:split".

    Raises:
        DataError: the file is missing, damaged or empty; or, after the last row, all lines that hold no JSON object.
        ConfigError: a hub data set cannot be reached, or the `hub` extra is not installed.
    """
    bad: dict[int, str] = {}
    total = 0
    for line, row in _scan(source):
        total += 1
        if isinstance(row, dict):
            yield line, row
        else:
            bad[line] = str(row)
    _check(source, bad, total)


def read_examples(source: str | Path, *, needs: Needs = "prompt") -> list[Example]:
    """All rows as examples; see `read_rows` for sources.

    A row holds `messages`, or a `prompt` (text or messages) with `completion`, with `chosen` and `rejected`, or alone.
    `chosen` and `rejected` may repeat the prompt. `reference` or `target` is the reference answer; all other keys
    are kept as metadata. Rows without `id` are named after the file and their line.

    Args:
        source: a file or a hub data set.
        needs: what every row must have.

    Raises:
        DataError: as `read_rows`, and for rows that are no usable example: all of them at once.
        ConfigError: as `read_rows`.
    """
    examples: list[Example] = []
    bad: dict[int, str] = {}
    first_line: dict[str, int] = {}
    stem = Path(source).name.split(".")[0]
    total = 0
    for line, row in _scan(source):
        total += 1
        try:
            if isinstance(row, _BadRow):
                raise row
            example = _example(row, f"{stem}-{line}", needs)
            if example.id in first_line:
                raise _BadRow(f"id {example.id!r} is that of line {first_line[example.id]} too")
            first_line[example.id] = line
            examples.append(example)
        except _BadRow as e:
            bad[line] = str(e)
    _check(source, bad, total)
    return examples


def with_system(example: Example, system: str) -> Example:
    """The example behind a system message, unless it has its own or there is none to give."""
    messages = example.prompt.messages
    if not system or messages[0].role == "system":
        return example
    return replace(example, prompt=replace(example.prompt, messages=(Message("system", system), *messages)))


def _check(source: str | Path, bad: Mapping[int, str], total: int) -> None:
    if not total:
        raise DataError(f"{str(source)!r} holds no rows; give it at least one")
    if bad:
        listed = [f"line {line}: {why}" for line, why in list(bad.items())[:_MAX_LISTED]]
        if len(bad) > _MAX_LISTED:
            listed.append(f"and {len(bad) - _MAX_LISTED} more")
        raise DataError(f"{str(source)!r}: mend or remove {len(bad)} of {total} rows: " + "; ".join(listed))


def _scan(source: str | Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{str(source)!r} is a directory; name one .jsonl, .jsonl.gz or .parquet file in it")
    is_lines = path.name.endswith((".jsonl", ".jsonl.gz"))
    if is_lines or path.name.endswith(".parquet"):
        if not path.exists():
            raise DataError(f"data file {str(source)!r} does not exist; correct its path")
        return _scan_lines(path) if is_lines else _scan_parquet(path)
    hub = None if isinstance(source, Path) or path.exists() else _HUB_ID.fullmatch(source)
    if hub is None:
        raise DataError(f"{str(source)!r} is no .jsonl, .jsonl.gz or .parquet file and no hub data set; convert it")
    return _scan_hub(hub["name"], hub["split"] or "train")


def _scan_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(_raw_lines(cast(IO[bytes], file)), 1):
                text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
                if not text.strip():
                    continue
                try:
                    yield line, _json_object(text)
                except _BadRow as e:
                    yield line, e
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{str(path)!r} is not a complete gzip file; copy or compress it again") from None
    except OSError as e:
        raise DataError(
            f"{str(path)!r} cannot be read ({e.strerror or e}); check the file and its permissions"
        ) from None


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines without their break; of one that is too long, just enough to tell."""
    while raw := file.readline(_MAX_LINE_BYTES + 1):
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(_MAX_LINE_BYTES)):
            pass
        yield raw.removesuffix(b"\n")


def _json_object(raw: bytes) -> dict[str, Any]:
    if len(raw) > _MAX_LINE_BYTES:
        raise _BadRow(f"longer than {_MAX_LINE_BYTES // 2**20} MiB")
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as e:
        raise _BadRow(f"not UTF-8 at byte {e.start + 1}") from None
    except json.JSONDecodeError as e:
        raise _BadRow(f"not JSON ({e.msg} at column {e.colno})") from None
    except ValueError as e:
        raise _BadRow(f"not JSON ({e})") from None
    except RecursionError:
        raise _BadRow("nested too deeply") from None
    if not isinstance(row, dict):
        raise _BadRow(f"a JSON {_kind(row)} where an object belongs")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _scan_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pyarrow.ArrowException, OSError) as e:
        reason = str(e).splitlines()[0]
        raise DataError(f"{str(path)!r} cannot be read as Parquet ({reason}); write the file again") from None


def _scan_hub(name: str, split: str) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{name!r} is no local file, and reading it from the hub needs: pip install 'postgrad[hub]'"
        ) from None
    from httpx import HTTPError

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, split=split, streaming=True)
        yield from enumerate(rows, 1)
    except (OSError, ValueError, HTTPError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{name!r} is no local file, and split {split!r} of it cannot be read from the hub ({reason}); "
            "check the name and the connection, or download it as Parquet"
        ) from None


def _example(row: Mapping[str, Any], name: str, needs: Needs) -> Example:
    """One row of any of the shapes; a key that is null counts as absent, as Parquet writes it."""
    row = {key: value for key, value in row.items() if value is not None}
    row_id = row.get("id", name)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int) or row_id == "":
        raise _BadRow("'id' must be text or a whole number")
    target = row.get("target", row.get("reference"))
    tools = row.get("tools", [])
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise _BadRow("'tools' must be a list of objects")
    prompt, completion, rejected = _parts(row)
    if needs == "pair" and not rejected:
        raise _BadRow("no 'chosen' and 'rejected'")
    if needs == "demonstration" and not completion and "messages" not in row:
        raise _BadRow("no assistant turn to learn from; add 'completion'")
    return Example(
        id=str(row_id),
        prompt=Conversation(prompt, tuple(tools)),
        completion=completion,
        rejected=rejected,
        target=None if target is None else _text(target, "target" if "target" in row else "reference"),
        metadata={key: value for key, value in row.items() if key not in _SHAPE_KEYS},
    )


_Messages = tuple[Message, ...]


def _parts(row: Mapping[str, Any]) -> tuple[_Messages, _Messages, _Messages]:
    """(prompt, completion, rejected) by the shape of the row."""
    if "messages" in row:
        if mixed := [key for key in ("prompt", "completion", "chosen", "rejected") if key in row]:
            raise _BadRow(f"both 'messages' and {mixed[0]!r}; keep one of them")
        messages = _messages(row["messages"], "messages")
        if messages[0].role == "assistant":
            raise _BadRow("'messages' starts with an assistant turn; put what it answers before it")
        if not any(m.role == "assistant" for m in messages):
            raise _BadRow("'messages' has no assistant turn")
        return messages, (), ()
    if "chosen" in row or "rejected" in row:
        if missing := [key for key in ("chosen", "rejected") if key not in row]:
            raise _BadRow(f"no {missing[0]!r}")
        if "completion" in row:
            raise _BadRow("both 'completion' and 'chosen'; keep one of them")
        return _pair(row)
    if "prompt" not in row:
        raise _BadRow(f"no known shape: needs {_SHAPES}")
    return _prompt(row["prompt"]), _answer(row["completion"], "completion") if "completion" in row else (), ()


def _pair(row: Mapping[str, Any]) -> tuple[_Messages, _Messages, _Messages]:
    (said, chosen), (also_said, rejected) = (_cut(row[key], key) for key in ("chosen", "rejected"))
    if said != also_said:
        raise _BadRow("the prompts of 'chosen' and 'rejected' differ")
    if "prompt" in row:
        prompt = _prompt(row["prompt"])
        users = tuple(m for m in said if m.role == "user")
        if said and prompt != said and prompt not in (users[:1], users[-1:]):
            raise _BadRow("'prompt' differs from the messages that 'chosen' answers")
        said = said or prompt
    if not said:
        raise _BadRow("no 'prompt'")
    if chosen == rejected:
        raise _BadRow("'chosen' and 'rejected' are the same")
    return said, chosen, rejected


def _cut(value: Any, key: str) -> tuple[_Messages, _Messages]:
    """(repeated prompt, answer): the answer starts after the last user message."""
    if isinstance(value, str):
        return (), _answer(value, key)
    messages = _messages(value, key)
    start = 1 + max((i for i, m in enumerate(messages) if m.role in ("user", "system")), default=-1)
    _check_answer(messages[start:], key)
    if start and messages[0].role == "assistant":
        raise _BadRow(f"{key!r} starts with an assistant turn; put what it answers before it")
    return messages[:start], messages[start:]


def _prompt(value: Any) -> _Messages:
    if isinstance(value, str):
        return (Message("user", _text(value, "prompt")),)
    messages = _messages(value, "prompt")
    if messages[0].role == "assistant" or messages[-1].role not in ("user", "tool"):
        raise _BadRow("'prompt' must start with a system or user message and end with a user message")
    return messages


def _answer(value: Any, key: str) -> _Messages:
    if isinstance(value, str):
        return (Message("assistant", _text(value, key)),)
    messages = _messages(value, key)
    _check_answer(messages, key)
    return messages


def _check_answer(messages: _Messages, key: str) -> None:
    if not messages or messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise _BadRow(f"{key!r} must start and end with an assistant turn")


def _messages(value: Any, key: str) -> _Messages:
    if not isinstance(value, list):
        raise _BadRow(f"{key!r} is a JSON {_kind(value)} where text or a list of messages belongs")
    if not value:
        raise _BadRow(f"{key!r} has no messages")
    return tuple(read_message(item, f"{key}[{i}]") for i, item in enumerate(value))


def read_message(item: Any, key: str, *, may_be_empty: bool = False) -> Message:
    """A message in the OpenAI shape, as chat templates take it.

    Args:
        item: the parsed JSON.
        key: what to call it.
        may_be_empty: whether its text may.

    Raises:
        ValueError: with what is wrong.
    """
    if not isinstance(item, dict):
        raise _BadRow(f"{key!r} is a JSON {_kind(item)} where a message belongs")
    role = next((known for known in _ROLES if known == item.get("role")), None)
    if role is None:
        raise _BadRow(f"{key!r} has the unknown role {_short(item.get('role'))}; use {', '.join(_ROLES)}")
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and role != "assistant"):
        raise _BadRow(f"'{key}.tool_calls' must be a list, in an assistant message")
    tool_calls = tuple(_tool_call(call, f"{key}.tool_calls[{i}]") for i, call in enumerate(calls))
    content = item.get("content")
    if may_be_empty or role == "tool" or tool_calls:
        content = "" if content is None else _text(content, f"{key}.content", may_be_empty=True)
    else:
        content = _text(content, f"{key}.content")
    call_id = item.get("tool_call_id")
    return Message(role, content, tool_calls, None if call_id is None else _text(call_id, f"{key}.tool_call_id"))


def _tool_call(item: Any, key: str) -> ToolCall:
    """A call in the OpenAI shape; arguments given as an object are written as JSON."""
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict):
        raise _BadRow(f"{key!r} is no tool call: needs 'function' with 'name' and 'arguments'")
    arguments = function.get("arguments", "{}")
    raw = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
    call_id = item.get("id") or ""
    return ToolCall(
        _text(call_id, f"{key}.id", may_be_empty=True),
        _text(function.get("name"), f"{key}.name"),
        _text(raw, f"{key}.arguments"),
    )


def _text(value: Any, key: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{key!r} is a JSON {_kind(value)} where text belongs")
    if not may_be_empty and not value.strip():
        raise _BadRow(f"{key!r} is empty")
    if "\x00" in value:
        raise _BadRow(f"{key!r} contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow(f"{key!r} contains half a surrogate pair") from None
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
