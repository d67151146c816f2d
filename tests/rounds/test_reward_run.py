"""Method "reward" from the command line: pairs in, a reward model with its certificate out."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import playing
from tiny_round import call

from postgrad.config.sections import BarConfig, RewardConfig
from postgrad.graders.step_reward import reward_grader
from postgrad.methods.reward import Ranked, Verdict, score
from postgrad.methods.sft import Progress
from postgrad.models.load import load_policy, load_reward_model
from postgrad.models.placement import place
from postgrad.ops.packing import pad
from postgrad.rounds.manifest import Manifest, find_round
from postgrad.rounds.reward import fit_reward_model
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Completion, Conversation, Example, Group, Message, Trajectory, Turn

RECIPE = """
method = "reward"
name = "tiny-reward"
batch_tokens = 1024

[model]
name = {model}

[data]
odd = {{ unreadable = "drop" }}
system = "Be brief."
validation_share = 0.3
max_tokens = 120

[[data.sources]]
format = "pairs"
path = "pairs.jsonl"

[reward]
epochs = 12
prompts_per_step = 8
learning_rate = 3e-3
num_heads = 2
soft_labels = [0.8, 0.9, 0.97]
rater_weights = "competence"
"""


def rows() -> list[dict[str, Any]]:
    """The better answer shouts; some rows are odd."""
    good = [
        {
            "prompt": f"Say {i}.", "chosen": f"YES {i}!!", "rejected": f"no {i} no", "rater": "abc"[i % 3],
            "domain": "even" if i % 2 == 0 else "odd",
        }
        for i in range(60)
    ]  # fmt: skip
    second = [{**row, "rater": "cab"[i % 3]} for i, row in enumerate(good[:20])]
    odd = [
        {"prompt": "Equal.", "chosen": "same", "rejected": "same"},
        {"prompt": "Empty.", "chosen": "something", "rejected": ""},
        {"prompt": "Long.", "chosen": "x" * 200, "rejected": "y"},
        {"prompt": "Half a row.", "chosen": "x"},
    ]
    return [*good, *second, *odd]


def write(folder: Path, model: Path, **changes: str) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    text = RECIPE.format(model=json.dumps(str(model)))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model_directory: Path) -> tuple[Path, Manifest]:
    from postgrad.config.load import load_recipe
    from postgrad.config.reward import RewardRecipe
    from postgrad.rounds.reward import run_reward

    folder = tmp_path_factory.mktemp("reward")
    recipe = load_recipe(write(folder, tiny_model_directory))
    assert isinstance(recipe, RewardRecipe)
    manifest = run_reward(
        recipe, workspace=folder / "w", initial=tiny_model_directory, folder=folder,
        bar=lambda *_: lambda *_: None, announce=lambda _: None,
    )  # fmt: skip
    return folder, manifest


def test_what_was_read_and_what_was_odd_is_in_the_manifest(done: tuple[Path, Manifest]) -> None:
    found = done[1].find("pairs")
    assert found is not None
    assert found.summary["sources"] == [{"source": "pairs.jsonl", "pairs": 83, "left_out": 0, "weight": 1.0}]
    counts = {row["problem"]: (row["count"], row["treatment"], row["dropped"]) for row in found.summary["odd"]}
    assert (
        counts["unreadable"] == counts["equal_sides"] == counts["empty_answer"] == counts["too_long"] == (1, "drop", 1)
    )
    assert counts["prompts_differ"][0] == counts["contradictory"][0] == 0
    assert found.summary["train_labels"] + found.summary["validation_labels"] == 80
    assert found.summary["train_prompts"] + found.summary["validation_prompts"] == 60


def test_the_same_command_has_nothing_left_to_do(
    done: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, manifest = done
    before = manifest.record.model_dump()
    code, out, err = call(capsys, "report", manifest.record.id, "--workspace", folder / "w")
    assert (code, err) == (0, "")
    assert Manifest.load(manifest.directory).record.model_dump() == before
    assert "tiny-reward" in Path(out.strip()).read_text(encoding="utf-8")


def test_what_length_predicts_is_taken_from_the_reward_that_is_examined_and_optimised(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path, tiny_model_directory, **{"epochs = 12": "epochs = 4\nresidualise_length = true", "num_heads = 2": ""}
    )
    code, _, err = call(capsys, "run", path, "--workspace", tmp_path / "even")
    assert code == 2
    assert "fewer than two held-out prompts have answers that came to an end and differ in length" in err
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for i, row in enumerate(pairs[:-1]):
        row["chosen"] += "!" * (i % 7)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert call(capsys, "run", path, "--workspace", tmp_path / "w")[0] == 0
    manifest = find_round(tmp_path / "w", "latest")
    found = json.loads((manifest.stage_directory("certificate") / "certificate.json").read_text())
    assert found["length"]["residualised"]
    stage, slope = manifest.find("certificate"), found["length"]["slope"]
    assert stage is not None
    assert [stage.summary[f"length_slope{end}"] for end in ("", "_low", "_high")] == [
        slope[end] for end in ("value", "low", "high")
    ]
    assert stage.summary["residualised"]
    report = Path(call(capsys, "report", "--workspace", tmp_path / "w")[1].strip())
    assert "That is taken from the reward" in report.read_text()
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    bar = BarConfig(min_accuracy=0, max_probe_gain=1e9, max_calibration_error=1)
    model = manifest.stage_directory("reward") / "model"
    grader = reward_grader(model, bar, renderer, place("cpu", "auto"), name="r", weight=1.0)
    example = Example("e", Conversation((Message("user", "?"),)))
    prompt, answer = renderer.render_prompt(example.prompt), renderer.render_answer("YES 3!!")
    turn = Turn(prompt, Completion(answer, (0.0,) * len(answer), "stop", 0, ""))
    (score,) = asyncio.run(grader.grade(Group(example, (Trajectory("e", (turn,), "completed"),))))
    raw = float(load_reward_model(model).sequence_rewards(*pad([(*prompt, *answer)])).detach())
    assert score.value == pytest.approx(raw - slope["value"] * (len(answer) - found["length"]["centre"]), abs=1e-5)
    assert score.explanation.endswith(f"for {len(answer)} tokens")


def test_odd_pairs_stop_where_the_recipe_says_so(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, tiny_model_directory)
    run = ("run", path, "--workspace", tmp_path / "w", "--set")
    code, _, err = call(capsys, *run, "data.odd.unreadable=stop")
    assert code == 2
    assert "mend or remove 1 of 84 rows" in err
    code, _, err = call(capsys, *run, "data.odd.equal_sides=stop")
    assert code == 2
    assert "1 of 82 pairs: both answers are the same (pairs.jsonl line 81)" in err
    code, _, err = call(capsys, *run, "data.odd.too_long=stop")
    assert code == 2
    assert "more than `data.max_tokens` tokens" in err
    code, _, err = call(capsys, *run, "data.max_tokens=20")
    assert code == 2
    assert "the train part has no pair that is no tie" in err
    assert not list((tmp_path / "w" / "rounds").glob("*"))
    code, _, err = call(capsys, *run, "reward.margin_per_grade=1.0")
    assert code == 2
    assert "strengths become either soft labels or margins" in err


def test_the_certificate_is_of_the_model_beside_it(done: tuple[Path, Manifest]) -> None:
    from postgrad.errors import DataError
    from postgrad.graders.certificate import certified_reward_model

    manifest = done[1]
    stage, model = manifest.find("certificate"), manifest.stage_directory("reward") / "model"
    assert stage is not None
    found = json.loads((manifest.stage_directory("certificate") / "certificate.json").read_text())
    assert found == json.loads((model / "certificate.json").read_text())
    assert list(stage.outputs) == ["stages/certificate/certificate.json"]
    assert stage.summary["accuracy"] == found["accuracy"] > 0.9
    assert {row["name"] for row in found["baselines"]} == {
        "longer", "shorter", "log-probability", "log-probability a token",
    }  # fmt: skip
    assert {row["kind"] for row in found["probes"]} == {"position", "length", "format", "sycophancy", "repetition"}
    position = next(row for row in found["probes"] if row["kind"] == "position")
    assert abs(position["gain"]["value"]) < 1e-3
    assert {row["name"] for row in found["by"]["domain"]} == {"even", "odd"}
    assert {row["name"] for row in found["by"]["rater"]} == {"a", "b", "c"}
    assert found["rater_agreement"]["value"] == 1.0
    assert found["disagreement"]["num_samples"] > 0
    certified_reward_model(model, BarConfig(max_probe_gain=1e9, max_calibration_error=1))
    with pytest.raises(DataError, match="may not be optimised"):
        certified_reward_model(model, BarConfig(max_probe_gain=1e9, min_gain=1))


RL = """
method = "rl"
name = "tiny-rl"
batch_tokens = 1024

[model]
name = {model}

[data]
source = "questions.jsonl"

[[graders]]
function = "form"
weight = 0.1

[[graders]]
reward_model = {reward_model}
weight = 2.0
bar = {{ max_probe_gain = 1e9, max_calibration_error = 1.0 }}

[rl]
algorithm = "grpo"
steps = 1
prompts_per_step = 2
group_size = 2
epochs = 1
minibatches = 1
max_tokens = 4
kl_stop = 1e6

[eval]
every = 1
"""


def test_a_policy_is_optimised_against_it_only_if_it_passes_that_recipes_bar(
    done: tuple[Path, Manifest], tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, manifest = done
    model = manifest.stage_directory("reward") / "model"
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {i}.", "target": "YES"}) + "\n" for i in range(12))
    )
    path = folder / "rl.toml"
    text = RL.format(model=json.dumps(str(tiny_model_directory)), reward_model=json.dumps(str(model)))
    path.write_text(text.replace("max_probe_gain = 1e9", "min_gain = 1.0"))
    code, _, err = call(capsys, "run", path, "--workspace", folder / "rl")
    assert code == 2
    assert "may not be optimised: its accuracy is +" in err
    path.write_text(text)
    assert call(capsys, "run", path, "--workspace", folder / "rl")[0] == 0
    (sheet,) = (folder / "rl").glob("rounds/*/stages/rl/heldout/step-0001-sampled.jsonl")
    row = json.loads(sheet.read_text().splitlines()[0])
    assert set(row["scores"]) == {"form", str(model)}
    path.write_text(text.replace('function = "form"', f"reward_model = {json.dumps(str(model))}", 1))
    code, _, err = call(capsys, "run", path, "--workspace", folder / "rl")
    assert code == 2
    assert "the first grader needs a function and a weight" in err


def test_a_judge_behind_an_endpoint_grades_a_policys_answers(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {i}.", "target": "YES"}) + "\n" for i in range(12))
    )
    (tmp_path / "rubric.txt").write_text("Prefer rhymes.")
    text = RL.format(model=json.dumps(str(tiny_model_directory)), reward_model='"x"')
    with playing(lambda a, b, times: "I like it.\nVerdict: A") as endpoint:
        judge = f'judge = {{ endpoint = "{endpoint.url}", model = "m", rubric = "rubric.txt" }}'
        path = tmp_path / "rl.toml"
        path.write_text(text.replace('reward_model = "x"', judge).replace("bar = { max", "# bar = { max"))
        assert call(capsys, "run", path, "--workspace", tmp_path / "w")[0] == 0
    assert all("Prefer rhymes." in body["messages"][0]["content"] for body in endpoint.bodies)
    (sheet,) = (tmp_path / "w").glob("rounds/*/stages/rl/heldout/step-0001-sampled.jsonl")
    scores = [json.loads(line)["scores"] for line in sheet.read_text().splitlines()]
    assert {score["judge m"] for score in scores} == {0.5}  # who likes what comes first likes nobody


def test_the_scale_of_many_prompts_is_read_on_some(
    tmp_path: Path, tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postgrad.rounds.reward.NUM_SCALE", 4)
    model = load_policy(tiny_model_directory, heads=("reward",))
    ranked = [Ranked(1, ((1, 2, 3 + i), (1, 2)), (Verdict(0, 1),)) for i in range(10)]
    totals: dict[str, int] = {}

    def bar(title: str, *_: Any) -> Progress:
        return lambda done, total: totals.update({title: total})

    run = RunDirectory(tmp_path, 0)
    fit_reward_model(model, ranked, RewardConfig(epochs=1), run, 256, bar)
    assert totals["reading its scale"] == 4
    read = random.Random(run.seed(0, "scale")).sample(ranked, 4)
    rewards = torch.tensor(score(model, read, lambda done, total: None)).flatten()
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-4)
    assert float(rewards.std()) == pytest.approx(1, abs=1e-4)
