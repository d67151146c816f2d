"""The README names only commands and options that exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def postgrad_commands(text: str) -> list[list[str]]:
    """The arguments of every `postgrad ...` in the fenced blocks; comments and shell prompts are left out."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [part for line in lines for part in re.split(r"&&|\||;", line)]
    words = [shlex.split(command, comments=True) for command in commands if "postgrad " in command]
    words = [own[1:] if own and own[0] == "$" else own for own in words]
    return [own[1:] for own in words if own and own[0].rsplit("/", 1)[-1] == "postgrad"]


def help_exit_code(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """0 where every command and option in `arguments` exists, 2 where one does not; nothing is run."""
    from postgrad.cli import main

    monkeypatch.setattr(sys, "argv", ["postgrad", *arguments, "--help"])
    try:
        return main()
    except SystemExit as stop:
        return stop.code


def test_commands_are_read_from_fenced_blocks_only() -> None:
    text = (
        "Run `postgrad nonsense`.\n\n```bash\n$ postgrad models pull x  # the model\n"
        "cd here && .venv/bin/postgrad run a.toml \\\n  --seed 1\nmake test\n```\n"
    )
    assert postgrad_commands(text) == [["models", "pull", "x"], ["run", "a.toml", "--seed", "1"]]


def test_every_command_in_the_readme_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = postgrad_commands(README.read_text(encoding="utf-8"))
    assert commands, "the README shows no postgrad command"
    assert [words for words in commands if help_exit_code(words, monkeypatch) not in (0, None)] == []


@pytest.mark.parametrize("wrong", [["graduate"], ["models", "push"], ["quickstart", "--no-such-option"]])
def test_a_command_or_option_that_does_not_exist_is_noticed(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert help_exit_code(wrong, monkeypatch) == 2
