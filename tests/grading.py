"""Reward functions for a process of their own, which imports this module and so nothing heavy."""

import os
import re
from pathlib import Path


def exact(example, answer):
    return None if answer == "perhaps" else float(answer == example.target)


def catastrophic(example, answer):
    """Holds the interpreter's lock for centuries."""
    return float(re.match(r"(a+)+$", "a" * 60 + "!") is not None) if example.id == "b" else 1.0


def crashing(example, answer):
    if example.id == "b":
        os._exit(3)
    return 1.0


def raising(example, answer):
    return {"a": 1.0, "c": 1.0}[example.id]


def endless(example, answer):
    Path(example.id).write_text(str(os.getpid()))
    while True:
        pass
