"""Exports by several processes: the bytes, the snapshot and the failures of one."""

import gzip
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update
from test_exchange import collect, number
from workbench import fill

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import LabelRow
from postgrad.errors import ConfigError, StoreError
from postgrad.feedback import chunked
from postgrad.feedback.exports import export_labels
from postgrad.feedback.imports import import_labels
from postgrad.feedback.store import LabelStore


def helpers() -> list[psutil.Process]:
    """Processes that read for an export that runs."""
    return [p for p in psutil.Process().children() if "chunked" in " ".join(p.cmdline())]


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every export is by several processes, in pages of three labels."""
    monkeypatch.setattr(chunked, "MANY", 0)
    monkeypatch.setattr(chunked, "PAGE", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 2)


@pytest.mark.parametrize("name", ["native", "trl-preference", "csv"])
def test_many_processes_write_the_bytes_of_one(
    url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: None
) -> None:
    with LabelStore(url) as store:
        collect(store).add_guideline("Be kinder.", author_id="cyd")
        store.add_raters("human", {"eve": {}, "fay": {}})
        with store.writing() as session:  # news all along, some of it in both processes' pages
            for label_id, rater in enumerate(["ada", "eve", "ada", "eve", "fay", "eve", "fay"], start=8):
                session.execute(
                    update(LabelRow).where(LabelRow.id == label_id).values(rater_id=rater, guideline=1 + label_id % 2)
                )
        counted: list[int] = []
        export_labels(store, tmp_path / "many", name, on_page=lambda done: counted.append(len(helpers())))
        assert counted
        assert set(counted) == {chunked.HELPERS}
        assert not helpers()
        monkeypatch.setattr(chunked, "MANY", 10**9)
        export_labels(store, tmp_path / "one", name, on_page=lambda done: counted.append(len(helpers())))
        assert counted[-1] == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()} == files
    assert len(files) == (3 if name == "trl-preference" else 2)


def test_all_processes_see_one_moment(url: str, tmp_path: Path, parallel: None) -> None:
    with LabelStore(url) as store, LabelStore(url) as other:
        number(store, fill(store, 3), list(range(1, 13)))
        enough = threading.Event()

        def write_on() -> None:
            state = 0
            while not enough.is_set():
                state += 1
                with other.writing() as session:
                    session.execute(update(LabelRow).values(rationale=f"state {state}"))

        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            for _ in range(3):
                export_labels(store, tmp_path / "out.jsonl", "native")
                lines = (tmp_path / "out.jsonl").read_text().splitlines()
                labels = [row for row in map(json.loads, lines) if row["type"] == "label"]
                assert len(labels) == 12
                assert len({row["rationale"] for row in labels}) == 1
        finally:
            enough.set()
            writer.join()


def test_what_is_written_while_an_export_runs_is_not_in_it(url: str, tmp_path: Path, parallel: None) -> None:
    with LabelStore(url) as store:
        number(store, fill(store, 3), list(range(1, 61)))
        new = iter(range(61, 1000))

        def label_on(done: float) -> None:
            label_id = next(new)
            number(store, fill(store, 1, first=label_id) * 3, [label_id])

        export_labels(store, tmp_path / "a.jsonl", "native", on_page=label_on)
        first = (tmp_path / "a.jsonl").read_text().count('"type":"label"')
        export_labels(store, tmp_path / "a.jsonl", "native")
    assert first == 60
    assert (tmp_path / "a.jsonl").read_text().count('"type":"label"') == 60 + 20


def test_a_killed_process_leaves_one_error_and_the_old_file(url: str, tmp_path: Path, parallel: None) -> None:
    def kill(done: float) -> None:
        if done < 0.1:
            helpers()[1].kill()

    with LabelStore(url) as store:
        number(store, fill(store, 3), list(range(1, 61)))
        export_labels(store, tmp_path / "out", "native")
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with pytest.raises(StoreError, match="ended with exit code -9; no file was written, run the same command"):
            export_labels(store, tmp_path / "out", "native", on_page=kill)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert not helpers()


def test_what_a_process_could_not_read_is_told_as_it_would_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: None
) -> None:
    with LabelStore(sqlite_url(tmp_path / "a.db")) as store:
        number(store, fill(store, 3), list(range(1, 10)))
        (tmp_path / "b.db").write_bytes(b"no database" * 1000)
        monkeypatch.setattr(LabelStore, "url", sqlite_url(tmp_path / "b.db"))
        with pytest.raises(StoreError, match="is damaged"):
            export_labels(store, tmp_path / "out", "native")


def test_parquet_is_written_by_one_process(tmp_path: Path, parallel: None) -> None:
    counted: list[int] = []
    with LabelStore(sqlite_url(tmp_path / "labels.db")) as store:
        number(store, fill(store, 3), list(range(1, 10)))
        export_labels(store, tmp_path / "out", "parquet", on_page=lambda done: counted.append(len(helpers())))
    assert counted == [0, 0, 0]


def test_a_store_in_memory_is_read_where_it_is(tmp_path: Path, parallel: None) -> None:
    with LabelStore("sqlite://") as store:
        assert store.url is None
        number(store, fill(store, 3), list(range(1, 10)))
        assert export_labels(store, tmp_path / "out", "native").labels == 9


SCRIPT = """
import sys
from pathlib import Path
from postgrad.feedback import chunked
from postgrad.feedback.exports import export_labels
from postgrad.feedback.store import LabelStore
chunked.MANY = 0
print("begun")
with LabelStore(sys.argv[1]) as store:
    print(export_labels(store, Path(sys.argv[2]), "native").labels)
"""


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    with LabelStore(url) as store:
        number(store, fill(store, 3), list(range(1, 10)))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), url, str(tmp_path / "out")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "begun\n9\n"


@pytest.mark.parametrize("name", ["native", "trl-unpaired"])
def test_a_gzipped_export_holds_the_same_lines(url: str, name: str, tmp_path: Path) -> None:
    with LabelStore(url) as store:
        collect(store)
        export_labels(store, tmp_path / "plain.jsonl", name)
        manifest = export_labels(store, tmp_path / "packed.jsonl.gz", name)
        packed = (tmp_path / "packed.jsonl.gz").read_bytes()
        export_labels(store, tmp_path / "packed.jsonl.gz", name)
    assert gzip.decompress(packed) == (tmp_path / "plain.jsonl").read_bytes()
    assert len(packed) < (tmp_path / "plain.jsonl").stat().st_size / 4
    assert (tmp_path / "packed.jsonl.gz").read_bytes() == packed
    said = json.loads((tmp_path / "packed.manifest.json").read_text())
    assert said["files"] == manifest.files
    assert (said["files"][0]["bytes"], said["files"][0]["sha256"]) == (len(packed), hashlib.sha256(packed).hexdigest())


def test_a_gzipped_export_fills_a_store(url: str, tmp_path: Path) -> None:
    with LabelStore(sqlite_url(tmp_path / "source.db")) as source:
        collect(source)
        export_labels(source, tmp_path / "a.jsonl.gz", "native")
    with LabelStore(url) as store:
        assert import_labels(store, tmp_path / "a.jsonl.gz", "native").labels == 14
        export_labels(store, tmp_path / "b.jsonl.gz", "native")
    assert (tmp_path / "b.jsonl.gz").read_bytes() == (tmp_path / "a.jsonl.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prompts", {"prompt": "Hi?"}),
        ("questions", {"prompt": "Hi?", "answers": ["a", "b"]}),
        ("hh", {"chosen": "\n\nHuman: Hi?\n\nAssistant: a", "rejected": "\n\nHuman: Hi?\n\nAssistant: b"}),
    ],
)
def test_gzipped_questions_are_read(name: str, row: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with LabelStore(sqlite_url(tmp_path / "labels.db")) as store:
        assert import_labels(store, path, name).rows == 1


@pytest.mark.parametrize(("name", "target"), [("csv", "a.csv.gz"), ("parquet", "a.parquet.gz"), ("native", "a.gz")])
def test_other_files_are_not_compressed(name: str, target: str, tmp_path: Path) -> None:
    with LabelStore(sqlite_url(tmp_path / "labels.db")) as store:
        collect(store)
        with pytest.raises(ConfigError, match=r"as FILE\.jsonl\.gz; say FILE\.(csv|parquet|jsonl)"):
            export_labels(store, tmp_path / target, name)
