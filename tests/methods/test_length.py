from dataclasses import replace

import pytest
from tiny_rl import CFG, reinforce, without_times

from postgrad.config.load import load_recipe
from postgrad.errors import ConfigError
from postgrad.methods.grpo import GRPO
from postgrad.methods.length import GAIN, LARGEST_MISS, LengthControl
from postgrad.recipes import recipe_path
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn


class Verbosity:
    """A reward model that has learned one thing: the longer, the better."""

    name = "verbosity"

    async def grade(self, group):
        return [Score(self.name, len(t.turns[-1].completion.token_ids) / 4) for t in group.trajectories]


def lengths(run):
    return [row["rollout/completion_tokens"] for row in run.read_metrics()]


def trained(directory, path, **changes):
    cfg = CFG.model_copy(
        update={
            "steps": 40,
            "prompts_per_step": 8,
            "group_size": 8,
            "epochs": 1,
            "max_tokens": 16,
            "learning_rate": 1e-2,
            **changes,
        }
    )
    return reinforce(directory, path, GRPO(kl_coef=0.0, missing_end_penalty=0.0), cfg=cfg, graders=[Verbosity()])[1]


def test_a_policy_that_is_paid_for_length_is_held_in_its_band(tiny_model_directory, tmp_path):
    free = lengths(trained(tiny_model_directory, tmp_path / "free"))
    held = lengths(trained(tiny_model_directory, tmp_path / "held", length_band=(5.0, 8.0)))
    assert free[-1] > 13
    assert 5 <= sum(held[-8:]) / 8 <= 9


def test_the_reward_that_is_shown_is_the_graders_alone_and_the_samples_show_both(tiny_model_directory, tmp_path):
    run = trained(tiny_model_directory, tmp_path, steps=4, length_band=(2.0, 3.0))
    rows = run.read_metrics()
    assert [row["reward/mean"] for row in rows] == pytest.approx([n / 4 for n in lengths(run)])
    assert rows[0]["reward/length_coef"] == 0
    assert rows[-1]["reward/length_coef"] > 0.5
    for t in run.read_trajectories(4):
        tokens = len(t["turns"][-1]["token_ids"])
        by_name = {score["grader"]: score["value"] for score in t["scores"]}
        assert by_name["verbosity"] == tokens / 4
        assert by_name["length_control"] == pytest.approx(
            -rows[-1]["reward/length_coef"] * max(2 - tokens, tokens - 3, 0) / 2.5
        )


def test_a_resumed_run_goes_on_with_the_same_strength(tiny_model_directory, tmp_path):
    whole = trained(tiny_model_directory, tmp_path / "whole", steps=6, length_band=(2.0, 3.0))
    trained(tiny_model_directory, tmp_path / "cut", steps=5, length_band=(2.0, 3.0))
    cut = trained(tiny_model_directory, tmp_path / "cut", steps=6, length_band=(2.0, 3.0))
    assert without_times(cut) == without_times(whole)


def test_the_strength_follows_the_miss():
    control = LengthControl(10, 20, coef=0.3)
    used = {"reward/length_coef": 0.3}
    for tokens, miss in ((10, 0), (15, 0), (20, 0), (23, 0.2), (7, 0.2), (1000, LARGEST_MISS), (1, LARGEST_MISS)):
        after = control.after(used | {"rollout/completion_tokens": tokens})
        assert after == replace(control, coef=pytest.approx(0.3 + GAIN * miss)), tokens
    assert control.after(used) == control


def test_an_answer_without_an_opinion_gets_none_from_its_length():
    def answered(name, *scores):
        completion = Completion((1, 2, 3), (0.0,) * 3, "abc", "stop", 0)
        return Trajectory(name, (Turn((5,), completion),), "completed", scores=scores)

    group = Group(
        Example("p", Conversation((Message("user", "?"),))),
        (answered("a", Score("g", 1.0)), answered("b", Score("g", None))),
    )
    (changed,) = LengthControl(1, 2, coef=3.0).apply([group])
    first, second = changed.trajectories
    assert first.reward == pytest.approx(1.0 - 3.0 * 1 / 1.5)
    assert second.reward is None


@pytest.mark.parametrize("band", ["[20, 10]", "[10, 41]", "[0, 5]", "[5]"])
def test_a_band_that_is_none_is_refused(band):
    with pytest.raises(ConfigError, match=r"rl\.length_band"):
        load_recipe(recipe_path("quickstart"), (f"rl.length_band={band}",))
