"""`postgrad compare-methods`: every method, every seed, one table; resumed, refused, and pooled by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tiny_compare import write_comparison
from tiny_round import call, fork, killed_at

from postgrad.config.load import load_recipe
from postgrad.evals.pooling import T_975, mean_over_seeds, pooled_at_equal_length, pooled_mean
from postgrad.rounds.compare_table import _nats, make_page
from postgrad.rounds.manifest import find_round, list_rounds

TWO = """
[[methods]]
name = "dpo"
preference = { algorithm = "dpo", learning_rate = 1e-3 }

[[methods]]
name = "grpo"
rl = { algorithm = "grpo", learning_rate = 1e-3, epochs = 1, minibatches = 1 }
"""


def test_all_methods_of_two_seeds_in_one_table_and_nothing_twice(capsys, tiny_model_directory, tmp_path):
    recipe = write_comparison(tmp_path, tiny_model_directory)
    workspace = tmp_path / "w"
    arguments = ("compare-methods", recipe, "--workspace", workspace, "--seeds", "1,2")
    code, _, err = call(capsys, *arguments, "--markdown", tmp_path / "t.md", "--html", tmp_path / "t.html")
    assert (code, err) == (0, ""), err
    text = (tmp_path / "t.md").read_text()
    for name in ("sft", "edits-sft", "best", "dpo", "kto", "ppo", "grpo", "distill"):
        assert f"| {name} | " in text
        assert f'<td class="nowrap">{name}</td>' in (tmp_path / "t.html").read_text()
    assert "| against sft | seed 1 | seed 2 |\n" in text
    assert "16 labelled prompts, 1 times, 4 a step, with 3 answers to each" in text
    made = {m.record.seed: m.record.model_dump() for m in list_rounds(workspace)}
    assert sorted(made) == [1, 2]
    for name in ("dpo", "kto", "grpo", "distill", "edits-sft", "best"):
        assert find_round(workspace, "1").find(name).policy_version == 4, name
    first = find_round(workspace, "1")
    assert first.find("dpo").summary["prompts"] <= 16, "only the labels of its own seed"
    for name in ("reward", "dpo", "kto"):
        assert {o["problem"] for o in first.find(name).summary["odd"]} >= {"contradictory", "too_long"}, name
        assert first.find(name).summary["sources"] == first.find("reward").summary["sources"]
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert "1/14" not in out
    assert {m.record.seed: m.record.model_dump() for m in list_rounds(workspace)} == made
    three = make_page(load_recipe(recipe, ()), [*list_rounds(workspace), first]).seeds
    assert three[0][-1] == "mean of seeds"
    assert all(row[-1].count("%") == 3 for row in three[1])


def test_a_comparison_that_was_killed_ends_where_an_uninterrupted_one_does(tiny_model_directory, tmp_path):
    recipe = write_comparison(tmp_path, tiny_model_directory, methods=TWO)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ("compare-methods", recipe, "--seeds", "3", "--workspace")
    assert fork(tmp_path / "a", *command, whole).wait() == 0
    killed_at("grpo/trajectories/step-0002", tmp_path / "b", *command, cut)
    assert find_round(cut, "latest").record.status == "running"
    assert fork(tmp_path / "c", *command, cut).wait() == 0
    assert _made(cut) == _made(whole)


def _made(workspace):
    """Digests of what does not hold seconds."""
    stages = find_round(workspace, "1").record.stages
    outputs = {path: digest for stage in stages for path, digest in stage.outputs.items()}
    return {p: d for p, d in outputs.items() if p.endswith(("policy/model.safetensors", "arena.json", "answers.jsonl"))}


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (TWO.replace("epochs = 1", "steps = 9"), "method 'grpo': 'rl.steps' follows from 'budget' and 'labels'"),
        (TWO.replace('"grpo"\n', '"dpo"\n'), "method name 'dpo' is taken"),
        ('[[methods]]\nname = "x"\n', "method 'x' needs one of the sections"),
        (
            '[[methods]]\nname = "x"\ndistill = { learning_rate = 1e-3 }\nteacher = { name = "gpt2" }\n',
            "teacher 'gpt2' is no method before it",
        ),
    ],
)
def test_a_bad_recipe_is_one_sentence(capsys, tiny_model_directory, tmp_path, methods, said):
    recipe = write_comparison(tmp_path, tiny_model_directory, methods=methods)
    code, _, err = call(capsys, "compare-methods", recipe, "--workspace", tmp_path / "w")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("seeds", ["", "1,x", "1,1"])
def test_seeds_are_different_numbers(capsys, tiny_model_directory, tmp_path, seeds):
    recipe = write_comparison(tmp_path, tiny_model_directory)
    code, _, err = call(capsys, "compare-methods", recipe, "--workspace", tmp_path / "w", "--seeds", seeds)
    assert code == 2
    assert err.startswith(f"error: --seeds {seeds!r}")


def test_pooled_intervals_are_those_of_prompts_drawn_with_all_their_seeds():
    seeds = [{"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 0.75, "b": 0.25, "c": 0.5}, {"a": 1.0, "b": 0.5, "c": 0.0}]
    by_prompt = np.array([(1.0 + 0.75 + 1.0) / 3, (0.0 + 0.25 + 0.5) / 3, (0.5 + 0.5 + 0.0) / 3])
    draws = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=4000)
    expected = np.quantile(draws @ by_prompt / 3, (0.025, 0.975))
    assert pooled_mean(seeds, resamples=4000) == pytest.approx((4.5 / 9, *expected))
    same = [dict.fromkeys(seed, 0.0) for seed in seeds]
    equal = pooled_at_equal_length(seeds, same, resamples=100)
    assert equal is not None
    assert equal[0] == pytest.approx(0.5)
    alone = pooled_mean(seeds[:1], resamples=4000)
    assert pooled_mean(seeds[:1] * 3, resamples=4000) == pytest.approx(alone), "the same seed thrice tells nothing new"


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert _nats((-0.001, -0.004, 0.004)) == "0.00 [0.00, 0.00]"


def test_a_mean_over_seeds_has_the_t_interval_of_their_means():
    seeds = [{"a": 0.5, "b": 0.7}, {"a": 0.4, "b": 0.6}, {"a": 0.6, "b": 1.0}]
    found = stats.t.interval(0.95, 2, loc=0.6333333, scale=stats.sem([0.6, 0.5, 0.8]))
    assert mean_over_seeds(seeds) == pytest.approx((0.6333333, *found), abs=1e-4)
    assert mean_over_seeds(seeds[:2]) is None
    assert pytest.approx([stats.t.ppf(0.975, df) for df in range(1, 10)], abs=1e-3) == T_975
