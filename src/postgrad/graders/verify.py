"""Verifiers: functions of (example, answer) for a `FunctionGrader`, which runs them in a process of its own."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgrad.data.tasks import task_dataset
from postgrad.errors import ConfigError
from postgrad.graders.function import GradeAnswer
from postgrad.types import Example

UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, SyntaxError, RecursionError)
"""What the verifiers' own parsers raise over answers in a form that they did not expect."""


def score_task(example: Example, answer: str) -> float:
    """1 where the data set itself gives the answer full marks, else 0; what it cannot parse is wrong, not unscored.

    Most data sets give part marks for an answer that merely contains the right one: half for "24" where it is 2.
    """
    dataset = _dataset(example.metadata["task"], example.metadata["config"])
    try:
        return float(dataset.score_answer(answer.strip(), example.metadata["entry"]) >= 1)
    except UNREADABLE:
        return 0.0


@functools.lru_cache(maxsize=64)
def _dataset(name: str, config: str) -> Any:
    return task_dataset(name, json.loads(config), seed=0, size=1)


def score_math(example: Example, answer: str) -> float | None:
    """1 where math-verify finds the answer equal to the target, in any notation; None where there is no target.

    Raises:
        ConfigError: math-verify is not installed.
    """
    if example.target is None:
        return None
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ConfigError(
            "grader 'math' needs math-verify; install it with `pip install postgrad[reasoning]`"
        ) from None
    try:
        return float(verify(parse(f"${example.target}$"), parse(answer)))
    except UNREADABLE:
        return 0.0


def score_form(example: Example, answer: str) -> float | None:
    """1 where the answer looks like the target: a number for a number, a word for a word, the same signs between.

    To be measured beside correctness: who has learned the form of an answer alone shows here.
    """
    return None if example.target is None else float(_form(answer) == _form(example.target))


def _form(text: str) -> str:
    numbers = re.sub(r"-?\d+", "0", text.strip())
    return re.sub(r"[^\W\d_]+", "a", numbers)


@dataclass(frozen=True)
class UserFunction:
    """A user's function of (prompt, answer, target, metadata), by its module or file; loaded when first called."""

    where: str
    function: str
    path: Path | None
    """The file, or None for a module."""

    def __call__(self, example: Example, answer: str) -> float | None:
        question = next((m.content for m in reversed(example.prompt.messages) if m.role == "user"), "")
        value: float | None = _load(self)(question, answer, example.target, dict(example.metadata))
        return value


@functools.cache
def _load(user: UserFunction) -> Callable[..., float | None]:
    if user.path is None:
        module = importlib.import_module(user.where)
    else:
        spec = importlib.util.spec_from_file_location(user.path.stem, user.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    function: Callable[..., float | None] = getattr(module, user.function)
    return function


BUILT_IN: dict[str, GradeAnswer] = {"reasoning-gym": score_task, "math": score_math, "form": score_form}


def find_function(name: str, folder: Path) -> GradeAnswer:
    """A built-in grader by its name, or the user's function.

    Args:
        name: as the recipe gives it.
        folder: where relative paths begin.

    Raises:
        ConfigError: there is no such file, module or function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    where, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise ConfigError(
            f"'graders.function' = {name!r} is neither one of {', '.join(BUILT_IN)} nor of the form "
            "module:function or file.py:function"
        )
    if not where.endswith(".py"):
        _check_module(name, where)
        return UserFunction(where, function, None)
    path = (folder / where).resolve()
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"'graders.function' = {name!r}: {str(path)!r} cannot be read: {e.strerror}") from None
    except (SyntaxError, ValueError) as e:
        raise ConfigError(f"'graders.function' = {name!r}: {str(path)!r} is not Python: {e}") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
        raise ConfigError(f"'graders.function' = {name!r}: {str(path)!r} defines no function {function!r}")
    return UserFunction(where, function, path)


def _check_module(name: str, where: str) -> None:
    try:
        found = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            f"'graders.function' = {name!r}: there is no module {where!r}; install it, or name a file.py:function"
        )
