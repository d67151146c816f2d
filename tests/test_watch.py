"""Every rule on a curve made for it, and none of them on curves of runs that went well."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watching import find_warnings

from postgrad.config.preference import PreferenceRecipe
from postgrad.config.pretrain import PretrainRecipe
from postgrad.config.round import Recipe
from postgrad.metrics import BETTER, METRIC_KEYS, TITLES
from postgrad.run import RunDirectory, read_metrics
from postgrad.watch import ADVICE, RULES, RunWatch

Rows = list[dict[str, float]]
TINY_RL = Path(__file__).parent / "tiny_rl_metrics.jsonl"
"""60 PPO steps of the recipe in tiny_round.py, with sft.epochs=8 and rl.steps=60; rounded to four digits."""
TINY_PRETRAIN = Path(__file__).parent / "tiny_pretrain_metrics.jsonl"
"""The first 120 steps of recipe pretrain-tiny, which rests at the frequencies of its tokens from step 22 to 45."""


def curves(**columns: Sequence[float]) -> Rows:
    """Rows from step 1 on, of columns such as reward__mean; NaN is a gap."""
    keys = [name.replace("__", "/") for name in columns]
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {"step": step} | {key: value for key, value in row.items() if not math.isnan(value)}
        for step, row in enumerate(rows, start=1)
    ]


def along(num: int, value: Callable[[int], float]) -> list[float]:
    return [value(step) for step in range(1, num + 1)]


GOLDEN: list[tuple[str, Rows, int, str]] = [
    (
        "entropy_collapse",
        curves(policy__entropy=[2.4] * 20 + [0.48] * 3),
        23,
        "entropy fell 80% in 3 steps, from 2.40 to 0.48 nats: the policy settles on few answers and stops exploring",
    ),
    # The means of three fall from 2.4 by 0.1 a step, and pass 0.96 = 40% of 2.4 at step 18.
    (
        "entropy_collapse",
        curves(policy__entropy=along(25, lambda s: 2.6 - 0.1 * s)),
        18,
        "in 15 steps, from 2.40 to 0.90 nats",
    ),
    (
        "kl_runaway",
        curves(policy__kl_ref=along(10, lambda s: 0.05 * 2 ** (s - 1))),
        10,
        "KL from the reference rose by 18.0 nats an answer in 4 steps, to 19.2, at least twice as fast as before",
    ),
    (
        "verbosity",
        curves(rollout__completion_tokens=along(15, lambda s: 20 + s), reward__mean=along(15, lambda s: 0.1 * s)),
        10,
        "answers grew by 32% in 9 steps, 22 to 29 tokens, while the reward rose with them (correlation 1.00)",
    ),
    (
        "truncation",
        curves(rollout__truncated_frac=along(13, lambda s: 0.04 * s), reward__mean=[0.5] * 13),
        13,
        "Truncated answers rose from 14% to 42% in 12 steps: the policy no longer comes to an end",
    ),
    (
        "signal_fading",
        curves(group__no_signal_frac=[0.1] * 14 + [0.4] * 6),
        19,
        "Groups without signal rose from 10% to 35% in 18 steps",
    ),
    (
        "gradient_spike",
        curves(optim__grad_norm=[2.0] * 10 + [30.0]),
        11,
        "gradient norm 30 is 15 times the running median 2: this step's batch",
    ),
    (
        "blind_critic",
        curves(value__explained_variance=[math.nan] + [-0.2] * 10),
        11,
        "explained variance was negative for 10 steps, now -0.20, and does not rise: the critic is worse than",
    ),
    (
        "coin_toss",
        curves(loss__bradley_terry=[0.693] * 20, reward__accuracy=[0.5] * 20),
        15,
        "after 15 steps the reward model's loss is 0.693, that of a coin toss (ln 2 = 0.693), and it is right on 50%",
    ),
    (
        "likelihood_falling",
        curves(preference__chosen_logprob=along(18, lambda s: -2 - 0.06 * s), preference__margin=along(18, float)),
        18,
        "preferred answers became less likely, from -2.21 to -2.93 nats a token in 17 steps: the margin grows because",
    ),
    (
        "loss_rising",
        curves(loss__nll=[2.0] * 10 + [3.0] * 5),
        13,
        "loss rose by 50%, from its low of 2.00 to 3.00 nats a token",
    ),
    (
        "loss_high",
        curves(loss__nll=[9.0] * 61),
        60,
        "from step 31 to 60 the loss went from 9.00 to 9.00 nats a token; it is above the healthy 5 and does not fall",
    ),
    (
        "stalled",
        curves(reward__mean=along(30, lambda s: 0.5 + 0.1 * (-1) ** s), policy__kl_ref=[0.02] * 30),
        30,
        "in 30 steps the reward went from 0.5 to 0.5, within its noise, and the policy is still within 0.02 nats",
    ),
    (
        "unscored",
        curves(rollout__truncated_frac=[0.1, 0.1, 0.1], reward__mean=[0.5, math.nan, math.nan]),
        3,
        "no answer got a reward in 2 steps: the graders abstain or fail",
    ),
    (
        "range",
        curves(sampler__logprob_diff_max=[9e-5, 1e-3]),
        2,
        "Sampler minus trainer at 0.001, above the healthy 0.0002 (largest |sampler - trainer| logprob of a sampled "
        "token, nats)",
    ),
    (
        "range",
        curves(policy__clip_frac=[0.35, 0.36, 0.37]),
        3,
        "Clipped tokens at 37%, above the healthy 30% for 3 steps (share of tokens whose probability",
    ),
    (
        "range",
        curves(policy__entropy=[0.3, 0.09, 0.08, 0.07]),
        4,
        "Entropy at 0.07, below the healthy 0.1 for 3 steps",
    ),
]


@pytest.mark.parametrize(("rule", "rows", "step", "message"), GOLDEN)
def test_a_curve_that_goes_wrong_is_explained_once_at_the_step_that_shows_it(
    rule: str, rows: Rows, step: int, message: str
) -> None:
    (warning,) = find_warnings(rows)
    assert (warning.rule, warning.step) == (rule, step)
    assert message in warning.message
    assert warning.metric in METRIC_KEYS


def test_every_rule_has_a_curve() -> None:
    assert {rule.name for rule in RULES} == {name for name, *_ in GOLDEN}


HEALTHY: dict[str, Rows] = {
    "preferred answers a little less likely": curves(preference__chosen_logprob=along(40, lambda s: -2 - 0.002 * s)),
    "preferences that are learned slowly": curves(
        preference__accuracy=along(30, lambda s: 0.4 + 0.01 * s), preference__margin=along(30, lambda s: 0.01 * s - 0.1)
    ),
    "KL that rises in a line": curves(policy__kl_ref=along(19, lambda s: 0.5 * s)),
    "KL that shrinks after a jump": curves(policy__kl_ref=[0.0, 0, 0, 0, 0, 9, 8, 7, 6, 5, 5, 5, 5]),
    "entropy that halves": curves(policy__entropy=along(60, lambda s: 2.4 * 0.5 ** (s / 40))),
    "entropy that falls to a third, slowly": curves(policy__entropy=along(200, lambda s: 2.4 * 0.33 ** (s / 200))),
    "answers that grow while the reward falls": curves(
        rollout__completion_tokens=along(30, lambda s: 20 + s), reward__mean=along(30, lambda s: -0.1 * s)
    ),
    "answers that shrink while the reward rises": curves(
        rollout__completion_tokens=along(30, lambda s: 60 - s), reward__mean=along(30, lambda s: 0.1 * s)
    ),
    "a critic that starts blind": curves(value__explained_variance=along(40, lambda s: 0.6 - 3 * math.exp(-s / 4))),
    "a reward model that starts at ln 2": curves(
        loss__bradley_terry=along(17, lambda s: 0.70 - 0.002 * s), reward__accuracy=along(17, lambda s: 0.48 + 0.01 * s)
    ),
    "a fresh model that learns": curves(loss__nll=along(60, lambda s: 3 + 6 * math.exp(-s / 30))),
    "a loss with odd batches": curves(loss__nll=along(60, lambda s: 2 - 0.01 * s + 3 * (s % 7 == 0))),
    "two steps outside": curves(policy__clip_frac=[0.1, 0.4, 0.4, 0.1, 0.4, 0.4, 0.1]),
    "a gradient norm that decays": curves(optim__grad_norm=along(60, lambda s: 0.5 + 40 * math.exp(-s / 3))),
    "a reward that has converged far from the reference": curves(
        reward__mean=along(60, lambda s: 1.2 + 0.05 * (-1) ** s), policy__kl_ref=[4.0] * 60
    ),
    "a student without graders": curves(teacher__kl=along(5, lambda s: 1 / s), rollout__truncated_frac=[0.1] * 5),
    "a step without a score": curves(rollout__truncated_frac=[0.1] * 3, reward__mean=[0.5, math.nan, 0.5]),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_curve_is_quiet(name: str) -> None:
    assert find_warnings(HEALTHY[name]) == []


@pytest.mark.parametrize(("path", "steps"), [(TINY_RL, 60), (TINY_PRETRAIN, 120)])
def test_a_real_run_that_went_well_is_quiet(path: Path, steps: int) -> None:
    rows = read_metrics(path)
    assert len(rows) == steps
    assert find_warnings(rows) == []


def test_a_warning_is_given_again_only_after_ten_quiet_steps() -> None:
    bad, good = [0.4] * 30, [0.1] * 10
    assert [w.step for w in find_warnings(curves(policy__clip_frac=bad))] == [3]
    assert [w.step for w in find_warnings(curves(policy__clip_frac=bad + good[:5] + bad))] == [3]
    assert [w.step for w in find_warnings(curves(policy__clip_frac=bad + good + bad))] == [3, 43]


def test_the_range_is_not_warned_of_where_a_rule_has_just_explained_the_same_metric() -> None:
    rows = curves(policy__entropy=[2.4] * 20 + [0.05] * 9)
    assert [w.rule for w in find_warnings(rows)] == ["entropy_collapse"]


def test_every_metric_and_every_recipe_key_that_is_named_exists() -> None:
    assert {*TITLES, *BETTER, *ADVICE} <= METRIC_KEYS.keys()
    fields = {**PretrainRecipe.model_fields, **PreferenceRecipe.model_fields, **Recipe.model_fields}
    sections = {name: field.annotation for name, field in fields.items()}
    named = {
        match
        for rule in RULES
        for match in re.findall(r"\b(sft|labels|reward|rl|pretrain|preference)\.(\w+)", rule.advice)
    }
    assert len(named) > 10
    assert [f"{s}.{key}" for s, key in named if key not in sections[s].model_fields] == []  # type: ignore[union-attr]


def test_what_is_not_a_number_anywhere_breaks_no_rule() -> None:
    for key in METRIC_KEYS:
        assert find_warnings([{"step": step, key: 0.0} for step in range(1, 61)]) is not None
        find_warnings([{"step": step} | ({key: 1.0} if step % 7 == 0 else {}) for step in range(1, 61)])


@settings(max_examples=8, deadline=None)
@given(killed=st.integers(1, 24), checkpoint_every=st.integers(1, 9), torn=st.booleans())
def test_a_killed_and_resumed_run_keeps_the_warnings_of_one_that_was_not(
    tmp_path_factory: pytest.TempPathFactory, killed: int, checkpoint_every: int, torn: bool
) -> None:
    rows = curves(
        policy__clip_frac=[0.1] * 5 + [0.4] * 20,
        policy__entropy=[2.4] * 12 + [0.3] * 13,
        rollout__truncated_frac=along(25, lambda s: 0.01 * s),
        reward__mean=along(25, lambda s: 0.1 * s),
    )
    whole = run_of(tmp_path_factory.mktemp("whole"), rows)
    run = run_of(tmp_path_factory.mktemp("killed"), rows[:killed], last_is_unseen=torn)
    start = killed // checkpoint_every * checkpoint_every
    run.truncate_after(start)
    before = run.read_warnings()
    watch = RunWatch(run)
    given_now = []
    for row in rows[start:]:
        write(run, row)
        given_now += watch.update()
    assert run.warnings_path.read_bytes() == whole.warnings_path.read_bytes()
    assert len(given_now) + len(before) == len(whole.read_warnings()) == 2
    assert watch.warnings == find_warnings(rows)


def write(run: RunDirectory, row: dict[str, float]) -> None:
    run.write_metrics(int(row["step"]), {key: value for key, value in row.items() if key != "step"})


def run_of(folder: Path, rows: Rows, *, last_is_unseen: bool = False) -> RunDirectory:
    """A run that was watched; `last_is_unseen` was killed between the last row and a look at it."""
    run = RunDirectory(folder)
    watch = RunWatch(run)
    for row in rows:
        write(run, row)
        if not (last_is_unseen and row is rows[-1]):
            watch.update()
    return run


def test_warnings_are_kept_as_one_readable_object_a_line(tmp_path: Path) -> None:
    run = run_of(tmp_path, curves(policy__clip_frac=[0.35] * 3))
    (line,) = run.warnings_path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "step": 3,
        "rule": "range",
        "metric": "policy/clip_frac",
        "message": "Clipped tokens at 35%, above the healthy 30% for 3 steps "
        f"({METRIC_KEYS['policy/clip_frac'].meaning})",
        "advice": ADVICE["policy/clip_frac"],
    }
    assert run.read_warnings() == [json.loads(line)]


def test_a_run_without_warnings_leaves_no_file(tmp_path: Path) -> None:
    assert run_of(tmp_path, HEALTHY["entropy that halves"]).read_warnings() == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
