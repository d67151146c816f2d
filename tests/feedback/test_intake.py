import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from postgrad.errors import DataError
from postgrad.feedback.intake import MAX_ROW_BYTES, BadRow, BadRows, read_rows

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def read(path: Path, content: bytes, *, max_mb: int = 64) -> list[tuple[int, Any]]:
    path.write_bytes(content)
    found = read_rows(path, max_mb=max_mb)
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in found]


def test_lines_and_a_list_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"n": i, "text": '\U0001f600 [}]\\" \u05d0' * (i % 50)} for i in range(3_000)]
    as_lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    as_list = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    assert len(as_list) > 3 * 2**16
    assert read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + as_lines) == [(1 + 2 * i, row) for i, row in enumerate(rows)]
    found = read(tmp_path / "a.json", as_list)
    assert found == [(2 + 4 * i, row) for i, row in enumerate(rows)]
    assert read(tmp_path / "b.json.gz", gzip.compress(as_list)) == found


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
        (b'{"a": "\x00"}', "not JSON (Invalid control character at at column 8)"),
        (b'{"a": ["\\u0000"]}', "a text contains a NUL character"),
        (b'{"\\u0000": 1}', "a text contains a NUL character"),
        (b'{"a": "\\ud800"}', "a text contains half a surrogate pair"),
        (b'{"a": NaN}', "not JSON (NaN is no JSON number)"),
        (b"{1: 2}", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b"3", "a number where an object belongs"),
        (b'["a"] x', None),
        (DEEP, "nested too deeply"),
        (b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}', "longer than 4 MiB"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not JSON (Exceeds the limit"),
    ],
)
def test_hostile_lines(tmp_path: Path, content: bytes, why: str | None) -> None:
    if why is None:
        assert read(tmp_path / "a.jsonl", content)[0][1] == "a text where an object belongs"
        return
    (bad, good) = read(tmp_path / "a.jsonl", content + b'\n{"ok": "\\\\u0000"}')
    assert bad[0] == 1
    assert bad[1].startswith(why)
    assert good == (2, {"ok": "\\u0000"})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"a": 1},\n{"b": ', (2, "the list does not end")),
        (b'[{"a": 1}\n', (2, "the list does not end")),
        (b'[{"a": 1},\n 7]', (2, "a number where an object belongs")),
        (b'[{"a": 1},\n{"b": "\xff"}]', (1, "not UTF-8 here or soon after")),
        (b'[{"a": 1},\n' + DEEP + b"]", (2, "nested too deeply")),
        (b'[{"a": 1},\n{"b": "' + b"x" * (2 * MAX_ROW_BYTES) + b'"}]', (2, "longer than 4 MiB")),
        (b'[{"a": 1},\n{"b": "\\u0000"}]', (2, "a text contains a NUL character")),
    ],
)
def test_hostile_lists(tmp_path: Path, content: bytes, why: tuple[int, str]) -> None:
    assert why in read(tmp_path / "a.json", content)


@pytest.mark.parametrize("content", [b"x" * (2**20 + 1), b"[" + b" " * 2**20, b"\n" * (2**20 + 1)])
def test_a_bomb_is_stopped_while_it_goes_off(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="more than 1 MiB uncompressed"):
        read(tmp_path / "a.gz", gzip.compress(content), max_mb=1)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / "missing.jsonl", max_mb=1))
    with pytest.raises(DataError, match="not a complete gzip file"):
        read(tmp_path / "a.gz", gzip.compress(b"{}" * 10_000)[:-9])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read(tmp_path / "a.gz", b"{}")


def test_many_bad_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    bad = BadRows(tmp_path / "x")
    for line in range(1, 31):
        bad.add(line, BadRow("no"))
    with pytest.raises(DataError, match=r"30 of 40 rows.*line 20: no; and 10 more$"):
        bad.check(40, skip=False)
    with pytest.raises(DataError, match="holds no rows"):
        BadRows(tmp_path / "x").check(0, skip=False)
