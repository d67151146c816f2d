"""Verifiers against answers known to be right, known to be wrong, and meant to break them."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from postgrad.config.questions import TaskConfig
from postgrad.data.tasks import make_tasks
from postgrad.errors import ConfigError
from postgrad.graders.function import FunctionGrader
from postgrad.graders.verify import find_function, score_form, score_math, score_task
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn

HOSTILE = ["", " ", "nan", "inf", "-", "٣", "１２", "7" * 10_000, "1e999", "[" * 500, "\x00", "None", "$\\frac{1}{0}$"]
TASKS = {
    "gcd": {"max_value": 60},
    "chain_sum": {"max_terms": 3},
    "products": {},
    "letter_counting": {},
    "prime_factorization": {},
    "fraction_simplification": {},
    "number_sorting": {},
    "word_sorting": {},
}


def question(target, metadata=None):
    return Example("q", Conversation((Message("user", "6 * 7?"),)), target=target, metadata=metadata or {})


@pytest.fixture(scope="module", params=TASKS)
def entry(request):
    config = TaskConfig(name=request.param, config=TASKS[request.param], num_train=1, num_heldout=1)
    return make_tasks([config], system="", seed=1)[0].heldout[0]


def test_a_data_set_finds_its_own_answer_right_with_or_without_blanks_around_it(entry):
    assert score_task(entry, entry.target) == 1
    assert score_task(entry, f" {entry.target}\n") == 1


def test_another_answer_is_not_right(entry):
    assert score_task(entry, "I do not know.") == 0
    assert score_task(entry, f"{entry.target} or perhaps not") == 0
    assert score_task(entry, f"{entry.target}4") == 0


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_wrong_and_never_raise(entry, answer):
    assert score_task(entry, answer) == 0
    assert score_form(entry, answer) in (0, 1)


@pytest.mark.parametrize(
    ("target", "right", "wrong"),
    [
        ("1/2", ["0.5", "The answer is $\\frac{1}{2}$.", "\\boxed{1/2}"], ["1/3", "2", "", "nan"]),
        ("42", ["42", "It is 42.", "$6 \\cdot 7 = 42$"], ["24", "forty", "4 2"]),
        ("x^2+2x+1", ["$(x+1)^2$"], ["$x^2+1$"]),
    ],
)
def test_math_answers_are_compared_by_value(target, right, wrong):
    assert [score_math(question(target), a) for a in right] == [1.0] * len(right)
    assert [score_math(question(target), a) for a in wrong] == [0.0] * len(wrong)


def test_math_and_form_abstain_without_a_target():
    assert score_math(question(None), "42") is None
    assert score_form(question(None), "42") is None


@pytest.mark.parametrize(
    ("target", "answer", "same"),
    [
        ("12", "-7", 1),
        ("12", " 12\n", 1),
        ("12", "12.", 0),
        ("12", "twelve", 0),
        ("son", "mother", 1),
        ("son", "the son", 0),
        ("5/6", "10/12", 1),
        ("5/6", "0.83", 0),
    ],
)
def test_form_is_what_numbers_and_words_stand_between(target, answer, same):
    assert score_form(question(target), answer) == same


REWARD = '''
def length(prompt, answer, target, metadata):
    """Checks that it is handed what it should be."""
    assert (prompt, target, metadata) == ("6 * 7?", "42", {"hint": "x"}), (prompt, target, metadata)
    return None if answer == "skip" else len(answer) / 10
'''


def group(answers):
    trajectories = (
        Trajectory(str(i), (Turn((1,), Completion((2,), (0.0,), "stop", 0, text)),), "completed")
        for i, text in enumerate(answers)
    )
    return Group(question("42", {"hint": "x"}), tuple(trajectories))


def test_a_users_function_in_a_file_is_asked_in_its_own_process(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    function = find_function("rewards.py:length", tmp_path)
    grader = FunctionGrader("length", pickle.loads(pickle.dumps(function)), weight=2.0)
    scores = asyncio.run(grader.grade(group(["abc", "skip", ""])))
    assert [(s.value, s.weight) for s in scores] == [(0.3, 2.0), (None, 2.0), (0.0, 2.0)]


def test_a_users_function_in_a_module_is_called_with_the_four_things():
    function = find_function("operator:contains", __import__("pathlib").Path())
    with pytest.raises(TypeError, match="4"):
        function(question("42"), "answer")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("exactly", "neither one of reasoning-gym, math, form nor"),
        ("gone.py:f", "cannot be read"),
        ("broken.py:f", "is not Python"),
        ("rewards.py:weight", "defines no function 'weight'"),
        ("rewards.py:not a name", "nor of the form"),
        ("no_such_module_of_mine:f", "there is no module"),
        ("no_such_package_of_mine.rewards:f", "there is no module"),
    ],
)
def test_a_function_that_cannot_be_found_is_named_before_anything_runs(tmp_path, name, problem):
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=problem):
        find_function(name, tmp_path)
