"""The doctor names what is missing and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from postgrad.serve.doctor import Check, as_table, diagnose, exit_code


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("POSTGRAD_DATABASE", raising=False)


def by_name(workspace: Path) -> dict[str, Check]:
    return {check.name: check for check in diagnose(workspace)}


def test_every_part_of_the_machine_is_looked_at_and_nothing_is_created(tmp_path: Path) -> None:
    checks = by_name(tmp_path / "workspace")
    assert {"python", "packages", "cores", "memory", "workspace", "model cache", "accelerator"} <= checks.keys()
    assert {"models", "database", "bubblewrap", "hugging face hub"} <= checks.keys()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cache_names_the_command_that_fills_it(tmp_path: Path) -> None:
    check = by_name(tmp_path)["models"]
    assert (check.status, check.detail, check.fix) == ("warn", "none", "postgrad models pull smollm2-135m")


def test_the_hub_switched_off_is_no_complaint(tmp_path: Path) -> None:
    assert by_name(tmp_path)["hugging face hub"].status == "ok"


@pytest.mark.parametrize("url", ["postgresql://me:secret@127.0.0.1:1/none", "postgresql+nonsense://x"])
def test_a_database_that_does_not_answer_is_missing_and_its_password_is_not_shown(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRAD_DATABASE", url)
    check = by_name(tmp_path)["postgresql"]
    assert check.status == "missing"
    assert check.fix
    assert "secret" not in check.detail


def test_only_something_missing_fails(tmp_path: Path) -> None:
    assert exit_code([Check("a", "ok", ""), Check("b", "warn", "", "")]) == 0
    assert exit_code([Check("a", "ok", ""), Check("b", "missing", "", "")]) == 1


def test_the_table_shows_commands_with_brackets_as_they_are() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(as_table([Check("driver", "missing", "no driver", "pip install 'postgrad[postgres]'")]))
    assert "pip install 'postgrad[postgres]'" in shown.get()
