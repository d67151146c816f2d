import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from postgrad.db.engine import open_database, sqlite_url
from postgrad.db.tables import Base

SERVER = "postgresql://postgres@127.0.0.1:5432"
PREFIX = "postgrad_test_"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A database of each kind, at the newest schema and without rows; PostgreSQL only where a server answers."""
    return str(request.getfixturevalue("labels_url" if request.param == "sqlite" else "cleared_postgresql"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind without a table; PostgreSQL takes a second to make and drop one."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "labels.db")
        return
    with database(request.getfixturevalue("postgresql")) as url:
        yield url


@pytest.fixture
def cleared_postgresql(new_postgresql: str, postgresql: Any) -> Iterator[str]:
    yield new_postgresql
    postgresql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
        [new_postgresql.rpartition("/")[2]],
    )
    with type(postgresql).connect(new_postgresql, autocommit=True) as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(f'DELETE FROM "{table.name}"')
        connection.execute("SELECT setval(seqrelid::regclass, 1, false) FROM pg_sequence")


@pytest.fixture(scope="session")
def new_postgresql(postgresql: Any) -> Iterator[str]:
    """One for the session, whose rows come without waiting for the disk and, unvacuumed, in the order of writing."""
    with database(postgresql) as url:
        open_database(url).dispose()
        with type(postgresql).connect(url) as connection:
            connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" SET synchronous_commit = off')
            for table in Base.metadata.tables:
                connection.execute(f'ALTER TABLE "{table}" SET (autovacuum_enabled = off)')
        yield url


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A connection to the server, rid of what killed sessions left there."""
    psycopg = pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    try:
        server = psycopg.connect(f"{SERVER}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as e:
        pytest.skip(f"no PostgreSQL server at 127.0.0.1:5432: {e}")
    with server:
        pattern = f"^{PREFIX}([0-9]+)_"
        found = server.execute("SELECT datname, substring(datname FROM %s) FROM pg_database", [pattern])
        for name, pid in found.fetchall():
            if pid and not psutil.pid_exists(int(pid)):
                server.execute(f'DROP DATABASE IF EXISTS "{name}"')
        yield server


@contextmanager
def database(server: Any) -> Iterator[str]:
    name = f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}"
    server.execute(f'CREATE DATABASE "{name}"')
    try:
        yield f"{SERVER}/{name}"
    finally:
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
