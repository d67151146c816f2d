"""The certificate's statistics against truths that are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from postgrad.evals.reward_health import HeldOut, Probe, certificate
from postgrad.evals.reward_probes import PROBES
from postgrad.feedback.agreement import Grade


def pairs(num: int, *, scale: float, seed: int = 0) -> list[HeldOut]:
    """Labels come true with chance sigmoid(m); the model says `scale` times m."""
    dice = random.Random(seed)
    found = []
    for i in range(num):
        m = dice.gauss(0, 1.5)
        sign = 1 if dice.random() < 1 / (1 + np.exp(-m)) else -1
        found.append(
            HeldOut(
                f"p{i // 2}", sign * m * scale, dice.choice([-9, 0, 9]), baselines={"coin": dice.choice([-1.0, 1.0])}
            )
        )
    return found


def test_a_fitted_temperature_mends_what_is_only_too_loud() -> None:
    found = certificate(pairs(4000, scale=3.0), [], reward_std=1.0)
    assert found["temperature"] == pytest.approx(3.0, rel=0.12)
    assert found["ece"] > 0.1
    assert found["ece_calibrated"] < 0.03
    assert found["brier_calibrated"] < found["brier"] - 0.02


def test_a_temperature_is_never_checked_on_what_it_was_fitted_to() -> None:
    """One half of the prompts is always right, the other always wrong: each half's temperature misleads the other."""
    found = certificate([HeldOut(f"{i:03d}", 1.0 if i % 2 else -1.0, 0) for i in range(200)], [], reward_std=1.0)
    assert found["temperature"] > 5
    assert found["brier_calibrated"] == pytest.approx((1 + 0.25) / 2, abs=0.01)
    assert certificate(pairs(9, scale=1)[:1], [], reward_std=1.0)["ece_calibrated"] is None


def test_baselines_are_compared_on_the_same_pairs() -> None:
    every = [HeldOut(f"p{i}", 1.0 if i % 4 else -1.0, 5 if i % 2 else -5, baselines={"coin": 0.0}) for i in range(80)]
    longer, shorter, coin = (
        next(row for row in certificate(every, [], reward_std=1.0)["baselines"] if row["name"] == name)
        for name in ("longer", "shorter", "coin")
    )
    assert [row["accuracy"]["value"] for row in (longer, shorter, coin)] == [0.5, 0.5, 0.5]
    assert longer["gain"]["value"] == pytest.approx(0.25)
    assert coin["gain"]["low"] < 0.25 < coin["gain"]["high"]
    # The longer answer is right wherever the model is, and nowhere else but in a quarter: a pair's noise cancels.
    assert longer["gain"]["high"] - longer["gain"]["low"] < shorter["gain"]["high"] - shorter["gain"]["low"]


def test_copies_of_a_prompt_narrow_no_interval() -> None:
    once = pairs(60, scale=1)
    many = [pair for pair in once for _ in range(9)]
    first, second = (certificate(x, [], reward_std=1.0)["baselines"][0]["gain"] for x in (once, many))
    assert (second["low"], second["high"], second["num"]) == (first["low"], first["high"], 30)


def test_slices_by_margin_length_strength_domain_and_rater() -> None:
    found = certificate(
        [
            HeldOut("a", 2.0, 9, strength=3, domain="x", rater="ada"),
            HeldOut("b", -0.1, -9, strength=1, domain="x", rater="bob"),
            HeldOut("c", 1.0, 2, strength=1, domain="y"),
        ],
        [],
        reward_std=1.0,
    )["by"]
    named = {kind: {row["name"]: (row["value"], row["num"]) for row in rows} for kind, rows in found.items()}
    assert named["length"] == {
        "the longer one is better": (1, 1), "the shorter one is better": (0, 1), "within 5 tokens": (1, 1),
    }  # fmt: skip
    assert named["domain"] == {"x": (0.5, 2), "y": (1, 1)}
    assert named["rater"] == {"ada": (1, 1), "bob": (0, 1)}
    assert named["strength"] == {"slightly or not graded": (0.5, 2), "much better": (1, 1)}
    assert [row["value"] for row in found["margin"]] == [0, 1, 1]


def test_probes_are_told_in_deviations_with_their_interval() -> None:
    probes = [Probe("length", str(i), 1.0, 1.0 + 0.5 * (i % 4)) for i in range(40)]
    probes += [Probe("position", str(i), 1.0, 1.0) for i in range(40)]
    length, position = certificate(pairs(20, scale=1), probes, reward_std=0.5)["probes"]
    assert (length["kind"], length["gain"]["value"]) == ("length", pytest.approx(1.5))
    assert 1.1 < length["gain"]["low"] < 1.5 < length["gain"]["high"] < 1.9
    assert length["raised"]["value"] == 0.75
    assert (position["gain"]["value"], position["gain"]["low"], position["raised"]["value"]) == (0, 0, 0)


def test_disagreement_tells_where_the_model_errs() -> None:
    certain = [HeldOut(f"a{i}", 1.0, 0, spread=0.1) for i in range(50)]
    torn = [HeldOut(f"b{i}", 1.0 if i % 2 else -1.0, 0, spread=0.9) for i in range(50)]
    found = certificate(certain + torn, [], reward_std=1.0, sample_spread=[0.2, 0.4])["disagreement"]
    assert (found["accuracy_low_spread"]["value"], found["accuracy_high_spread"]["value"]) == (1, 0.5)
    assert (found["held_out"], found["samples"]) == (pytest.approx(0.5), pytest.approx(0.3))
    assert certificate(pairs(9, scale=1), [], reward_std=1.0)["disagreement"] is None


def test_the_ceiling_is_how_far_raters_agree() -> None:
    grades = [Grade(f"q{i}", rater, 1 if rater == "a" or i % 4 else -1) for i in range(40) for rater in "ab"]
    found = certificate(pairs(9, scale=1), [], grades, reward_std=1.0)
    assert found["rater_agreement"]["value"] == pytest.approx(0.75)
    assert certificate(pairs(9, scale=1), [], grades[:1], reward_std=1.0)["rater_agreement"] is None


def test_every_probe_changes_one_thing() -> None:
    answer = "Rome was old. It fell."
    changed = {kind: change(answer) for kind, change in PROBES.items()}
    assert changed["length"].startswith(answer)
    assert changed["format"].replace("## Answer", "").replace("- ", "").split() == answer.split()
    assert changed["format"].count("\n- ") == 2
    assert changed["sycophancy"].endswith(answer)
    assert changed["repetition"] == f"{answer} {answer}"
