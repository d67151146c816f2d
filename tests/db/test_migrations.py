import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from postgrad.db import migrate
from postgrad.db.engine import open_database, sqlite_url, store_errors
from postgrad.db.tables import REVISION, Base
from postgrad.errors import StoreError
from postgrad.feedback.records import Submission
from postgrad.feedback.store import LabelStore
from postgrad.types import Edit, Preference


@pytest.fixture
def url(empty_url: str) -> str:
    return empty_url


def test_an_empty_database_is_migrated_to_exactly_the_declared_tables(url: str) -> None:
    engine = open_database(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert MigrationContext.configure(connection).get_current_revision() == REVISION == max(migrate.revisions())
    engine.dispose()


def test_a_store_of_the_first_schema_keeps_every_answer_and_every_edit(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    instant = "2026-01-01 00:00:00+00:00" if url.startswith("postgresql") else "2026-01-01 00:00:00"
    rows = Path(__file__).with_name("revision_0001.sql").read_text(encoding="utf-8")
    with engine.begin() as connection:
        migrate.to_revision(connection, "0001")
        for statement in rows.splitlines()[1:]:
            connection.exec_driver_sql(statement.replace("NOW", f"'{instant}'").removesuffix(";"))
    engine.dispose()
    with LabelStore(url) as store:
        judged = list(store.preferences(purpose="train"))
        assert [j.preference for j in judged] == [
            Preference("c2", "ada", ((1,), (0,)), 3, "why", 900, 0.5),
            Preference("c3", "ada", ((2,), (0, 1))),
        ]
        assert [j.order for j in judged] == [(1, 0), (0, 1, 2)]
        assert judged[0].created_at == datetime(2026, 1, 1, tzinfo=UTC)
        assert list(store.edits()) == [Edit("s1", "ada", "text 1", "a better text")]
        assert store.counts()["preferences"] == 2
        assert inspect(store._engine).has_table("preferences") is False
        store.answer([Submission(Preference("c2", "ada", ((0,), (1,))), (0, 1), client_key="k4")])
        assert store.counts()["preferences"] == 3


def test_processes_that_open_an_empty_database_together_migrate_it_once(url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            open_database(url).dispose()
        except Exception as e:  # noqa: BLE001 - the thread reports whatever went wrong
            failures.append(e)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_a_store_from_a_newer_version_is_refused(url: str) -> None:
    engine = open_database(url)
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match=r"newer postgrad \(schema 9999\); upgrade postgrad"):
        open_database(url)


def test_sqlite_runs_in_wal_mode_with_foreign_keys_and_a_busy_timeout(tmp_path: Path) -> None:
    engine = open_database(sqlite_url(tmp_path / "labels.db"), busy_timeout_s=3)
    with engine.connect() as connection:
        pragmas = {p: connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "foreign_keys")}
        assert pragmas == {"journal_mode": "wal", "foreign_keys": 1}
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 3000
    engine.dispose()


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    path.write_bytes(b"this was never a database" * 100)
    with pytest.raises(StoreError, match=r"labels\.db' is damaged .*restore it from a backup"):
        open_database(sqlite_url(path))
    assert path.read_bytes().startswith(b"this was never")


def test_a_database_locked_by_another_process_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"labels\.db' is locked by another process"):
        open_database(sqlite_url(path), busy_timeout_s=0.1)
    other.close()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing/labels\.db' cannot be opened for writing"):
        open_database(sqlite_url(tmp_path / "missing" / "labels.db"))


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(StoreError, match=r"'labels\.db' is not a URL"):
        open_database("labels.db")


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_database("postgresql://someone:hunter2@127.0.0.1:1/labels")
    assert "hunter2" not in str(caught.value)


def test_opening_a_current_store_does_not_need_the_write_lock(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    open_database(url).dispose()
    writer = create_engine(url)
    with writer.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        store = open_database(url, busy_timeout_s=0.1)
        with store.connect() as reader:
            assert reader.exec_driver_sql("SELECT count(*) FROM rounds").scalar() == 0
        store.dispose()
    writer.dispose()


def test_opening_a_current_store_does_not_wait_for_alembic(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "labels.db")
    open_database(url).dispose()
    code = "import sys; from postgrad.db.engine import *; open_database(sys.argv[1]).dispose(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "sqlalchemy" in loaded
    assert "alembic" not in loaded


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    engine = open_database(sqlite_url(tmp_path / "labels.db"))
    writer = engine.execution_options(write=True)

    def fill() -> None:
        with store_errors(engine), writer.begin() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            connection.execute(text("INSERT INTO rounds VALUES ('r', :long, '2026-01-01')"), {"long": "x" * 100_000})

    with pytest.raises(StoreError, match=r"labels\.db' cannot grow because the disk is full; free some space"):
        fill()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM rounds").scalar() == 0
    engine.dispose()
