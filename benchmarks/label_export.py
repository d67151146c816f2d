"""Fill a label store, export it in a child process, and print its rows per second and peak memory.

The memory is that of the child and of the processes that it starts, each counted as the largest of them; pages that
they share are counted for each.

    python benchmarks/label_export.py --labels 500000 --formats native,trl-preference [--db postgresql://...]

Without --db it fills a SQLite file in a temporary directory. The store given by --db must be empty. Texts are of the
length of short chat answers. Three people answer each comparison at about the same time, as the queue hands it out:
labels are shuffled within 180, three of each of 60 raters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import (
    ComparisonAnswerRow,
    ComparisonRow,
    LabelRow,
    PromptRow,
    RaterRow,
    RoundRow,
    SampleRow,
)
from postgrad.feedback.store import LabelStore

OVERLAP: Final = 3
NUM_RATERS: Final = 60
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
ROUND: Final = "0001-bench"

ANSWER_WORDS: Final = 60
PROMPT_WORDS: Final = 20
BATCH: Final = 5_000
WORDS: Final = ("the", "of", "model", "answer", "river", "seven", "quick", "olive", "because", "they", "over", "hill")

CHILD: Final = """
import json, resource, sys, time
from pathlib import Path
from postgrad.feedback.chunked import HELPERS
from postgrad.feedback.exports import export_labels
from postgrad.feedback.store import LabelStore
url, target, name = sys.argv[1:]
with LabelStore(url) as store:
    began = time.perf_counter()
    manifest = export_labels(store, Path(target), name)
    seconds = time.perf_counter() - began
used, helped = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
files = manifest.files
print(json.dumps({"labels": manifest.labels, "rows": sum(f["rows"] for f in files), "seconds": seconds,
                  "bytes": sum(f["bytes"] for f in files),
                  "cpu_s": used.ru_utime + used.ru_stime + helped.ru_utime + helped.ru_stime,
                  "peak_bytes": (used.ru_maxrss + HELPERS * helped.ru_maxrss) * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=500_000)
    parser.add_argument("--formats", default="native,trl-preference")
    parser.add_argument("--db", help="an empty database; a temporary SQLite file if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.db or sqlite_url(Path(folder) / "labels.db")
        # In a process of its own, because an exporting one would begin with this one's peak.
        filling = multiprocessing.get_context("spawn").Process(target=fill, args=(url, options.labels))
        filling.start()
        filling.join()
        if filling.exitcode:
            sys.exit(filling.exitcode)
        for name in options.formats.split(","):
            target = str(Path(folder) / name)
            child = [sys.executable, "-c", CHILD, url, target, name]
            found = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(
                f"{name}: {found['labels']} labels, {found['rows']} rows, {found['bytes'] / 1e6:.0f} MB in "
                f"{found['seconds']:.1f} s ({found['cpu_s']:.1f} s of CPU): "
                f"{found['rows'] / found['seconds']:.0f} rows/s, "
                f"peak {found['peak_bytes'] / 1e6:.0f} MB"
            )


def fill(url: str, num_labels: int) -> None:
    num = -(-num_labels // OVERLAP)
    with LabelStore(url) as store:
        _insert(store, RoundRow, iter([{"id": ROUND, "recipe": "bench"}]))
        _insert(store, RaterRow, ({"id": f"r{i}", "kind": "human", "params": {}} for i in range(NUM_RATERS)))
        _insert(store, PromptRow, (_prompt(i) for i in range(num)))
        _insert(store, SampleRow, (_sample(i, side) for i in range(num) for side in (0, 1)))
        asked = ({"id": f"c{i}", "prompt_id": f"p{i}", "round_id": ROUND, "purpose": "train"} for i in range(num))
        _insert(store, ComparisonRow, asked)
        sides = ((i, side) for i in range(num) for side in (0, 1))
        _insert(store, ComparisonAnswerRow, (_side(i, side) for i, side in sides))
        _insert(store, LabelRow, (_label(i, j) for i, j in enumerate(_shuffled(num_labels))))


def _insert(store: LabelStore, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    stamp = {"created_at": START} if "created_at" in table.__table__.columns else {}
    batch: list[dict[str, Any]] = []
    with store.writing() as session:
        for row in rows:
            batch.append({**stamp, **row})
            if len(batch) == BATCH:
                session.execute(insert(table), batch)
                batch = []
        if batch:
            session.execute(insert(table), batch)


def _text(name: str, num_words: int) -> str:
    return " ".join(random.Random(name).choices(WORDS, k=num_words))


def _prompt(i: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": _text(f"p{i}", PROMPT_WORDS)}]
    conversation = {"messages": messages, "tools": []}
    return {"id": f"p{i}", "conversation": conversation, "target": None, "details": {"split": "rm"}}


def _sample(i: int, side: int) -> dict[str, Any]:
    return {
        "id": f"s{i}-{side}",
        "prompt_id": f"p{i}",
        "round_id": ROUND,
        "stage": "rl",
        "checkpoint": "cd" * 32,
        "policy_version": side,
        "params": {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "stop": [], "stop_ids": []},
        "seed": str(2**63 + i),
        "text": _text(f"s{i}-{side}", ANSWER_WORDS),
        "token_ids": [(i * 7 + k * 13) % 49_152 for k in range(ANSWER_WORDS)],
        "finish_reason": "stop",
    }


def _side(i: int, side: int) -> dict[str, Any]:
    return {"comparison_id": f"c{i}", "position": side, "sample_id": f"s{i}-{side}"}


def _shuffled(num: int) -> Iterator[int]:
    dice = random.Random(0)
    for start in range(0, num, OVERLAP * NUM_RATERS):
        block = list(range(start, min(num, start + OVERLAP * NUM_RATERS)))
        dice.shuffle(block)
        yield from block


def _label(i: int, place: int) -> dict[str, Any]:
    comparison, better = place // OVERLAP, place % 2
    value = {"tiers": [[better], [1 - better]], "strength": 1 + i % 3, "both_bad": False, "cannot_judge": ""}
    return {
        "kind": "compare",
        "prompt_id": f"p{comparison}",
        "comparison_id": f"c{comparison}",
        "rater_id": f"r{place % NUM_RATERS}",
        "client_key": f"k{i}",
        "value": value,
        "display_order": "0,1" if i % 3 else "1,0",
        "rationale": "",
        "milliseconds": 20_000 + i % 10_000,
        "weight": 1.0,
        "created_at": START + timedelta(seconds=i),
    }


if __name__ == "__main__":
    main()
