"""`postgrad label people` and `postgrad label audit`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from postgrad.label_cli.app import DEFAULT_WORKSPACE, Database, Workspace, label_app, open_store, say, show

if TYPE_CHECKING:
    from postgrad.feedback.people import Role

people_app = typer.Typer(no_args_is_help=True, help="Accounts of those who label and those who lead.")
audit_app = typer.Typer(no_args_is_help=True, help="The record of who did what.")
label_app.add_typer(people_app, name="people")
label_app.add_typer(audit_app, name="audit")

RoleOption = Annotated[str, typer.Option(help="admin, lead, reviewer, labeler or reader.")]
Person = Annotated[str, typer.Argument(help="Name or id.")]


@people_app.command("add")
def people_add(
    name: str, role: RoleOption = "labeler", workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None
) -> None:
    """Add an account; asks for its password, or reads it from standard input."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        account = People(store).add(name, _password(), _role(role), by=OPERATOR)
    say(f"{account.name} is {account.role}, and {account.id} in labels")


@people_app.command("invite")
def people_invite(role: RoleOption = "labeler", workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None) -> None:
    """Print an invitation, good for one person and one week."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        say(People(store).invite(_role(role), by=OPERATOR))


@people_app.command("pause")
def people_pause(
    who: Person,
    reason: Annotated[str, typer.Option(help="They read it.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Let somebody do nothing until they are resumed."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        people = People(store)
        say(f"{people.pause(people.find(who).id, reason, by=OPERATOR).name} is paused")


@people_app.command("resume")
def people_resume(who: Person, workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None) -> None:
    """Let somebody who was paused go on."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        people = People(store)
        say(f"{people.resume(people.find(who).id, by=OPERATOR).name} is active")


@people_app.command("role")
def people_role(
    who: Person,
    role: Annotated[str, typer.Argument(help="admin, lead, reviewer, labeler or reader.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Let somebody do more or less from now on, wherever they are signed in."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        people = People(store)
        account = people.change_role(people.find(who).id, _role(role), by=OPERATOR)
    say(f"{account.name} is {account.role} from now on")


@people_app.command("erase")
def people_erase(
    who: Person,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels/--remove-labels", help="Keep their judgements, without a word of theirs.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Forget a person: name, password, and all that they wrote. There is no way back."""
    from postgrad.feedback.people import OPERATOR, People

    with open_store(workspace, db) as store:
        people = People(store)
        account = people.find(who)
        if not yes:
            typer.confirm(f"Forget {account.name} ({account.id}) for good?", abort=True)
        removed = people.erase(account.id, keep_labels=keep_labels, by=OPERATOR)
    say(f"{account.id} has no name any more; {removed} labels were removed")


@people_app.command("list")
def people_list(workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None) -> None:
    """List all accounts."""
    from postgrad.feedback.people import People

    with open_store(workspace, db) as store:
        accounts = People(store).everyone()
    show(("name", "id", "role", "state", "reason"), [(a.name, a.id, a.role, a.state, a.reason) for a in accounts])


@audit_app.command("verify")
def audit_verify(workspace: Workspace = DEFAULT_WORKSPACE, db: Database = None) -> None:
    """Check that no event was changed or removed; print the last digest, to be kept elsewhere."""
    from postgrad.feedback import audit

    with open_store(workspace, db) as store, store.reading() as session:
        broken = audit.first_broken(session)
        last = next(audit.events(session, limit=1), None)
    if broken is not None:
        say(f"event {broken} is not what was recorded")
        raise typer.Exit(1)
    say("no event is recorded yet" if last is None else f"{last.seq} events hold; the last is {last.digest}")


@audit_app.command("show")
def auditshow(
    after: Annotated[int, typer.Option(min=0, help="Only events that follow this one; the newest if left out.")] = 0,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    workspace: Workspace = DEFAULT_WORKSPACE,
    db: Database = None,
) -> None:
    """Show events of the audit."""
    import json

    from postgrad.feedback import audit

    with open_store(workspace, db) as store, store.reading() as session:
        rows = [
            (str(e.seq), e.at.isoformat(timespec="seconds"), e.actor, e.action, e.object, json.dumps(e.details))
            for e in audit.events(session, after=after, limit=limit)
        ]
    show(("event", "at", "who", "did", "to", "details"), rows)


def _role(text: str) -> Role:
    from postgrad.errors import ConfigError
    from postgrad.feedback.people import ROLES

    for role in ROLES:
        if role == text:
            return role
    raise ConfigError(f"role {text!r} is not one of {', '.join(ROLES)}")


def _password() -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return answer
    return sys.stdin.readline().rstrip("\n")
