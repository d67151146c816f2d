"""Nobody waits for torch to read a help page."""

from __future__ import annotations

import resource
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "matplotlib", "fastapi")


TYPER = """
import sys, typer
app = typer.Typer()
app.command("a")(lambda: None)
app.command("b")(lambda: None)
sys.argv = ["postgrad", "--help"]
app()
"""
HELP = "import sys; from postgrad.cli import main; sys.argv = ['postgrad', '--help']; main()"


def seconds(code: str) -> float:
    """On the processor, where nobody else's turn counts, of a fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def times_typer(code: str) -> float:
    """The fastest of five interpreters against the fastest of five that print typer's help page of two empty commands.

    A ratio of runs that take turns: half a second is one thing on a quick machine and another on a slow one.
    """
    runs = [(seconds(code), seconds(TYPER)) for _ in range(5)]
    return min(ours for ours, _ in runs) / min(theirs for _, theirs in runs)


def test_importing_the_package_takes_a_fraction_of_a_help_page() -> None:
    assert times_typer("import postgrad") < 0.4


def test_the_help_page_takes_at_most_twice_that_of_an_empty_command_line() -> None:
    assert times_typer(HELP) < 2


def test_importing_the_command_line_loads_no_heavy_package() -> None:
    code = f"import sys, postgrad.cli; print(*(set({HEAVY!r}) & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
