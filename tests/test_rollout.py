"""Rollouts and graders that fail in every way we could think of: each is data, and the loop goes on."""

import asyncio
import math
import threading
import time

import psutil
import pytest
from grading import catastrophic, crashing, endless, exact, raising
from tiny_rl import forkserver

from postgrad import rollout
from postgrad.engine.local import LocalEngine
from postgrad.errors import ConfigError, EngineError, GraderError
from postgrad.graders.function import FunctionGrader
from postgrad.models.load import load_policy
from postgrad.rollout import grade_groups, rollout_groups
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Completion, Conversation, Example, Group, Message, SamplingParams, Score, Trajectory, Turn

ANSWERS = ("yes", "no", "perhaps")


def example(name, prompt="?"):
    return Example(name, Conversation((Message("user", prompt),)), target="yes")


def answered(name, texts=ANSWERS):
    completions = [Completion((1, 2), (-0.5, -0.5), "stop", 0, text) for text in texts]
    return Group(
        example(name),
        tuple(Trajectory(f"{name}/{i}", (Turn((3,), c),), "completed") for i, c in enumerate(completions)),
    )


class Table:
    """Gives what it was made with, or calls it."""

    def __init__(self, outcome, name="table"):
        self.name = name
        self.outcome = outcome
        self.asked = []

    async def grade(self, group):
        self.asked.append(group)
        return self.outcome(group) if callable(self.outcome) else self.outcome


def scores(value, num=3):
    return [Score("table", value) for _ in range(num)]


def grade(groups, *graders):
    return asyncio.run(grade_groups(groups, graders))


def given(group):
    return [[(s.grader, s.value, s.explanation) for s in t.scores] for t in group.trajectories]


def test_scores_of_every_grader_are_kept_in_order():
    first = Table([Score("a", float(i)) for i in range(3)], "a")
    second = Table([Score("b", 1.0), Score("b", None, explanation="no opinion"), Score("b", -1.0, 0.5)], "b")
    (group,) = grade([answered("x")], first, second)
    assert given(group) == [
        [("a", 0.0, ""), ("b", 1.0, "")],
        [("a", 1.0, ""), ("b", None, "no opinion")],
        [("a", 2.0, ""), ("b", -1.0, "")],
    ]
    assert [t.reward for t in group.trajectories] == [1.0, 1.0, 1.5]


@pytest.mark.parametrize("error", [ValueError("no \\boxed{}"), SystemExit(1), TimeoutError("judge read timed out")])
def test_a_grader_that_raises_abstains_from_its_group_alone(error):
    def fail_on_b(group):
        if group.example.id == "b":
            raise error
        return scores(1.0)

    groups = grade([answered("a"), answered("b"), answered("c")], Table(fail_on_b), Table(scores(0.5)))
    assert [[t.reward for t in g.trajectories] for g in groups] == [[1.5] * 3, [0.5] * 3, [1.5] * 3]
    assert given(groups[1])[2][0] == ("table", None, f"failed: {type(error).__name__}: {error}")


@pytest.mark.parametrize("sleep", [asyncio.sleep, time.sleep], ids=["awaiting", "blocking"])
def test_a_grader_that_hangs_abstains_after_the_timeout_and_the_others_go_on(monkeypatch, sleep):
    monkeypatch.setattr(rollout, "GRADER_TIMEOUT_S", 2)

    class Sleeper:
        name = "sleeper"

        async def grade(self, group):
            if group.example.id == "b":
                waiting = sleep(12)
                if waiting is not None:
                    await waiting
            return scores(1.0)

    began = time.perf_counter()
    groups = grade([answered("a"), answered("b"), answered("c")], Sleeper())
    assert time.perf_counter() - began < 11
    assert [[t.reward for t in g.trajectories] for g in groups] == [[1.0] * 3, [None] * 3, [1.0] * 3]
    assert given(groups[1])[0] == [("sleeper", None, "failed: no answer within 2 s")]


def test_hanging_calls_are_counted_because_a_thread_cannot_be_killed(monkeypatch):
    monkeypatch.setattr(rollout, "GRADER_TIMEOUT_S", 0.05)
    release = threading.Event()
    try:
        with pytest.raises(GraderError, match=r"4 calls of grader 'stuck' hang, each for more than 0\.05 s"):
            grade([answered(str(i)) for i in range(9)], Table(lambda _: release.wait(20), "stuck"))
        assert sum(thread.name == "grader stuck" for thread in threading.enumerate()) == 4
        monkeypatch.setattr(rollout, "GRADER_TIMEOUT_S", 60)
        (group,) = grade([answered("x")], Table(scores(1.0), "quick"))
        assert group.trajectories[0].reward == 1.0, "another grader is not held responsible"
    finally:
        release.set()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (math.nan, "the score nan with weight 1 is not finite"),
        (math.inf, "the score inf with weight 1 is not finite"),
        (-math.inf, "the score -inf with weight 1 is not finite"),
        (1e39, "the score 1e+39 with weight 1 is not finite"),
        ("high", "the score 'high' is not a number"),
    ],
)
def test_a_score_that_is_no_number_in_float32_is_an_abstention(bad, said):
    (group,) = grade([answered("x")], Table([Score("table", bad), Score("table", 0.0), Score("table", None)]))
    assert [t.reward for t in group.trajectories] == [None, 0.0, None]
    assert [s[0][2] for s in given(group)] == [f"failed: {said}", "", ""]


def test_a_weight_that_is_no_number_is_an_abstention():
    (group,) = grade([answered("x", ("yes",))], Table([Score("table", 1.0, weight=math.nan)]))
    assert group.trajectories[0].reward is None
    assert given(group) == [[("table", None, "failed: the score 1 with weight nan is not finite")]]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (scores(1.0, 2), "grader 'table' returned 2 scores for 3 answers; return one for each"),
        ([], "grader 'table' returned 0 scores for 3 answers"),
        ([1.0, 2.0, 3.0], r"returned \[1.0, 2.0, 3.0\], which is not a list of Score"),
        (None, "returned None, which is not a list of Score"),
    ],
)
def test_a_grader_that_breaks_its_contract_is_told_so(outcome, said):
    with pytest.raises(GraderError, match=said):
        grade([answered("x")], Table(outcome))


def test_graders_are_not_asked_about_rollouts_that_failed():
    whole, broken = answered("a"), Trajectory("a/9", (), "errored", error="gone")
    mixed = Group(whole.example, (broken, *whole.trajectories))
    lost = Group(example("b"), (broken, broken))
    grader = Table(scores(1.0))
    first, second = grade([mixed, lost], grader)
    assert [[t.id for t in g.trajectories] for g in grader.asked] == [["a/0", "a/1", "a/2"]]
    assert [t.reward for t in first.trajectories] == [None, 1.0, 1.0, 1.0]
    assert second == lost


# A function in a process of its own.


def test_a_function_grades_every_answer():
    (group,) = grade([answered("x")], FunctionGrader("exact", exact, weight=2.0))
    assert [t.reward for t in group.trajectories] == [2.0, 0.0, None]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (catastrophic, "TimeoutError: no answer within 2 s; its process was killed"),
        (crashing, "GraderError: its process ended with exit code 3"),
        (raising, "GraderError: KeyError: 'b'"),
    ],
)
def test_a_function_that_hangs_crashes_or_raises_costs_its_group_alone(function, said):
    grader = FunctionGrader("plain", function, timeout_s=2)
    groups = grade([answered("a"), answered("b"), answered("c")], grader)
    assert [[t.reward for t in g.trajectories] for g in groups] == [[1.0] * 3, [None] * 3, [1.0] * 3]
    assert given(groups[1])[0] == [("plain", None, f"failed: {said}")]


def test_a_function_that_another_process_could_not_find_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"grader 'local': .* cannot be handed to another process; define it with"):
        FunctionGrader("local", lambda example, answer: 1.0)


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _grade_for_ever(path):
    grade([answered(str(path))], FunctionGrader("endless", endless, timeout_s=3.0))


def test_a_function_does_not_outlive_a_run_that_was_killed(tmp_path):
    path = tmp_path / "pid"
    run = forkserver().Process(target=_grade_for_ever, args=(path,))
    run.start()
    while not path.exists() or not path.read_text():
        time.sleep(0.02)
    run.kill()
    run.join()
    assert is_running(int(path.read_text()))
    deadline = time.monotonic() + 60
    while is_running(int(path.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Rollouts.


def roll(directory, examples, *, engine=None, max_tokens=20, group_size=2, seed=5):
    renderer = Renderer(load_tokenizer(directory))
    engine = engine or LocalEngine(load_policy(directory), stop_ids=renderer.stop_ids, decode=renderer.decode)
    params = SamplingParams(max_tokens=max_tokens)
    return asyncio.run(rollout_groups(examples, engine, renderer, params, group_size=group_size, seed=seed))


def tokens_of(group):
    return [t.turns[0].completion.token_ids for t in group.trajectories]


def test_prompts_beyond_the_context_are_errored_and_the_others_are_sampled_as_alone(tiny_model_directory):
    long = "x" * 500
    examples = [example("0", "a"), example("1", long), example("2", "bb"), example("3", "c"), example("4", long)]
    groups = roll(tiny_model_directory, examples)
    assert [{t.status for t in g.trajectories} for g in groups].count({"errored"}) == 2
    for i in (1, 4):
        assert all(t.turns == () and t.reward is None for t in groups[i].trajectories)
        assert all(
            "plus 20 to generate does not fit the model's context of 512" in t.error for t in groups[i].trajectories
        )
    for i in (0, 2, 3):
        (alone,) = roll(tiny_model_directory, [examples[i]])
        assert tokens_of(groups[i]) == tokens_of(alone)
        assert [t.id for t in groups[i].trajectories] == [f"{i}/5/0", f"{i}/5/1"]


def test_an_engine_that_is_gone_is_every_rollouts_error(tiny_model_directory):
    class Gone:
        version = 0
        calls = 0

        async def generate(self, requests, on_token=None):
            self.calls += 1
            raise EngineError("connection refused")

    engine = Gone()
    groups = roll(tiny_model_directory, [example(str(i)) for i in range(3)], engine=engine)
    assert [[(t.status, t.error) for t in g.trajectories] for g in groups] == [
        [("errored", "connection refused")] * 2
    ] * 3
    assert engine.calls == 5, "three prompts, halved"


def test_an_example_that_comes_twice_is_answered_anew(tiny_model_directory):
    twice = roll(tiny_model_directory, [example("0"), example("1"), example("0")])
    assert len({ids for g in twice for ids in tokens_of(g)}) == 6
    assert [t.id for t in twice[2].trajectories] == ["0/5/2", "0/5/3"]
    (four,) = roll(tiny_model_directory, [example("0")], group_size=4)
    assert tokens_of(twice[0]) + tokens_of(twice[2]) == tokens_of(four)


def test_answers_do_not_depend_on_how_many_siblings_they_have(tiny_model_directory):
    (two,), (five,) = (roll(tiny_model_directory, [example("0")], group_size=n) for n in (2, 5))
    assert tokens_of(five)[:2] == tokens_of(two)
