"""`postgrad label serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say


@label_app.command("serve")
def label_serve(
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    config: Annotated[Path | None, typer.Option(help="TOML: leases, gold tasks, repeats, escalation.")] = None,
    host: Annotated[str, typer.Option(help="Beyond loopback, people sign in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    accounts: Annotated[bool, typer.Option("--accounts", help="Have people sign in on loopback too.")] = False,
) -> None:
    """Open the workbench: pages and API for people who label."""
    from postgrad.config.load import load_queue_config
    from postgrad.feedback.people import People
    from postgrad.feedback.queue import LabelQueue
    from postgrad.web.auth import Auth, is_loopback
    from postgrad.web.server import create_workbench, serve

    rules = load_queue_config(config)
    with open_store(workspace, db) as store:
        local = is_loopback(host) and not accounts
        app = create_workbench(LabelQueue(store, rules), Auth(People(store), local=local))
        say(
            f"http://{host}:{port} "
            + ("for you alone" if local else "for people with an account")
            + "; Ctrl-C stops it"
        )
        serve(app, host=host, port=port)
