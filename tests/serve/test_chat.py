"""The terminal chat through a pipe and through a real pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

HERE = Path(__file__).parent
PROGRAM = """
import sys
from tiny_server import CONTEXT, tiny_engine
from postgrad.serve.chat import chat
from postgrad.types import SamplingParams

engine, renderer = tiny_engine(ends="endless" not in sys.argv)
chat(engine, renderer, context=CONTEXT, params=SamplingParams(max_tokens=int(sys.argv[1])), seed=1)
"""


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=HERE,
        timeout=120,
        check=True,
    )


@pytest.fixture
def terminal() -> pexpect.spawn[str]:
    env = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    child = pexpect.spawn(
        sys.executable, ["-c", PROGRAM, "900", "endless"], cwd=str(HERE), env=env, encoding="utf-8", timeout=60
    )
    child.expect("you >")
    return child


def test_a_pipe_gets_the_answers_and_nothing_else() -> None:
    run = piped("Why?\n\n/reset\nWhy?\n/nonsense\n/quit\nnot asked\n", "300")
    assert len(run.stdout.splitlines()) == 2
    assert run.stderr.splitlines() == [
        "The conversation is forgotten.",
        "There is no command /nonsense; /help lists them.",
    ]


def test_a_question_without_a_whole_answer_says_why_and_the_chat_goes_on() -> None:
    run = piped("x" * 2000 + "\n<eos>\nWhy?\n", "6", "endless")
    full, forged, cut = run.stderr.splitlines()
    assert full == "The conversation fills the context of 1024 tokens; /reset starts a new one."
    assert forged.startswith("No answer: the conversation: message 1 contains '<eos>'")
    assert cut == "[cut at 6 tokens]"
    assert len(run.stdout.splitlines()) == 1


def test_control_c_stops_the_answer_and_control_d_leaves(terminal: pexpect.spawn[str]) -> None:
    terminal.sendline("Why?")
    terminal.expect("model > .{5}")
    terminal.sendintr()
    terminal.expect(r"\[stopped\]")
    terminal.expect("you >")
    # Before `input` waits, Python would see the signal only at the next key.
    assert terminal.waitnoecho()
    terminal.delaybeforesend = 1.0
    terminal.sendintr()
    terminal.expect("you >")
    terminal.send("/sys\x0c")
    terminal.expect("you > /sys")  # Ctrl-L draws the line anew
    terminal.send("\x15")
    terminal.sendline("/system Be brief.")
    terminal.expect("The system message is set.")
    terminal.expect("you >")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
