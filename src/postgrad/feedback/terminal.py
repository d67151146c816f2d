"""Ask a person in the terminal: two answers, one key each; every key is saved before the next question shows."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Final

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from postgrad.feedback.records import Purpose, Submission, content_id
from postgrad.feedback.store import LabelStore
from postgrad.types import Comparison, Preference

KeyReader = Callable[[], str]
"""The next key, lower case; "" where the input has ended."""

_HELP: Final = "A · B · T tie · U undo · Q quit"
_SIDE_BY_SIDE_COLUMNS: Final = 100
_ESCAPE: Final = b"\x1b"


def ask_in_terminal(
    store: LabelStore,
    *,
    rater_id: str,
    num: int,
    purpose: Purpose,
    round_id: str,
    console: Console,
    read_key: KeyReader | None = None,
) -> int:
    """Put questions of the round to a person until `num` of them are answered; how many stand answered.

    Resumes where the same rater left off. The sides are shuffled per question, the same way each time it is shown.

    Raises:
        StoreError: an answer could not be saved; those before it are.
    """
    read_key = read_key or (read_single_key if sys.stdin.isatty() else read_line_key)
    store.add_raters("human", {rater_id: {}})
    answered = sum(1 for _ in store.preferences(purpose=purpose, round_id=round_id, rater_id=rater_id))
    question = store.next_for(rater_id, purpose=purpose, round_id=round_id)
    while question is not None and answered < num:
        order = display_order(rater_id, question)
        _show(console, question, order, f"Question {answered + 1} of {num}")
        started = time.monotonic()
        match _next_choice(console, read_key):
            case "q":
                console.print(Text(f"{answered} of {num} saved; the same command continues here."))
                return answered
            case "u":
                undone = store.undo(rater_id, purpose=purpose, round_id=round_id)
                if undone is None:
                    console.print(Text("Nothing to undo."))
                else:
                    answered, question = answered - 1, undone
                continue
            case key:
                milliseconds = round((time.monotonic() - started) * 1000)
                preference = Preference(question.id, rater_id, _tiers(key, order), milliseconds=milliseconds)
                store.answer([Submission(preference, order, client_key=uuid.uuid4().hex)])
                answered += 1
                console.print(Text(f"Saved: {'tie' if key == 't' else key.upper()}.", style="green"))
        question = store.next_for(rater_id, purpose=purpose, round_id=round_id)
    console.print(Text(f"{answered} of {num} saved. Thank you."))
    return answered


def display_order(rater_id: str, question: Comparison) -> tuple[int, int]:
    """Which answer is A and which is B for this rater; a fair coin fixed by the two names."""
    assert len(question.answers) == 2, "the terminal compares two answers"
    return (1, 0) if int(content_id("order", rater_id, question.id), 16) % 2 else (0, 1)


def read_single_key() -> str:
    """One key press from the terminal, without Enter; arrows and other escape sequences are no key.

    What was typed before the question showed is thrown away.
    """
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSAFLUSH)
        typed = os.read(terminal, 64)
    except KeyboardInterrupt:
        return ""
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    if not typed or typed == b"\x04":
        return ""
    return "?" if typed.startswith(_ESCAPE) else typed[:1].decode("ascii", errors="replace").lower()


def read_line_key() -> str:
    """The first letter of the next line of standard input, for pipes and terminals without single keys."""
    line = sys.stdin.readline()
    return line.strip()[:1].lower() or "?" if line else ""


def _next_choice(console: Console, read_key: KeyReader) -> str:
    while True:
        console.print(Text(f"{_HELP} > "), end="")
        key = read_key() or "q"
        console.print(Text(key.upper() if key.isprintable() else "?"))
        if key in "abtuq":
            return key
        console.print(Text("Press one of these keys."))


def _tiers(key: str, order: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    first, second = order
    return {"a": ((first,), (second,)), "b": ((second,), (first,)), "t": ((0, 1),)}[key]


def _show(console: Console, question: Comparison, order: tuple[int, int], title: str) -> None:
    turns = [m for m in question.prompt.messages if m.role != "system"]
    asked = "\n".join(m.content if len(turns) == 1 else f"{m.role}: {m.content}" for m in turns)
    sides = [
        Panel(Text(_clean(question.answers[i]) or "(empty)"), title=label, title_align="left", border_style="cyan")
        for label, i in zip("AB", order, strict=True)
    ]
    if console.width >= _SIDE_BY_SIDE_COLUMNS:
        table = Table.grid(expand=True)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*sides)
        shown = Group(table)
    else:
        shown = Group(*sides)
    console.print()
    console.rule(Text(title))
    console.print(Text(_clean(asked), style="bold"))
    console.print(shown)


def _clean(text: str) -> str:
    """Control characters, which could repaint the terminal, shown as replacement marks."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.strip())
