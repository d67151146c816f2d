"""`postgrad label serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from postgrad.config.queue import PolicyConfig
    from postgrad.engine.local import LocalEngine
    from postgrad.feedback.queue import LabelQueue
    from postgrad.feedback.speakers import Speaker
    from postgrad.text import Renderer


@label_app.command("serve")
def label_serve(
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML: leases, gold tasks, repeats, escalation, policies to talk with.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Name or directory of a model to talk with, or `released`; one more answer a turn each."),
    ] = None,
    host: Annotated[str, typer.Option(help="Beyond loopback, people sign in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    accounts: Annotated[bool, typer.Option("--accounts", help="Have people sign in on loopback too.")] = False,
) -> None:
    """Open the workbench: pages and API for people who label."""
    from postgrad.config.load import load_queue_config
    from postgrad.config.queue import PolicyConfig
    from postgrad.feedback.conversation import Conversations
    from postgrad.feedback.people import People
    from postgrad.feedback.queue import LabelQueue
    from postgrad.web.auth import Auth, is_loopback
    from postgrad.web.server import create_workbench, serve

    rules = load_queue_config(config)
    named = [PolicyConfig(model=None if name == "released" else name) for name in policy or ()]
    rules = type(rules).model_validate({**dict(rules), "policies": (*rules.policies, *named)})
    with open_store(workspace, db) as store:
        local = is_loopback(host) and not accounts
        queue = LabelQueue(store, rules)
        talks = Conversations(queue, list(_speakers(rules.policies, workspace)))
        app = create_workbench(talks, Auth(People(store), local=local))
        if not talks.is_open and (waiting := _waiting_to_talk(queue)):
            say(f"{waiting} conversations wait until a --policy is named; the other tasks are handed out")
        say(
            f"http://{host}:{port} "
            + ("for you alone" if local else "for people with an account")
            + "; Ctrl-C stops it"
        )
        serve(app, host=host, port=port)


def _waiting_to_talk(queue: LabelQueue) -> int:
    from postgrad.feedback.turns import TALKED

    return sum(p.wanted - p.done for p in queue.progress() if p.kind in TALKED and p.state == "open")


def _speakers(policies: Sequence[PolicyConfig], workspace: Path) -> Iterator[Speaker]:
    """Every policy; a model that several name is loaded once."""
    from postgrad.feedback.speakers import EndpointSpeaker, LocalSpeaker
    from postgrad.types import SamplingParams

    engines: dict[Path, tuple[LocalEngine, Renderer, int, str]] = {}
    for policy in policies:
        params = SamplingParams(policy.max_tokens, policy.temperature, policy.top_p)
        if policy.endpoint is not None:
            assert policy.model is not None
            yield EndpointSpeaker(
                policy.endpoint,
                model=policy.model,
                key_variable=policy.key_variable,
                params=params,
                timeout_s=policy.timeout_s,
            )
            continue
        from postgrad.run import sha256_tree
        from postgrad.serve.load import find_model, load_engine

        path, name = find_model(policy.model, workspace)
        if path not in engines:
            say(f"loading {name}")
            engines[path] = (*load_engine(path), sha256_tree(path))
        engine, renderer, context, digest = engines[path]
        yield LocalSpeaker(
            engine, renderer, context=context, checkpoint=digest, params=params, name=name, timeout_s=policy.timeout_s
        )
