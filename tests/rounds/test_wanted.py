"""What simulated people want, as the recipe says it, wherever they are asked."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_round import call, make_rows, write_recipe

from postgrad.config.round import ArenaConfig, LabelsConfig, RatersConfig
from postgrad.feedback.editors import SimulatedEditor
from postgrad.feedback.raters import SimulatedRater
from postgrad.feedback.utility import GOLD, Utility
from postgrad.rounds.contest import judge
from postgrad.rounds.context import draw_pool, wanted, worth
from postgrad.rounds.manifest import find_round
from postgrad.types import Completion, Conversation, Example, Group, Message, Preference, Trajectory, Turn

SAID = "Yes."


def test_raters_that_want_something_else_have_other_names() -> None:
    usual, same, other = (
        [rater.id for rater in draw_pool(3, "train", cfg, seed=0)]
        for cfg in (RatersConfig(), LabelsConfig(num_prompts=4), RatersConfig(reference_weight=5.0))
    )
    assert usual == same
    assert not set(usual) & set(other)
    assert wanted(RatersConfig()) == GOLD


def test_a_round_weighs_the_reference_as_its_recipe_says(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, seen = SimulatedRater.compare, {"train": set(), "arena": set()}

    def watched(self: SimulatedRater, comparison: str, utilities: tuple[float, float], *a: Any, **k: Any) -> Preference:
        seen[self.id.split("-")[0]].update(utilities)
        return compare(self, comparison, utilities, *a, **k)

    monkeypatch.setattr(SimulatedRater, "compare", watched)
    rows = [row | {"reference": SAID, "constraints": []} for row in make_rows()]
    recipe = write_recipe(tmp_path, tiny_model_directory, rows=rows)
    recipe.write_text(recipe.read_text() + "\n[exam]\nevery = 4\nnum_prompts = 8\nstop = false\n")
    overrides = ("--set", "labels.reference_weight=5.0", "--set", "sft.epochs=6")
    code, _, err = call(capsys, "run", recipe, "--workspace", tmp_path / "w", *overrides)
    assert (code, err) == (0, "")
    manifest = find_round(tmp_path / "w", "latest")

    def value(text: str, finish_reason: str, weight: float) -> float:
        example = Example("x", Conversation((Message("user", "?"),)), target=SAID)
        return worth(example, text, finish_reason, Utility(reference=weight))

    said = value(SAID, "stop", 5.0)
    assert said in seen["train"]
    assert said in seen["arena"]
    answers = [
        (answer, row["utility"][player])
        for row in map(json.loads, (manifest.stage_directory("arena") / "answers.jsonl").read_text().splitlines())
        for player, answer in row["answers"].items()
    ]
    assert all(value(a["text"], a["finish_reason"], 5.0) == pytest.approx(u, abs=1e-4) for a, u in answers)
    assert sum(value(a["text"], a["finish_reason"], 1.0) < u - 3 for a, u in answers) > 5
    examined = (manifest.stage_directory("rl") / "exam/step-0000.jsonl").read_text().splitlines()
    golds = [(row["answers"][0], row["gold"][0]) for row in map(json.loads, examined)]
    assert any(text == SAID for text, _ in golds)
    assert {gold for text, gold in golds if text == SAID} == {said}


def test_an_editor_cuts_what_it_does_not_want() -> None:
    text = "I like this question very much indeed and so do many others. Rome."
    kept = {
        weight: SimulatedEditor("e", 0.0).edit(
            "s",
            text,
            finish_reason="stop",
            prompt="?",
            reference="Rome",
            constraints=(),
            weights=Utility(reference=weight),
        )
        for weight in (0.0, 5.0)
    }
    assert "Rome" not in kept[0.0]
    assert "Rome" in kept[5.0]


def test_an_arena_of_methods_asks_raters_that_want_the_same(tmp_path: Path) -> None:
    example = Example("x", Conversation((Message("user", "?"),)), target=SAID)

    def group(text: str) -> list[Group]:
        completion = Completion((1, 2), (0.0, 0.0), "stop", 0, text)
        return [Group(example, (Trajectory("t", (Turn((0,), completion),), "completed"),))]

    found = judge(
        SimpleNamespace(directory=tmp_path), {"initial": group("No."), "sft": group(SAID)},
        {"initial": [{}], "sft": [{}]}, ArenaConfig(num_prompts=1, resamples=10),
        RatersConfig(reference_weight=5.0), seed=0,
    )  # fmt: skip
    assert found["sft_utility"] - found["initial_utility"] == pytest.approx(5.0)
