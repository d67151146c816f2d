"""Accounts and the audit from the command line."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update
from tiny_round import call

from postgrad.db.engine import sqlite_url
from postgrad.db.tables import EventRow
from postgrad.errors import AccessError
from postgrad.feedback import passwords
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.store import LabelStore

Capture = pytest.CaptureFixture[str]
PASSWORD = "a horse, a staple"


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", (2, 8, 1))
    monkeypatch.setenv("POSTGRAD_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PASSWORD}\n"))


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    with LabelStore(sqlite_url(tmp_path / "postgrad.db")) as store:
        yield People(store)


def run(capsys: Capture, *arguments: object) -> str:
    code, out, err = call(capsys, "label", *arguments)
    assert (code, err) == (0, "")
    return out


def refused(capsys: Capture, *arguments: object) -> str:
    code, _, err = call(capsys, "label", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_the_first_admin_is_made_on_the_command_line(capsys: Capture, people: People) -> None:
    assert run(capsys, "people", "add", "Ann", "--role", "admin").startswith("Ann is admin, and p-")
    assert people.who(people.sign_in("Ann", PASSWORD)).role == "admin"


def test_an_invitation_is_printed_alone_on_its_line(capsys: Capture, people: People) -> None:
    invitation = run(capsys, "people", "invite", "--role", "reviewer").strip()
    assert people.who(people.accept(invitation, "Rob", PASSWORD)).role == "reviewer"


def test_pausing_resuming_listing(capsys: Capture, people: People) -> None:
    run(capsys, "people", "add", "Ada [bold]")
    assert "is paused" in run(capsys, "people", "pause", "Ada [bold]", "--reason", "too fast")
    (line,) = (line for line in run(capsys, "people", "list").splitlines() if "Ada" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][0::2] == ["Ada [bold]", "labeler", "too fast"]
    run(capsys, "people", "resume", people.find("Ada [bold]").id)
    assert people.find("Ada [bold]").state == "active"


def test_erasing_asks_first_and_needs_to_know_about_labels(
    capsys: Capture, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "people", "add", "Ada")
    ada = people.find("Ada")
    assert "--keep-labels" in call(capsys, "label", "people", "erase", "Ada", "--yes")[2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert call(capsys, "label", "people", "erase", "Ada", "--keep-labels")[0] == 1
    assert people.find("Ada").state == "active"
    assert run(capsys, "people", "erase", "Ada", "--remove-labels", "--yes") == (
        f"{ada.id} has no name any more; 0 labels were removed\n"
    )
    with pytest.raises(AccessError):
        people.sign_in("Ada", PASSWORD)


def test_the_audit_is_shown_and_a_forged_event_found(capsys: Capture, people: People) -> None:
    assert run(capsys, "audit", "verify") == "no event is recorded yet\n"
    run(capsys, "people", "add", "Ada")
    run(capsys, "people", "pause", "Ada", "--reason", "too fast")
    assert re.fullmatch(r"2 events hold; the last is [0-9a-f]{64}\n", run(capsys, "audit", "verify"))
    shown = run(capsys, "audit", "show")
    assert shown.index("pause") < shown.index("add account")
    assert "too fast" not in shown
    assert "add account" not in run(capsys, "audit", "show", "--after", 1)
    with people.store.writing() as session:
        session.execute(update(EventRow).where(EventRow.seq == 1).values(actor="somebody else"))
    code, out, _ = call(capsys, "label", "audit", "verify")
    assert (code, out) == (1, "event 1 is not what was recorded\n")


def test_mistakes_are_one_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'emperor' is not one of admin, lead" in refused(capsys, "people", "add", "Ada", "--role", "emperor")
    assert "no account 'Eve'" in refused(capsys, "people", "pause", "Eve", "--reason", "why")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "12 to 256 characters" in refused(capsys, "people", "add", "Ada")
    assert "is not a URL" in refused(capsys, "people", "list", "--db", "labels.db")


def test_a_role_is_changed_where_an_admin_remains(capsys: Capture, people: People) -> None:
    run(capsys, "people", "add", "Ada")
    assert run(capsys, "people", "role", "Ada", "reviewer") == "Ada is reviewer from now on\n"
    assert people.find("Ada").role == "reviewer"
    assert "not one of admin, lead" in refused(capsys, "people", "role", "Ada", "emperor")
    people.change_role(people.find("Ada").id, "admin", by=OPERATOR)
    assert "last admin" in refused(capsys, "people", "role", "Ada", "labeler")
