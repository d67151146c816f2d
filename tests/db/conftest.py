import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgrad.db.engine import sqlite_url

SERVER = "postgresql://postgres@127.0.0.1:5432"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind; PostgreSQL only where a server answers."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "labels.db")
        return
    psycopg = pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    try:
        server = psycopg.connect(f"{SERVER}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as e:
        pytest.skip(f"no PostgreSQL server at 127.0.0.1:5432: {e}")
    name = f"postgrad_test_{secrets.token_hex(6)}"
    with server:
        server.execute(f'CREATE DATABASE "{name}"')
        yield f"{SERVER}/{name}"
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
