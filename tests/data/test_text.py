from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.data.text import pack_rows, read_documents
from postgrad.errors import DataError


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 17))
def test_rows_predict_every_token_once_from_its_own_document_and_are_full(sizes: list[int], context: int) -> None:
    ends = [0, *accumulate(sizes)]
    rows = pack_rows(ends, context)
    predicted = Counter(t for row in rows for start, stop in row for t in range(start + 1, stop))
    assert predicted == Counter(range(1, ends[-1] + 1))
    for row in rows:
        for start, stop in row:
            assert stop - start >= 2
            assert not set(ends) & set(range(start + 1, stop - 1)), "a span that runs over the end of a document"
    lengths = [sum(stop - start for start, stop in row) for row in rows]
    assert all(context - 1 <= length <= context for length in lengths[:-1])
    assert 2 <= lengths[-1] <= context


def test_a_row_by_hand() -> None:
    # Documents of 4, 1 and 3 predicted tokens; the first goes on in the second row, with its token 3 as context.
    assert pack_rows([0, 4, 5, 8], 4) == [[(0, 4)], [(3, 5), (4, 6)], [(5, 9)]]


def write(path: Path, content: str | list[dict[str, Any]]) -> Path:
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_rows_keep_the_split_that_they_name(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "A.", "split": "validation"}, {"text": "B.", "split": "train"}]
    documents = read_documents(write(tmp_path / "d.jsonl", rows))
    assert [(d.id, d.text, d.part) for d in documents] == [("a", "A.", "validation"), ("d-2", "B.", "train")]


def test_a_twentieth_validates_where_no_row_names_a_split_and_equal_texts_fall_together(tmp_path: Path) -> None:
    rows = [{"text": f"Document {i % 60}."} for i in range(120)]
    documents = read_documents(write(tmp_path / "d.jsonl.gz", rows))
    held_out = {d.text for d in documents if d.part == "validation"}
    assert len(held_out) == 3
    assert held_out.isdisjoint(d.text for d in documents if d.part == "train")
    again = read_documents(write(tmp_path / "e.jsonl", rows[::-1]))
    assert {d.text for d in again if d.part == "validation"} == held_out
    two = read_documents(write(tmp_path / "two.jsonl", [{"text": "One."}, {"text": "Two."}]))
    assert sorted(d.part for d in two) == ["train", "validation"]


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_a_lone_text_is_cut_at_a_paragraph_and_loses_nothing(tmp_path: Path, name: str) -> None:
    text = "".join(f"Paragraph {i} of the book.\n\n" for i in range(40))
    first, rest = read_documents(write(tmp_path / name, text))
    assert (first.id, first.part, rest.id, rest.part) == ("book", "train", "book-end", "validation")
    assert first.text + rest.text == text
    assert first.text.endswith("Paragraph 37 of the book.\n\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda f: write(f / "d.jsonl", [{"text": "A"}, {"text": " "}, {"txt": 1}]),
            "rows: line 2: .*; line 3: 'text'",
        ),
        (lambda f: write(f / "d.jsonl", [{"text": "A", "split": "test"}]), "'test' is not one of train, validation"),
        (lambda f: write(f / "d.jsonl", [{"text": "A", "split": "train"}]), "no row has 'split' = 'validation'"),
        (lambda f: write(f / "d.jsonl", [{"text": "A", "split": "train"}, {"text": "B"}]), "rows d-2 name no 'split'"),
        (lambda f: write(f / "d.jsonl", [{"text": "A"}, {"text": "A"}]), "all documents are the same"),
        (lambda f: write(f / "d.jsonl", [{"text": "\ud800"}, {"text": "A"}]), "line 1: .* half a surrogate pair"),
        (lambda f: write(f / "d.jsonl", ""), "holds no rows"),
        (lambda f: write(f / "d.txt", " \n"), "holds no text"),
        (lambda f: write(f / "d.txt", "word"), "too short to cut"),
        (lambda f: f / "d.csv", "no .jsonl, .jsonl.gz or .parquet"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(DataError, match=said) as e:
        read_documents(make(tmp_path))
    assert "\n" not in str(e.value)


def test_text_that_is_not_utf8_or_half_a_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "half.txt.gz").write_bytes(gzip.compress(b"a whole book" * 50)[:30])
    for name, said in (("latin.txt", "is not UTF-8 text .byte 3."), ("half.txt.gz", "not a complete gzip file")):
        with pytest.raises(DataError, match=said):
            read_documents(tmp_path / name)
