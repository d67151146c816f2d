"""`postgrad label`: the labelling queue from the command line."""

from __future__ import annotations

import typer

label_app = typer.Typer(no_args_is_help=True, help="Collect labels from people: serve, import, export, stats.")
