"""Raw text to rows of tokens: every token is predicted once, from its own document alone."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from postgrad.data.readers import read_rows
from postgrad.errors import DataError

Part = Literal["train", "validation"]
PARTS: tuple[Part, ...] = ("train", "validation")
VALIDATION_SHARE = 0.05
_MAX_LISTED = 10

Span = tuple[int, int]
"""[start, stop) of a stream of tokens; its first token is context, all others are predicted."""


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    text: str
    part: Part


def read_documents(source: Path) -> list[Document]:
    """Documents of a .txt or .txt.gz file (one), or of a .jsonl, .jsonl.gz or .parquet file (one a row, in `text`).

    Rows may say `split`: train or validation. Where none does, the documents whose SHA-256 is smallest validate, a
    twentieth of them and one at least, and equal texts fall together; a lone document is cut before its last twentieth.

    Raises:
        DataError: no text, rows without text, or a part without a document; all bad rows are named at once.
    """
    if source.name.endswith((".txt", ".txt.gz")):
        documents: list[tuple[str, str, Part | None]] = [(source.name.split(".")[0], _read_text(source), None)]
    else:
        documents = _read_rows(source)
    if all(part is None for _, _, part in documents):
        return _split([(name, text) for name, text, _ in documents], source)
    if unsaid := [name for name, _, part in documents if part is None]:
        raise DataError(
            f"{source}: rows {_listed(unsaid)} name no 'split' and others do; write train or validation in every row"
        )
    for wanted in PARTS:
        if not any(part == wanted for _, _, part in documents):
            raise DataError(f"{source}: no row has 'split' = {wanted!r}; give both parts a document")
    return [Document(name, text, part) for name, text, part in documents if part is not None]


def pack_rows(ends: Sequence[int], context: int) -> list[list[Span]]:
    """Rows of at most `context` tokens that cover a stream: every token but the first is predicted in one span.

    A span lies within one document, so that attention, which stays within a sequence, never crosses documents. A
    document that reaches over the end of a row goes on in the next, whose span repeats its last token as context. All
    rows but the last are full, save for a single place that no span of two tokens fits into.

    Args:
        ends: places of the EOS tokens in the stream, which begins with one; what lies between two is a document.
        context: most tokens of a row.
    """
    assert context >= 2, "a row holds a token and the one before it"
    rows: list[list[Span]] = []
    row: list[Span] = []
    room = context
    for at, stop in pairwise(ends):
        while at < stop:
            taken = min(room - 1, stop - at)
            row.append((at, at + taken + 1))
            at, room = at + taken, room - taken - 1
            if room < 2:
                rows.append(row)
                row, room = [], context
    return [*rows, row] if row else rows


def _read_text(source: Path) -> str:
    try:
        raw = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
        text = raw.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{str(source)!r} is not a complete gzip file; copy or compress it again") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{str(source)!r} is not UTF-8 text (byte {e.start}); convert it") from None
    if not text.strip():
        raise DataError(f"{str(source)!r} holds no text; give it some")
    return text


def _read_rows(source: Path) -> list[tuple[str, str, Part | None]]:
    documents: list[tuple[str, str, Part | None]] = []
    bad = []
    for line, row in read_rows(source):
        text, part = row.get("text"), row.get("split")
        if not isinstance(text, str) or not text.strip():
            bad.append(f"line {line}: 'text' must be text")
        elif part is not None and part not in PARTS:
            bad.append(f"line {line}: 'split' = {part!r} is not one of {', '.join(PARTS)}")
        elif any("\ud800" <= c <= "\udfff" for c in text):
            bad.append(f"line {line}: 'text' holds half a surrogate pair, which is no text")
        else:
            documents.append((str(row.get("id", f"{source.name.split('.')[0]}-{line}")), text, part))
    if bad:
        raise DataError(f"{source}: mend or remove {len(bad)} rows: {_listed(bad, '; ')}")
    return documents


def _split(documents: Sequence[tuple[str, str]], source: Path) -> list[Document]:
    if len(documents) == 1:
        return _cut(Document(documents[0][0], documents[0][1], "train"), source)
    digests = [hashlib.sha256(text.encode("utf-8")).digest() for _, text in documents]
    distinct = sorted(set(digests))
    if len(distinct) == 1:
        raise DataError(f"{source}: all documents are the same, so none can validate; add others")
    held_out = set(distinct[: max(1, round(VALIDATION_SHARE * len(distinct)))])
    return [
        Document(name, text, "validation" if digest in held_out else "train")
        for (name, text), digest in zip(documents, digests, strict=True)
    ]


def _cut(document: Document, source: Path) -> list[Document]:
    """At the paragraph, or else the line, that is nearest before the last twentieth."""
    text = document.text
    wanted = round((1 - VALIDATION_SHARE) * len(text))
    cut = next((at + len(mark) for mark in ("\n\n", "\n", " ") if (at := text.rfind(mark, 0, wanted)) > 0), 0)
    if not text[:cut].strip() or not text[cut:].strip():
        raise DataError(f"{str(source)!r} is too short to cut a validation part off; give it a few paragraphs")
    return [
        replace(document, text=text[:cut]),
        Document(f"{document.id}-end", text[cut:], "validation"),
    ]


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = [f"and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
    return separator.join([*items[:_MAX_LISTED], *more])
