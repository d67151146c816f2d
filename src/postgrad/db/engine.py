"""Open a database at its newest schema, and turn what databases say into one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError

from postgrad.db.tables import REVISION
from postgrad.errors import CollisionError, StoreError

_BUSY_TIMEOUT_S = 10.0
_CACHE_KB = 32_768
"""Of SQLite's pages, for each connection."""
_UPGRADE_LOCK = 7_235_041_980
"""Key of the PostgreSQL advisory lock that lets one process upgrade at a time."""

_COLLISIONS = ("40001", "40P01")
"""PostgreSQL's codes for a serialization failure and for a deadlock."""
_TRIES = 4
P = ParamSpec("P")
R = TypeVar("R")


def sqlite_url(path: Path) -> str:
    return URL.create("sqlite", database=str(path)).render_as_string()


def open_database(url: str, *, busy_timeout_s: float = _BUSY_TIMEOUT_S) -> Engine:
    """Connect, and upgrade an empty or older schema.

    SQLite runs in WAL mode with foreign keys on; a transaction under `execution_options(write=True)` takes the
    write lock when it begins, so that waiting for another writer obeys the busy timeout.

    Raises:
        StoreError: unusable URL, missing driver, unreachable or broken database, or a schema newer than this code.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, connect_args=_connect_args(parsed, busy_timeout_s))
    except (ArgumentError, NoSuchModuleError):
        raise StoreError(f"database {url!r} is not a URL of SQLite or PostgreSQL; use sqlite:///FILE") from None
    except ModuleNotFoundError as e:
        raise StoreError(f"PostgreSQL needs the package {e.name!r}; run `pip install 'postgrad[postgres]'`") from None
    if parsed.get_backend_name() == "sqlite":
        _configure_sqlite(engine)
    try:
        with store_errors(engine):
            upgrade(engine)
    except StoreError:
        engine.dispose()
        raise
    return engine


def upgrade(engine: Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == REVISION:
            return
    from postgrad.db import migrate  # Alembic takes longer to load than a current store to open

    with engine.execution_options(write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        current = _revision(connection)
        if current is not None and current not in migrate.revisions():
            raise StoreError(f"{name(engine)} was written by a newer postgrad (schema {current}); upgrade postgrad")
        migrate.to_revision(connection, REVISION)


def _revision(connection: Connection) -> str | None:
    """Of the schema; None where nothing was ever made."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def scrub(engine: Engine) -> None:
    """Rewrite a SQLite file, so that nothing that was deleted is left in it; PostgreSQL forgets in its own time.

    Raises:
        StoreError: another process reads the file, so that its write-ahead log cannot be emptied.
    """
    if engine.dialect.name != "sqlite":
        return
    with store_errors(engine), engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")  # neither statement works inside the transaction that has just begun
        connection.exec_driver_sql("VACUUM")
        if connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one():
            raise StoreError(
                f"{name(engine)} is being read by another process, and its log may hold what was deleted; "
                "stop it, then run the same command again"
            )


def name(engine: Engine) -> str:
    """How messages call this database; never with its password."""
    if engine.dialect.name == "sqlite":
        return f"the label store {engine.url.database!r}"
    return f"the label store at {engine.url.render_as_string(hide_password=True)}"


def persistent(transact: Callable[P, R]) -> Callable[P, R]:
    """Have a function that is one transaction try again after a collision; none of its arguments is an iterator."""

    @wraps(transact)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(_TRIES - 1):
            try:
                return transact(*args, **kwargs)
            except CollisionError:
                continue
        return transact(*args, **kwargs)

    return tried


@contextmanager
def store_errors(engine: Engine) -> Iterator[None]:
    """Re-raise what the database reports as StoreError, or as CollisionError where the same may well succeed now."""
    try:
        yield
    except DatabaseError as e:
        if getattr(e.orig, "sqlstate", None) in _COLLISIONS:
            raise CollisionError(f"{name(engine)} was changed by somebody else at the same moment; try again") from e
        raise StoreError(_explain(engine, e)) from e


def _explain(engine: Engine, error: DatabaseError) -> str:
    store, said = name(engine), str(error.orig).strip().splitlines()[0]
    lowered = said.lower()
    if "locked" in lowered or "busy" in lowered:
        return f"{store} is locked by another process; wait for it or stop it, then run the same command again"
    if "disk is full" in lowered or "no space left" in lowered:
        return f"{store} cannot grow because the disk is full; free some space, then run the same command again"
    if "not a database" in lowered or "malformed" in lowered:
        return f"{store} is damaged ({said}); restore it from a backup, or move it away to start a new one"
    if "unable to open" in lowered or "readonly" in lowered or "read-only" in lowered:
        return f"{store} cannot be opened for writing ({said}); check that its folder exists and is yours"
    if isinstance(error, IntegrityError):
        return f"{store} refused a row that refers to something unknown or repeats something else ({said})"
    if engine.dialect.name == "postgresql" and (error.connection_invalidated or "connection" in lowered):
        return f"{store} cannot be reached ({said}); check the URL and that the server runs"
    return f"{store} failed: {said}"


def _connect_args(url: URL, busy_timeout_s: float) -> dict[str, Any]:
    return {"timeout": busy_timeout_s} if url.get_backend_name() == "sqlite" else {"connect_timeout": 10}


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def pragmas(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions behind SQLAlchemy's back
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL", f"cache_size=-{_CACHE_KB}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
