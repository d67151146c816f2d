"""Method "rl" from a recipe: a Python reward function, examinations before and after, and the same end when cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_round import call

from postgrad.config.questions import QuestionsConfig
from postgrad.errors import ConfigError, DataError
from postgrad.methods import rl
from postgrad.rounds.context import SPLITS
from postgrad.rounds.manifest import find_round, list_rounds
from postgrad.rounds.questions import read_questions
from postgrad.run import RunDirectory, sha256_file

RECIPE = """
method = "rl"
name = "tiny"
seed = 3
batch_tokens = 2048

[model]
name = {model}
lora_rank = {lora_rank}

[data]
{data}

[[graders]]
function = "rewards.py:low"

[[graders]]
function = "form"
weight = 0

[rl]
algorithm = "grpo"
steps = 6
prompts_per_step = 4
group_size = 6
epochs = 1
minibatches = 2
learning_rate = 3e-3
max_tokens = 6
kl_coef = 0.0
kl_stop = 1e6
missing_end_penalty = 0.0

[eval]
every = 4
"""
REWARDS = """
def low(prompt, answer, target, metadata):
    return sum(c < "@" for c in answer) / 3
"""
SOURCE = 'source = "rows.jsonl"\nsystem = "Be brief."\nheldout_share = 0.3'
TASKS = """
[[data.tasks]]
name = "gcd"
config = { min_value = 2, max_value = 30 }
num_train = 20
num_heldout = 9
shots = 1

[[data.tasks]]
name = "letter_counting"
num_train = 20
num_heldout = 5
weight = 0.5
"""


@pytest.fixture
def recipe(tmp_path, tiny_model_directory):
    def write(*, data=SOURCE, lora_rank=0):
        rows = [{"id": f"r{i}", "prompt": f"What is {i} + {i}?", "target": str(2 * i)} for i in range(40)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "rewards.py").write_text(REWARDS)
        path = tmp_path / "tiny.toml"
        path.write_text(RECIPE.format(model=json.dumps(str(tiny_model_directory)), data=data, lora_rank=lora_rank))
        return path

    return write


def outcome(workspace):
    """Everything that does not depend on the clock."""
    manifest = find_round(workspace, "latest")
    directory = manifest.stage_directory("rl")
    return {
        "hashes": {
            name: digest
            for stage in manifest.record.stages
            for name, digest in stage.outputs.items()
            if not name.endswith("metrics.jsonl")
        },
        "metrics": [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in RunDirectory(directory).read_metrics()
        ],
        "summaries": [stage.summary for stage in manifest.record.stages],
    }


def test_a_python_reward_function_trains_and_the_examinations_show_it(capsys, recipe, tmp_path):
    code, out, err = call(capsys, "run", recipe(), "--workspace", tmp_path / "w", "--set", "rl.steps=12")
    assert (code, err) == (0, ""), err
    manifest = find_round(tmp_path / "w", "latest")
    assert (manifest.record.method, manifest.record.status) == ("rl", "done")
    questions, learned = manifest.record.stages
    assert questions.summary["train"] + questions.summary["heldout"] == 40
    directory = manifest.stage_directory("rl")
    points = json.loads((directory / "curve.json").read_text())["points"]
    assert [(p["step"], p["mode"]) for p in points] == [(s, m) for s in (0, 4, 8, 12) for m in ("greedy", "sampled")]
    assert all(p["questions"] == questions.summary["heldout"] for p in points)
    sampled = [p["score_rewards.py:low"] for p in points if p["mode"] == "sampled"]
    assert sampled[-1] > sampled[0] + 0.1
    assert {"score_form", "accuracy", "low", "high"} <= points[0].keys()
    rows = RunDirectory(directory).read_metrics()
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.1
    assert learned.summary["sampled_after"] == points[-1]["accuracy"]
    assert learned.summary["sampled_change"] == pytest.approx(points[-1]["accuracy"] - points[1]["accuracy"])
    # A grader without weight is measured, never rewarded.
    scores = [score for row in RunDirectory(directory).read_trajectories(1) for score in row["scores"]]
    assert {score["grader"] for score in scores} == {"rewards.py:low"}
    assert learned.inputs["grader rewards.py:low"] == sha256_file(tmp_path / "rewards.py")
    assert "sampled change" in out
    assert "12/12  reward/mean" in out, "the run is watched"
    page = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip()).read_text()
    assert "sampled_change" in page.lower().replace(" ", "_")
    assert page.count('class="card sample"') == 8
    assert f"chat {directory / 'policy'}" in out.replace("\n", "")


def test_the_dapo_recipe_clips_higher_samples_anew_and_punishes_length(capsys, tiny_model_directory, tmp_path):
    small = {
        "model": f'{{name="{tiny_model_directory}", lora_rank=4}}',
        "data.tasks": '[{name="chain_sum", num_train=40, num_heldout=6, shots=1}]',
        "rl.steps": 2, "rl.prompts_per_step": 2, "rl.group_size": 3, "eval.every": 2,
    }  # fmt: skip
    overrides = [argument for key, value in small.items() for argument in ("--set", f"{key}={value}")]
    code, _, err = call(capsys, "run", "dapo", "--workspace", tmp_path / "w", *overrides)
    assert (code, err) == (0, ""), err
    directory = find_round(tmp_path / "w", "latest").stage_directory("rl")
    algorithm = json.loads((directory / "config.json").read_text())
    chosen = {"reduction": "token", "clip_eps": 0.2, "clip_eps_high": 0.28, "overlong_share": 0.2, "kl_coef": 0.0}
    assert chosen.items() <= algorithm.items()
    # No answer of an untrained model is right, so every attempt is used up.
    assert [row["rollout/attempts"] for row in RunDirectory(directory).read_metrics()] == [3, 3]


def test_a_run_that_its_kl_stops_has_examined_the_policy_it_kept(capsys, recipe, tmp_path):
    overrides = ("--set", "rl.steps=2", "--set", "rl.kl_stop=1e-9", "--set", "rl.learning_rate=1e-2")
    code, out, err = call(capsys, "run", recipe(), "--workspace", tmp_path / "w", *overrides)
    assert (code, err) == (0, ""), err
    learned = find_round(tmp_path / "w", "latest").record.stages[-1]
    *updated, last = RunDirectory(find_round(tmp_path / "w", "latest").stage_directory("rl")).read_metrics()
    assert learned.summary["stopped"].startswith("step 2: KL ")
    assert learned.summary["steps"] == len(updated) == 1
    assert last["optim/updates_frac"] == 0
    assert "2/2  reward/mean" in out, "the last row is watched too"


def test_a_run_that_was_cut_off_ends_where_an_uninterrupted_one_does(capsys, recipe, tmp_path, monkeypatch):
    path = recipe(data=TASKS, lora_rank=2)
    assert call(capsys, "run", path, "--workspace", tmp_path / "whole")[0] == 0
    real = rl._update
    for stop in (2, 5):  # before the first checkpoint, and between the last examination and the end
        updates = []

        def cut(*args, updates=updates, stop=stop, **kwargs):
            updates.append(1)
            if len(updates) > stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(rl, "_update", cut)
            assert call(capsys, "run", path, "--workspace", tmp_path / f"cut{stop}")[0] == 130
        assert find_round(tmp_path / f"cut{stop}", "latest").record.status == "running"
        assert call(capsys, "run", path, "--workspace", tmp_path / f"cut{stop}")[0] == 0
        assert len(list_rounds(tmp_path / f"cut{stop}")) == 1
        assert outcome(tmp_path / f"cut{stop}") == outcome(tmp_path / "whole")


def test_examining_does_not_change_what_is_learned(capsys, recipe, tmp_path):
    path = recipe()
    for every in (1, 50):
        assert call(capsys, "run", path, "--workspace", tmp_path / f"w{every}", "--set", f"eval.every={every}")[0] == 0
    often, seldom = outcome(tmp_path / "w1"), outcome(tmp_path / "w50")
    assert often["metrics"] == seldom["metrics"]
    assert often["summaries"] == seldom["summaries"]


def test_parts_share_no_question_even_in_other_letters(tmp_path):
    texts = [f"What is {i}?" for i in range(60)]
    rows = [{"prompt": p, "target": "1"} for t in texts for p in (t, t.upper(), f"  {t} ")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = QuestionsConfig(source="rows.jsonl", heldout_share=0.3)
    (task,) = read_questions(cfg, tmp_path / "rows.jsonl", seed=0)
    seen = [{e.prompt.messages[-1].content.casefold().strip() for e in part} for part in (task.train, task.heldout)]
    assert len(task.train) + len(task.heldout) == 180
    assert not seen[0] & seen[1]
    with pytest.raises(DataError, match="'heldout' part"):
        read_questions(cfg.model_copy(update={"heldout_share": 1e-9}), tmp_path / "rows.jsonl", seed=0)


def test_a_row_that_names_its_split_keeps_it(tmp_path):
    rows = [{"id": f"{split}-{i}", "prompt": f"{split} {i}?", "split": split} for i in range(9) for split in SPLITS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = QuestionsConfig(source="rows.jsonl", heldout_share=0.9)
    (task,) = read_questions(cfg, tmp_path / "rows.jsonl", seed=0)
    assert {e.metadata["split"] for e in task.heldout} == {"heldout"}
    assert {e.metadata["split"] for e in task.train} == {"sft", "rm", "rl"}
    assert (len(task.heldout), len(task.train)) == (9, 27)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('data.source=""', "either 'data.tasks' or 'data.source'"),
        ("graders=[]", "'graders'"),
        ('graders=[{function="form",weight=0}]', "the first grader needs a function and a weight"),
        ('graders=[{function="form"},{function="form"}]', "named once"),
        ('graders=[{function="gone.py:f"}]', "cannot be read"),
        ("rl.max_tokens=100000", "do not fit into"),
        ("eval.every=0", "eval.every"),
        ("data.tasks=3", "data.tasks"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_before_anything_is_made(capsys, recipe, tmp_path, override, problem):
    code, _, err = call(capsys, "run", recipe(), "--workspace", tmp_path / "w", "--set", override)
    assert code == 2
    assert problem in err
    assert err.count("\n") == 1
    assert list_rounds(tmp_path / "w") == []


def test_reasoning_gym_cannot_grade_questions_of_a_file(capsys, recipe, tmp_path):
    override = 'graders=[{function="reasoning-gym"}]'
    code, _, err = call(capsys, "run", recipe(), "--workspace", tmp_path / "w", "--set", override)
    assert code == 2
    assert "needs 'data.tasks'" in err
    assert ConfigError.__name__ not in err
