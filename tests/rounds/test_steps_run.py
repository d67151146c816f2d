"""Method "steps": solutions with a verdict on each step in, two certified reward models out."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_round import call

from postgrad.config.load import load_recipe
from postgrad.config.sections import BarConfig
from postgrad.config.steps import StepRewardRecipe
from postgrad.errors import ConfigError
from postgrad.graders.step_reward import StepRewardGrader, reward_grader
from postgrad.methods.step_reward import scored
from postgrad.models.placement import place
from postgrad.rounds.manifest import Manifest
from postgrad.rounds.steps import run_steps
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn

RECIPE = """
method = "steps"
name = "tiny-steps"
batch_tokens = 1024

[model]
name = {model}

[data]
source = "steps.jsonl"
validation_share = 0.3
max_tokens = 100

[reward]
epochs = 12
prompts_per_step = 8
learning_rate = 3e-3
bar = {{ max_probe_gain = 1e9, max_calibration_error = 1.0 }}
"""


def rows() -> list[dict[str, Any]]:
    """A step that shouts is bad; each prompt has a solution without one and a solution with one."""
    dice = random.Random(1)
    found = []
    for i in range(40):
        steps = [f"so {dice.randrange(10)}" for _ in range(3)]
        worse = list(steps)
        worse[i % 3] = "NO!!"
        for given in (steps, worse):
            found.append({"prompt": f"Solve {i}.", "completions": given, "labels": [s != "NO!!" for s in given]})
    return [*found, {"prompt": "Long", "completions": ["x" * 120], "labels": [True]},
            {"prompt": "Empty", "completions": ["so", " "], "labels": [True, True]}]  # fmt: skip


def write(folder: Path, model: Path, given: list[dict[str, Any]]) -> Path:
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (folder / "tiny.toml").write_text(RECIPE.format(model=json.dumps(str(model))))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path) -> Manifest:
    folder = tmp_path_factory.mktemp("steps")
    recipe = load_recipe(write(folder, tiny_model_directory, rows()))
    assert isinstance(recipe, StepRewardRecipe)
    return run_steps(
        recipe, workspace=folder / "w", initial=tiny_model_directory, folder=folder,
        bar=lambda *_: lambda *_: None, announce=lambda _: None,
    )  # fmt: skip


def summary(done: Manifest, stage: str) -> dict[str, Any]:
    found = done.find(stage)
    assert found is not None
    return found.summary


def test_solutions_are_counted_and_what_does_not_fit_is_too(done: Manifest) -> None:
    found = summary(done, "steps")
    assert found["train_solutions"] + found["validation_solutions"] == 80
    assert (found["right"], found["good_steps"], found["bad_steps"]) == (40, 200, 40)
    assert (found["left_out_too_long"], found["left_out_empty_step"]) == (1, 1)


def test_both_tell_right_from_wrong_on_tasks_that_they_never_saw(done: Manifest) -> None:
    process, outcome = summary(done, "process"), summary(done, "outcome")
    assert process["verdict_accuracy"] > 0.9
    assert process["accuracy"] > 0.9
    assert outcome["accuracy"] > 0.5
    assert process["num_pairs"] == outcome["num_pairs"] == summary(done, "steps")["validation_solutions"] / 2
    gain = process["accuracy"] - outcome["accuracy"]
    assert outcome["process_gain"] == pytest.approx(gain, abs=1e-9)
    assert outcome["process_gain_low"] <= gain <= outcome["process_gain_high"]


def test_the_grader_points_at_the_bad_step(done: Manifest, tiny_model_directory: Path) -> None:
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    grader = reward_grader(
        done.stage_directory("process") / "model", BarConfig(max_calibration_error=1), renderer, place("cpu", "auto"),
        name="steps", weight=2.0,
    )  # fmt: skip
    assert isinstance(grader, StepRewardGrader)
    prompt = renderer.render_prompt(Conversation((Message("user", "Solve 99."),)))
    answers = [renderer.render_answer(text) for text in ("so 1\nso 2\nso 3", "so 1\nNO!!\n\nso 3")]
    assert [grader.step_ends(ids) for ids in answers] == [[4, 9, 14], [4, 10, 15]]
    trajectories = tuple(
        Trajectory(str(i), (Turn(prompt, Completion(ids, (0.0,) * len(ids), "stop", 0, "")),), "completed")
        for i, ids in enumerate(answers)
    )
    right, wrong = asyncio.run(grader.grade(Group(Example("e", Conversation(())), trajectories)))
    assert right.value is not None
    assert wrong.value is not None
    assert right.value > 0.7 > 0.3 > wrong.value
    assert right.weight == 2.0
    first, second, _ = map(float, wrong.explanation.split())
    assert second < 0.3 < 0.7 < first


def test_places_are_the_last_tokens_of_steps_and_neutral_ones_weigh_nothing(tiny_model_directory: Path) -> None:
    from postgrad.feedback.steps import Solution

    renderer = Renderer(load_tokenizer(tiny_model_directory))
    solution = Solution("p", Conversation((Message("user", "?"),)), ("ab", "c", "d"), ("good", "neutral"))
    row = scored(solution, renderer, supervision="process", separator="\n", neutral="ignore")
    answer = row.ids[row.prompt_length :]
    assert bytes(answer[:-1]) == b"ab\nc\nd"
    assert [place - row.prompt_length for place in row.places] == [2, 4]
    assert (row.good, row.weight) == ((1.0, 0.0), (1.0, 0.0))
    good = scored(solution, renderer, supervision="process", separator="\n", neutral="good")
    assert (good.good, good.weight) == ((1.0, 1.0), (1.0, 1.0))
    whole = scored(solution, renderer, supervision="outcome", separator="\n", neutral="ignore")
    assert (whole.places, whole.good, whole.ids) == ((len(row.ids) - 1,), (1.0,), row.ids)


def test_solutions_of_one_kind_and_broken_rows_are_refused(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [row for row in rows() if all(row["labels"])]
    path = write(tmp_path, tiny_model_directory, good)
    code, _, err = call(capsys, "run", path, "--workspace", tmp_path / "w")
    assert code == 2
    assert "the train part needs solutions with a bad step and solutions without one" in err
    path = write(tmp_path, tiny_model_directory, [{"prompt": "p", "completions": ["a", "b"], "labels": [True]}])
    code, _, err = call(capsys, "run", path, "--workspace", tmp_path / "w")
    assert code == 2
    assert "line 1: 2 'completions' and 1 'labels'" in err


@pytest.mark.parametrize("key", ["residualise_length = true", "num_heads = 2", "label_smoothing = 0.1"])
def test_what_only_pairs_have_is_refused(tmp_path: Path, tiny_model_directory: Path, key: str) -> None:
    path = tmp_path / "steps.toml"
    path.write_text(RECIPE.format(model=json.dumps(str(tiny_model_directory))).replace("epochs = 12", key))
    with pytest.raises(ConfigError, match=f"remove .*{key.split()[0]}|{key.split()[0]}.*; remove"):
        load_recipe(path)
