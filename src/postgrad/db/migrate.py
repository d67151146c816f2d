"""Alembic on a connection that is open already; loaded only where a schema is not the newest."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from postgrad.db import migrations


def revisions() -> set[str]:
    """Every one that this code can upgrade from."""
    return {revision.revision for revision in ScriptDirectory.from_config(_config()).walk_revisions()}


def to_revision(connection: Connection, revision: str) -> None:
    """Upgrade in the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
