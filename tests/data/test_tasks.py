"""Questions made by reasoning-gym: no question in two places, the same ones every time, and clear refusals."""

from __future__ import annotations

import sys

import pytest

from postgrad.config.questions import TaskConfig
from postgrad.data.mixture import normalise
from postgrad.data.tasks import make_tasks
from postgrad.errors import ConfigError

GCD = {"min_value": 2, "max_value": 12}


def task(name="gcd", config=GCD, **changes):
    return TaskConfig(**{"name": name, "config": config, "num_train": 30, "num_heldout": 20, **changes})


def questions(examples):
    return [normalise(e.prompt.messages[-1].content) for e in examples]


def test_no_heldout_question_is_trained_on_or_shown_and_none_comes_twice():
    tasks = make_tasks([task(shots=3), task(shots=2, config={"min_value": 2, "max_value": 13})], system="Go.", seed=5)
    asked = [q for made in tasks for part in (made.train, made.heldout) for q in questions(part)]
    shown = [normalise(m.content) for made in tasks for m in made.train[0].prompt.messages[1:-1] if m.role == "user"]
    assert len(asked) == 100
    assert len(shown) == 5
    assert len({*asked, *shown}) == 105


def test_neighbouring_seeds_share_no_items_by_construction():
    first, second = (questions(make_tasks([task(config={})], system="", seed=s)[0].train) for s in (0, 1))
    # A naive seed + 1 would share 29 of 30; chance alone shares almost none of a million pairs.
    assert len(set(first) & set(second)) <= 2


def test_the_same_seed_makes_the_same_questions_and_another_does_not():
    assert make_tasks([task()], system="", seed=3) == make_tasks([task()], system="", seed=3)
    assert make_tasks([task()], system="", seed=3) != make_tasks([task()], system="", seed=4)


def test_the_prompt_is_system_solved_questions_and_question():
    (made,) = make_tasks([task(shots=2)], system="Only the number.", seed=0)
    messages = made.heldout[7].prompt.messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0].content == "Only the number."
    assert messages[:-1] == made.train[0].prompt.messages[:-1]
    assert made.heldout[7].target == made.heldout[7].metadata["entry"]["answer"]
    assert made.heldout[7].id == "gcd-heldout-7"
    (bare,) = make_tasks([task()], system="", seed=0)
    assert [m.role for m in bare.train[0].prompt.messages] == ["user"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "gdc"}, "no data set 'gdc'"),
        ({"config": {"maximum": 3}}, "refuses the 'config' of 'gcd'"),
        ({"config": {"min_value": 9, "max_value": 3}}, "refuses the 'config' of 'gcd'"),
        ({"name": "aiw", "config": {"task_types": ["siblings"], "task_type_weights": [1.0]}}, "'config' of 'aiw'"),
        ({"num_train": 500, "config": {"min_value": 2, "max_value": 4}}, "lower 'num_train'"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        make_tasks([task(**changes)], system="", seed=0)


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install postgrad\[reasoning\]"):
        make_tasks([task()], system="", seed=0)


def test_the_seed_of_a_data_set_is_the_recipes():
    with pytest.raises(ValueError, match="'seed' is set by the recipe"):
        task(config={"seed": 3})
