"""`postgrad compare-methods`: every method, every seed, one table; resumed, refused, and pooled by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tiny_compare import write_comparison
from tiny_round import call, fork

from postgrad.evals.pooling import pooled_at_equal_length, pooled_mean
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
        assert f"<td>{name}</td>" in (tmp_path / "t.html").read_text()
    assert "16 labelled prompts, 1 times, 4 a step, with 3 answers to each" in text
    made = {m.record.seed: m.record.model_dump() for m in list_rounds(workspace)}
    assert sorted(made) == [1, 2]
    for name in ("dpo", "kto", "grpo", "distill", "edits-sft", "best"):
        assert find_round(workspace, "1").find(name).policy_version == 4, name
    assert find_round(workspace, "1").find("dpo").summary["prompts"] <= 16, "only the labels of its own seed"
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert "1/14" not in out
    assert {m.record.seed: m.record.model_dump() for m in list_rounds(workspace)} == made


def test_a_comparison_that_was_killed_ends_where_an_uninterrupted_one_does(tiny_model_directory, tmp_path):
    recipe = write_comparison(tmp_path, tiny_model_directory, methods=TWO)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ("compare-methods", recipe, "--seeds", "3", "--workspace")
    assert fork(tmp_path / "a", *command, whole).wait() == 0
    killed = fork(tmp_path / "b", *command, cut)
    while "grpo" not in killed.out:
        assert killed.process.is_alive(), killed.err
        time.sleep(0.01)
    killed.process.kill()
    killed.wait()
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
