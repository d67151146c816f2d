"""Nobody waits for torch to read a help page."""

from __future__ import annotations

import resource
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "matplotlib", "fastapi")


def fastest_of_five(*arguments: str) -> float:
    """Seconds on the processor, where nobody else's turn counts, of the fastest of five fresh interpreters."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_importing_the_package_takes_less_than_300_milliseconds() -> None:
    assert fastest_of_five("-c", "import postgrad") < 0.3


def test_the_help_page_takes_less_than_500_milliseconds() -> None:
    assert (
        fastest_of_five("-c", "import sys; from postgrad.cli import main; sys.argv = ['postgrad', '--help']; main()")
        < 0.5
    )


def test_importing_the_command_line_loads_no_heavy_package() -> None:
    code = f"import sys, postgrad.cli; print(*(set({HEAVY!r}) & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
