"""Build the pretraining text from public-domain books and speeches: cut into documents, split by hash, check for leaks.

Usage: python tools/build_pretrain_data.py DATA_DIR, where DATA_DIR holds train/ and eval_public/.
The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from build_quickstart_data import draw, eval_prompts, normalise, read_jsonl, word_runs

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ROOT / "src/postgrad/recipes/data/books.jsonl.gz"

VALIDATION_SHARE = 0.06
MIN_BYTES = 500
TOO_LONG = ("War and Peace", "The Origin of Species")
"""With these, and Chekhov's 200 stories, the file would be three times its size."""
BY_TITLE = ("Fables", "Short Fiction", "Household Tales", "The Adventures of Sherlock Holmes", "The Jungle Book")
"""Collections, whose parts have titles and no numbers."""
CHAPTER = re.compile(r"((Letter|Chapter) )?[IVXLC]+")
SMALL_WORDS = frozenset("a an and as at by for from in of on or the to was who with".split())  # noqa: SIM905
PLAIN = str.maketrans(
    {"\u00a0": " ", "\u2060": "", "\ufeff": "", "‘": "'", "’": "'", "‚": ",", "“": '"', "”": '"', "↩": ""}
)
MOJIBAKE = {"¡X": "—", "¡¦": "'", "¡¥": "'", "¡§": '"', "¡¨": '"', "â\x80\x94": "—", "â\x80\x99": "'"}
"""Quotes and dashes of some speeches that were decoded with the wrong table."""


def clean(text: str) -> str:
    """Plain spaces and quotes, no space at a line's end, at most one empty line."""
    for wrong, right in MOJIBAKE.items():
        text = text.replace(wrong, right)
    lines = [line.strip() for line in text.translate(PLAIN).split("\n")]
    return re.sub(r" {2,}", " ", re.sub(r"\n{3,}", "\n\n", "\n".join(lines))).strip() + "\n"


def is_title(paragraph: str) -> bool:
    """A short line whose words are capitalised, without the full stop of a sentence."""
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", paragraph)
    if not words or len(paragraph) > 70 or "\n" in paragraph or not re.fullmatch(r"[A-Z].*[\w')?]", paragraph):
        return False
    return all(word[0].isupper() or word.lower() in SMALL_WORDS for word in words)


def parts_of(book: dict[str, Any]) -> Iterator[str]:
    """Chapters, tales, letters; a part too short to stand alone (a motto, a dedication) goes with the next."""
    starts = is_title if book["title"] in BY_TITLE else CHAPTER.fullmatch
    part: list[str] = []
    for paragraph in clean(book["text"]).strip().split("\n\n"):
        if starts(paragraph) and len("\n\n".join(part).encode()) >= MIN_BYTES:
            yield "\n\n".join(part) + "\n"
            part = []
        part.append(paragraph)
    yield "\n\n".join(part) + "\n"


def documents(train: Path) -> Iterator[dict[str, str]]:
    for book in read_jsonl(train / "books_public_domain/books.jsonl.gz"):
        if book["title"] in TOO_LONG or "Chekhov" in (book["author"] or ""):
            continue
        source = ", ".join(filter(None, (book["title"].translate(PLAIN), book["author"])))
        for number, text in enumerate(parts_of(book), 1):
            yield {"id": f"{normalise(source).replace(' ', '-')}-{number}", "source": source, "text": text}
    for speech in read_jsonl(train / "us_speeches/speeches.jsonl.gz"):
        name = speech["file"].removesuffix(".txt")
        kind = {"inaugural": "Inaugural address", "state_union": "State of the Union"}[speech["corpus"]]
        source = f"{kind}, {name}"
        yield {"id": normalise(source).replace(" ", "-"), "source": source, "text": clean(speech["text"])}


def leaking(rows: Iterable[dict[str, str]], forbidden: set[tuple[str, ...]]) -> set[str]:
    """Ids of rows that share a run of 13 words with what is forbidden."""
    return {row["id"] for row in rows if not forbidden.isdisjoint(word_runs(row["text"]))}


def main(data_dir: Path) -> None:
    rows = [row for row in documents(data_dir / "train") if len(row["text"].encode()) >= MIN_BYTES]
    assert len({row["id"] for row in rows}) == len(rows), "ids are unique"
    public = {run for prompt in eval_prompts(data_dir / "eval_public") for run in word_runs(prompt)}
    asked = leaking(rows, public)
    rows = [row for row in rows if row["id"] not in asked]
    for row in rows:
        row["split"] = "validation" if draw("pretrain", row["text"]) / 2**64 < VALIDATION_SHARE else "train"
    learned = {run for row in rows if row["split"] == "train" for run in word_runs(row["text"])}
    repeated = leaking((row for row in rows if row["split"] == "validation"), learned)
    rows = [row for row in rows if row["id"] not in repeated]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    DOCUMENTS.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(
        f"dropped: {len(asked)} that share 13 words with an evaluation prompt {sorted(asked)}; "
        f"{len(repeated)} of validation that share 13 words with training {sorted(repeated)}"
    )
    for split in ("train", "validation"):
        sizes = [len(row["text"].encode()) for row in rows if row["split"] == split]
        print(f"{split}: {len(sizes)} documents, {sum(sizes):,} bytes")
    print(f"{DOCUMENTS.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_pretrain_data.py DATA_DIR (the directory that holds train/ and eval_public/)")
    main(Path(sys.argv[1]))
