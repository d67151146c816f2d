"""Labels to files, in pages of one snapshot, so that memory does not grow with their number.

What was asked for and what was written stands beside the files, with the SHA-256 of each.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from postgrad import __version__
from postgrad.errors import ConfigError, DataError
from postgrad.feedback.chunked import chunked
from postgrad.feedback.chunks import NATIVE, Plan, csv_lines, format_of
from postgrad.feedback.formats import COLUMNS, FORMATS, Format, Piece, Row
from postgrad.feedback.pages import Filters
from postgrad.feedback.store import LabelStore

FORMAT_VERSION: Final = 1
FORMAT_NAMES: Final = (NATIVE, *FORMATS)
_ROW_GROUP: Final = 5_000
_BUFFER: Final = 2**20
_GZIPPED: Final = ".jsonl.gz"


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
        target: a file, where it has the format's suffix, or .jsonl.gz for .jsonl, with everything in it; else a
            directory, into which formats for training write `train` and `valid`, by a hash of the prompt's id, so that
            no prompt is in both.
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
    form = format_of(format_name)
    wanted = _resolve(filters or Filters(), form, format_name)
    if target.suffix == ".gz" and not (target.name.endswith(_GZIPPED) and form.suffix == ".jsonl"):
        raise ConfigError(f"{str(target)!r}: only JSON lines are compressed, as FILE{_GZIPPED}; say FILE{form.suffix}")
    suffix = _GZIPPED if target.suffix == ".gz" else form.suffix
    single = target.name.endswith(suffix)
    splits = form.splits and not single
    folder = target.parent if single else target
    folder.mkdir(parents=True, exist_ok=True)
    names = [target.name] if single else [n + suffix for n in (("train", "valid") if splits else ("labels",))]
    manifest = Manifest(format_name, asdict(wanted), valid_share if form.splits else None)
    beside = folder / (f"{target.name.removesuffix(suffix)}.manifest.json" if single else "manifest.json")
    share = None if format_name == NATIVE or (single and form.splits) else valid_share
    plan, sink = Plan(format_name, wanted, share, splits), _SINKS[suffix]
    told: set[bytes] = set()
    counts: Counter[tuple[str, str, int | None]] = Counter()
    with ExitStack() as stack:
        sinks = [stack.enter_context(sink(folder / name)) for name in names]
        for chunk, done in stack.enter_context(closing(chunked(store, plan))):
            for to, pieces in zip(sinks, chunk.pieces, strict=True):
                for piece in pieces:
                    if piece.is_news:
                        if piece.data in told:
                            continue
                        told.add(piece.data)
                    to.add(piece)
            counts.update(chunk.counts)
            manifest.without_rows += chunk.without_rows
            on_page(done)
        if not counts:
            raise DataError(f"no label passes the filters ({_said(wanted)}); widen them, for instance --rater-kind")
        manifest.files = [to.finish() for to in sinks]
        for to in sinks:
            to.publish()
    _count(manifest, counts)
    _write(beside, manifest)
    return manifest


class _Hashed(io.BufferedWriter):
    """A new file that knows the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"), _BUFFER)
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return super().write(data)


class _Lines:
    """A file that takes its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.partial")
        self._file = _Hashed(self._partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, piece: Piece) -> None:
        self.rows += piece.num_rows
        self._file.write(piece.data)

    def finish(self) -> dict[str, Any]:
        """Close it; its name, rows, bytes and SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        size, digest = self._partial.stat().st_size, self._file.sha256.hexdigest()
        return {"name": self.path.name, "rows": self.rows, "bytes": size, "sha256": digest}

    def publish(self) -> None:
        self._partial.replace(self.path)


class _Gzipped(_Lines):
    """One member, without a time or a name in its head, so that equal rows are equal bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)

    def add(self, piece: Piece) -> None:
        super().add(Piece(self._packer.compress(piece.data), piece.num_rows))

    def finish(self) -> dict[str, Any]:
        self._file.write(self._packer.flush())
        return super().finish()


class _Csv(_Lines):
    """UTF-8 with a mark, which spreadsheets need to notice that it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file.write(codecs.BOM_UTF8 + csv_lines([list(COLUMNS)]))


class _Parquet(_Lines):
    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        super().__init__(path)
        types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)
        self._waiting: list[Row] = []

    def add(self, piece: Piece) -> None:
        self.rows += piece.num_rows
        self._waiting += piece.data
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


_SINKS: Final = {".jsonl": _Lines, _GZIPPED: _Gzipped, ".csv": _Csv, ".parquet": _Parquet}


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


def _count(manifest: Manifest, counts: Counter[tuple[str, str, int | None]]) -> None:
    manifest.labels = counts.total()
    for (kind, rater_kind, _), num in counts.items():
        manifest.kinds[kind] = manifest.kinds.get(kind, 0) + num
        manifest.rater_kinds[rater_kind] = manifest.rater_kinds.get(rater_kind, 0) + num
    manifest.guidelines = sorted({guideline for _, _, guideline in counts if guideline is not None})
