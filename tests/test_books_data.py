"""The packaged books and speeches: how they were cut and cleaned, and that each document is where its hash puts it."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from test_quickstart_data import ROOT

from postgrad.data.text import read_documents
from postgrad.recipes import books_data_path


def load_builder() -> ModuleType:
    path = ROOT / "tools/build_pretrain_data.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


builder = load_builder()


def test_spaces_and_quotes_become_plain_and_wrong_encodings_are_mended() -> None:
    assert builder.clean("\ufeff“It’s Mr.\u00a0Mole”  \n\n\n\nhe said. ↩\n") == '"It\'s Mr. Mole"\n\nhe said.\n'
    assert builder.clean("America¡¦s ¡§Freedom¡¨ ¡X and â\x80\x94") == 'America\'s "Freedom" — and —\n'


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("The Fox and the Grapes", True),
        ("Faithful John", True),
        ("He went home", False),
        ("Then He Went Home.", False),
        ("II", True),
        ("", False),
    ],
)
def test_a_title_is_a_short_line_of_capitalised_words(line: str, title: bool) -> None:
    assert builder.is_title(line) is title


def test_a_book_is_cut_at_its_chapters_and_a_short_part_goes_with_the_next() -> None:
    long = "word " * 120
    text = f"Preface\n\nIt is short.\n\nI\n\nThe Start\n\n{long}\n\nII\n\n{long}"
    parts = list(builder.parts_of({"title": "A Novel", "text": text}))
    assert [part.split("\n\n")[0] for part in parts] == ["Preface", "II"]
    assert "".join(parts).split() == text.split()


def test_a_collection_is_cut_at_the_titles_of_its_tales() -> None:
    long = "word " * 120
    text = f"The Fox\n\n{long}\n\nThe Crow and the Fox\n\n{long}"
    assert len(list(builder.parts_of({"title": "Fables", "text": text}))) == 2
    assert len(list(builder.parts_of({"title": "A Novel", "text": text}))) == 1


def test_every_document_is_in_the_part_that_its_hash_says() -> None:
    for document in read_documents(books_data_path()):
        drawn = builder.draw("pretrain", document.text) / 2**64 < builder.VALIDATION_SHARE
        assert document.part == ("validation" if drawn else "train"), document.id
        assert document.text == builder.clean(document.text), document.id
