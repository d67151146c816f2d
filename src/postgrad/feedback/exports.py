"""Labels to files, in pages of one snapshot, so that memory does not grow with their number.

What was asked for and what was written stands beside the files, with the SHA-256 of each.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import orjson

from postgrad import __version__
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.formats import COLUMNS, FORMATS, Format, Labelled, Row, defused
from postgrad.feedback.native import WIDE, Native
from postgrad.feedback.pages import TABLE, TRAINING, Filters, Reading, pages
from postgrad.feedback.store import LabelStore

FORMAT_VERSION: Final = 1
NATIVE: Final = "native"
FORMAT_NAMES: Final = (NATIVE, *FORMATS)
_ROW_GROUP: Final = 5_000
_BUFFER: Final = 2**20
_AS_NATIVE: Final = Format(lambda one: iter(()), (), None, ".jsonl", everything=True)


@dataclass(slots=True)
class Manifest:
    format: str
    filters: dict[str, Any]
    valid_share: float | None
    """None where the format is not split."""
    format_version: int = FORMAT_VERSION
    postgrad: str = __version__
    labels: int = 0
    """That passed the filters."""
    without_rows: int = 0
    """Those of them of which the format can say nothing: ties, abstentions."""
    kinds: dict[str, int] = field(default_factory=dict)
    rater_kinds: dict[str, int] = field(default_factory=dict)
    guidelines: list[int] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)


def export_labels(
    store: LabelStore,
    target: Path,
    format_name: str,
    *,
    filters: Filters | None = None,
    valid_share: float = 0.05,
    on_page: Callable[[float], None] = lambda done: None,
) -> Manifest:
    """Write the labels that pass the filters, in the order of their submission.

    Args:
        store: whose labels.
        target: a file, where it has the format's suffix, with everything in it; else a directory, into which formats
            for training write `train` and `valid`, by a hash of the prompt's id, so that no prompt is in both.
        format_name: one of `FORMAT_NAMES`.
        filters: by default "train" and people, where the format is for training.
        valid_share: of the prompts, 0 to 1.
        on_page: is told how much is done, from 0 to 1.

    Raises:
        ConfigError: an unknown format, or gold labels for training.
        DataError: no label passes the filters.
    """
    if format_name not in FORMAT_NAMES:
        raise ConfigError(f"--format {format_name!r} is not one of {', '.join(FORMAT_NAMES)}")
    form = FORMATS.get(format_name, _AS_NATIVE)
    wanted = _resolve(filters or Filters(), form, format_name)
    single = target.suffix == form.suffix
    splits = form.splits and not single
    folder = target.parent if single else target
    folder.mkdir(parents=True, exist_ok=True)
    names = [target.name] if single else [n + form.suffix for n in (("train", "valid") if splits else ("labels",))]
    manifest = Manifest(format_name, asdict(wanted), valid_share if form.splits else None)
    beside = folder / (f"{target.stem}.manifest.json" if single else "manifest.json")
    with ExitStack() as stack, store.reading() as session:
        sinks = [stack.enter_context(_SINKS[form.suffix](folder / name)) for name in names]
        columns = WIDE if format_name == NATIVE else TRAINING if form.splits else TABLE
        share = None if format_name == NATIVE or (single and form.splits) else valid_share
        native: Native | None = None
        for page, done in pages(session, Reading(wanted, form.kinds, not form.everything, columns, share)):
            if format_name == NATIVE:
                native = native or Native(session.connection())
                sinks[0].add_lines(native.lines(page))
            else:
                _add(sinks, [(one.split, list(form.rows(one))) for one in page], manifest)
            _count(manifest, page)
            on_page(done)
        if not manifest.labels:
            raise DataError(f"no label passes the filters ({_said(wanted)}); widen them, for instance --rater-kind")
        manifest.files = [sink.finish() for sink in sinks]
        for sink in sinks:
            sink.publish()
    _write(beside, manifest)
    return manifest


class _Lines:
    """A file that takes its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.partial")
        self._file: IO[bytes] = self._partial.open("wb", buffering=_BUFFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, rows: Sequence[Row]) -> None:
        self.add_lines([orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows])

    def add_lines(self, lines: Sequence[bytes]) -> None:
        self.rows += len(lines)
        self._file.write(b"".join(lines))

    def finish(self) -> dict[str, Any]:
        """Close it; its name, rows, bytes and SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._partial.stat().st_size
        return {"name": self.path.name, "rows": self.rows, "bytes": size, "sha256": digest}

    def publish(self) -> None:
        self._partial.replace(self.path)


class _Csv(_Lines):
    """UTF-8 with a mark, which spreadsheets need to notice that it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._text = io.TextIOWrapper(self._file, encoding="utf-8-sig", newline="", write_through=True)
        self._writer = csv.writer(self._text)
        self._writer.writerow(COLUMNS)

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += len(rows)
        self._writer.writerows([defused(cell) for cell in row.values()] for row in rows)


class _Parquet(_Lines):
    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        super().__init__(path)
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)
        self._waiting: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += len(rows)
        self._waiting += rows
        if len(self._waiting) >= _ROW_GROUP:
            self._write_group()

    def finish(self) -> dict[str, Any]:
        if self._waiting:
            self._write_group()
        self._writer.close()
        return super().finish()

    def _write_group(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._waiting, self._schema))
        self._waiting = []


_SINKS: Final = {".jsonl": _Lines, ".csv": _Csv, ".parquet": _Parquet}


def _write(path: Path, manifest: Manifest) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _resolve(filters: Filters, form: Format, name: str) -> Filters:
    if filters.purpose == "gold" and not form.everything:
        raise ConfigError(f"--purpose gold: answers to gold questions are never exported as {name}; use native or csv")
    kinds = filters.rater_kinds or (() if form.everything else ("human",))
    return Filters(filters.round_id, filters.purpose or form.purpose, kinds)


def _said(filters: Filters) -> str:
    return ", ".join(f"{key} {value}" for key, value in asdict(filters).items() if value) or "none given"


def _add(sinks: Sequence[_Lines], page: Sequence[tuple[str, list[Row]]], manifest: Manifest) -> None:
    manifest.without_rows += sum(not rows for _, rows in page)
    held_out = len(sinks) > 1
    sinks[0].add([row for split, rows in page if not (held_out and split == "valid") for row in rows])
    if held_out:
        sinks[1].add([row for split, rows in page if split == "valid" for row in rows])


def _count(manifest: Manifest, page: Sequence[Labelled]) -> None:
    manifest.labels += len(page)
    for counts, column in ((manifest.kinds, "kind"), (manifest.rater_kinds, "rater_kind")):
        for kind, num in Counter(getattr(one.label, column) for one in page).items():
            counts[kind] = counts.get(kind, 0) + num
    told = {one.label.guideline for one in page} - {None, *manifest.guidelines}
    manifest.guidelines = sorted([*manifest.guidelines, *told])
