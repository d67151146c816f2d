"""What the commands share: their options, the store, and how they speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from postgrad.feedback.store import LabelStore

label_app = typer.Typer(no_args_is_help=True, help="Collect labels from people: serve, import, export, judge, stats.")

Workspace = Annotated[Path, typer.Option(envvar="POSTGRAD_WORKSPACE", help="Its postgrad.db is the store.")]
Database = Annotated[
    str | None, typer.Option("--db", envvar="POSTGRAD_DB", help="URL of another store: sqlite:///FILE, postgresql://.")
]
DEFAULT_WORKSPACE = Path("workspace")


def open_store(workspace: Path, db: str | None, *, must_exist: bool = False) -> LabelStore:
    from postgrad.db.engine import sqlite_url
    from postgrad.feedback.store import LabelStore

    path = workspace / "postgrad.db"
    if db is None and must_exist and not path.exists():
        raise ConfigError(f"workspace {str(workspace)!r} holds no labels yet; name another, or a store by --db")
    if db is None:
        workspace.mkdir(parents=True, exist_ok=True)
    return LabelStore(db or sqlite_url(path))


def say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def show(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(header, overflow="fold") for header in headers))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
