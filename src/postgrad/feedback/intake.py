"""Rows of files that strangers wrote: read one at a time, with limits, and refused with their line numbers."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

from postgrad.errors import DataError

MAX_ROW_BYTES: Final = 4 * 2**20
MAX_MB: Final = 4_096
"""Of a file, uncompressed, where nobody says otherwise."""
_MAX_LISTED: Final = 20
_MAX_ID: Final = 255
_CHUNK: Final = 2**16


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
_GAP: Final = re.compile(r"[\s,]*")
_TOO_LONG: Final = f"longer than {MAX_ROW_BYTES // 2**20} MiB"
_TOO_DEEP: Final = "nested too deeply"


class BadRow(ValueError):
    """What is wrong with one row; collected, never seen outside."""


class BadRows:
    """Every bad row of a file, of which the first few are listed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listed: list[str] = []
        self.lines: set[int] = set()

    def add(self, line: int, why: BadRow) -> None:
        self.lines.add(line)
        if len(self.lines) <= _MAX_LISTED:
            self._listed.append(f"line {line}: {why}")

    @property
    def listed(self) -> list[str]:
        """What is wrong with the first few, and how many more there are."""
        more = len(self.lines) - len(self._listed)
        return [*self._listed, *([f"and {more} more"] if more else [])]

    def check(self, total: int, *, skip: bool) -> None:
        """Raise DataError where there were no good rows, or, unless they are to be skipped, any bad ones."""
        if not total:
            raise DataError(f"{str(self._path)!r} holds no rows; give it at least one")
        if self.lines and not (skip and len(self.lines) < total):
            raise DataError(
                f"{str(self._path)!r}: mend or remove {len(self.lines)} of {total} rows, nothing was taken from it: "
                + "; ".join(self.listed)
            )


def read_rows(path: Path, *, max_mb: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line, row) of a file of JSON lines, or of one JSON list, which may be gzipped.

    Raises:
        DataError: the file is missing, damaged, or longer than `max_mb` once it is uncompressed.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            limited = _Limited(cast(IO[bytes], file), path, max_mb)
            head = limited.read(_CHUNK).removeprefix(b"\xef\xbb\xbf")
            yield from _items(limited, head) if head.lstrip().startswith(b"[") else _lines(limited, head)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{str(path)!r} is not a complete gzip file; copy or compress it again") from None
    except OSError as e:
        raise DataError(f"{str(path)!r} cannot be read ({e.strerror or e}); check its path and permissions") from None


def text(row: dict[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(f"{key!r} is {_named(value)} where text belongs")
    if not may_be_empty and not value.strip():
        raise BadRow(f"{key!r} is empty")
    return value


def identifier(value: Any, key: str) -> str:
    """A name that is safe as a part of a path, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_ID:
        raise BadRow(f"{key!r} must be text of 1 to {_MAX_ID} characters, or a whole number")
    if not value.isprintable() or "\\" in value or any(part in ("", ".", "..") for part in value.split("/")):
        raise BadRow(f"{key!r} is no name: control characters, backslashes, and empty, '.' and '..' parts are refused")
    return value


def items(row: dict[str, Any], key: str, kind: type) -> list[Any]:
    """A list whose elements are all of one type."""
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise BadRow(f"{key!r} must be a list of {_KINDS[kind]}s")
    return value


def mapping(row: dict[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key)
    if not isinstance(value, dict):
        raise BadRow(f"{key!r} is {_named(value)} where an object belongs")
    return value


class _Limited:
    """Stops a bomb while it goes off."""

    def __init__(self, file: IO[bytes], path: Path, max_mb: int) -> None:
        self._file = file
        self._path = path
        self._max_mb = max_mb
        self._left = max_mb * 2**20

    def read(self, num: int) -> bytes:
        return self._counted(self._file.read(num))

    def readline(self, limit: int) -> bytes:
        return self._counted(self._file.readline(limit))

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            raise DataError(
                f"{str(self._path)!r} holds more than {self._max_mb} MiB uncompressed; "
                "raise --max-mb if you trust it, or split it"
            )
        return found


def _lines(file: _Limited, head: bytes) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for line, raw in enumerate(_raw_lines(file, head), 1):
        if raw.strip():
            yield line, _parsed(raw)


def _raw_lines(file: _Limited, head: bytes) -> Iterator[bytes]:
    """Of a line that is too long, just enough to tell."""
    *whole, rest = head.split(b"\n")
    yield from whole
    while True:
        more = file.readline(MAX_ROW_BYTES)
        raw = rest + more
        while more and not more.endswith(b"\n"):
            more = file.readline(MAX_ROW_BYTES)
            raw = raw + more if len(raw) <= MAX_ROW_BYTES else raw
        if not raw:
            return
        yield raw.removesuffix(b"\n")
        rest = b""


def _items(file: _Limited, head: bytes) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Elements of one JSON list; what follows an element that is broken cannot be found."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    line, want = 1, _CHUNK
    try:
        held = decode(head).lstrip()[1:]
        while True:
            gap = _GAP.match(held)
            assert gap is not None
            line, held = line + gap[0].count("\n"), held[gap.end() :]
            if held.startswith("]"):
                return
            row, end = _first(held)
            if end == 0:
                more = file.read(want)
                if not more or len(held) > MAX_ROW_BYTES:
                    yield line, BadRow("the list does not end" if not more else _TOO_LONG)
                    return
                held, want = held + decode(more), 2 * want
                continue
            yield line, BadRow(_TOO_LONG) if end > MAX_ROW_BYTES else row
            line, held, want = line + held.count("\n", 0, end), held[end:], _CHUNK
    except UnicodeDecodeError:
        yield line, BadRow("not UTF-8 here or soon after")


def _first(held: str) -> tuple[dict[str, Any] | BadRow, int]:
    """The element at the beginning and its length, which is 0 where more of the file is needed to tell."""
    try:
        row, end = _DECODER.raw_decode(held)
        return _checked(row, "\\u" in held[:end]), end
    except RecursionError:
        return BadRow(_TOO_DEEP), len(held)
    except ValueError:
        return BadRow("not JSON"), 0


def _parsed(raw: bytes) -> dict[str, Any] | BadRow:
    if len(raw) > MAX_ROW_BYTES:
        return BadRow(_TOO_LONG)
    try:
        return _checked(_DECODER.decode(raw.decode("utf-8")), b"\\u" in raw)
    except UnicodeDecodeError as e:
        return BadRow(f"not UTF-8 at byte {e.start + 1}")
    except json.JSONDecodeError as e:
        return BadRow(f"not JSON ({e.msg} at column {e.colno})")
    except ValueError as e:
        return BadRow(f"not JSON ({e})")
    except RecursionError:
        return BadRow(_TOO_DEEP)


def _checked(row: Any, has_escapes: bool) -> dict[str, Any] | BadRow:
    if not isinstance(row, dict):
        return BadRow(f"{_named(row)} where an object belongs")
    try:
        if has_escapes:
            _check_texts(row)
    except BadRow as e:
        return e
    return row


def _check_texts(row: Any) -> None:
    waiting = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            if "\x00" in value:
                raise BadRow("a text contains a NUL character")
            if any("\ud800" <= c <= "\udfff" for c in value):
                raise BadRow("a text contains half a surrogate pair")


_KINDS: Final[dict[type, str]] = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "nothing"}


def _named(value: Any) -> str:
    return f"a {_KINDS.get(type(value), 'number')}" if value is not None else "missing"
