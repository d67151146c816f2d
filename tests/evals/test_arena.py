import json
import math
from dataclasses import replace

import numpy as np
import pytest

from postgrad.evals.arena import Answer, Judgement, arena_summary, average, bradley_terry, clustered_mean, outcome
from postgrad.types import Preference

PLAYERS = ("initial", "sft", "rl")


def battles(a: str, b: str, wins: int, num: int) -> list[Judgement]:
    return [Judgement(f"{a}{b}{i}", a, b, float(i < wins)) for i in range(num)]


TRIANGLE = battles("A", "B", 7, 10) + battles("B", "C", 6, 10) + battles("A", "C", 8, 10)


def multinomial(num: int, resamples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=resamples)


def summary(judgements: list[Judgement], answers: list[Answer], *, resamples: int = 400) -> dict:
    return arena_summary(
        judgements, answers, players=PLAYERS, unrewarded=("reference_f1",), resamples=resamples, seed=0
    )


def judged(num: int = 60, seed: int = 1) -> list[Judgement]:
    """The newer the player, the likelier it wins: rl > sft > initial."""
    dice = np.random.default_rng(seed)
    chances = {("sft", "initial"): 0.6, ("rl", "sft"): 0.6, ("rl", "initial"): 0.7}
    return [
        Judgement(f"p{i}", a, b, float(dice.random() < chance))
        for i in range(num)
        for (a, b), chance in chances.items()
    ]


def answered(num: int = 60, seed: int = 2) -> list[Answer]:
    dice = np.random.default_rng(seed)
    return [
        Answer(
            f"p{i}",
            player,
            num_tokens=20 + 5 * k,
            truncated=i % (k + 2) == 0,
            measures={"reference_f1": dice.random() + 0.5 * k, "constraints_met": 1.0 if i % 2 else None, "gone": None},
        )
        for i in range(num)
        for k, player in enumerate(PLAYERS)
    ]


def test_bradley_terry_gives_the_published_ratings() -> None:
    ratings = bradley_terry(TRIANGLE, anchor="A")
    centre = math.fsum(ratings.values()) / 3
    assert {p: r - centre + 1000 for p, r in ratings.items()} == pytest.approx(
        {"A": 1128.650, "B": 974.098, "C": 897.252}, abs=2e-3
    )
    assert ratings["A"] == 1000


def test_two_players_differ_by_the_log_odds_of_their_win_rate() -> None:
    ratings = bradley_terry(battles("x", "y", 9, 12), anchor="y")
    assert ratings == pytest.approx({"y": 1000, "x": 1000 + 400 * math.log10(3)})


def test_ratings_do_not_move_with_names_order_or_the_side_a_player_is_named_on() -> None:
    renamed = {"A": "zeta", "B": "alpha", "C": "mid"}
    turned = [Judgement(j.prompt_id, renamed[j.b], renamed[j.a], 1 - j.score) for j in reversed(TRIANGLE)]
    before, after = bradley_terry(TRIANGLE, anchor="B"), bradley_terry(turned, anchor="alpha")
    assert {renamed[p]: r for p, r in before.items()} == pytest.approx(after, abs=1e-6)


def test_a_tie_counts_as_half_a_win_for_each() -> None:
    ties = [Judgement(f"t{i}", "x", "y", 0.5) for i in range(4)]
    split = battles("x", "y", 2, 4)
    assert bradley_terry([*ties, *battles("x", "y", 3, 4)], anchor="y") == pytest.approx(
        bradley_terry([*split, *battles("x", "y", 3, 4)], anchor="y")
    )


def test_a_player_that_never_lost_has_a_finite_rating() -> None:
    ratings = bradley_terry(battles("x", "y", 10, 10), anchor="y", prior_draws=1.0)
    assert ratings["x"] == pytest.approx(1000 + 400 * math.log10(10.5 / 0.5))


def test_judgements_are_averaged_over_raters_and_display_orders() -> None:
    given = [Judgement("p", "x", "y", 1.0), Judgement("p", "y", "x", 0.5), Judgement("p", "x", "y", 0.0)]
    assert average([*given, Judgement("q", "y", "x", 1.0)]) == [
        Judgement("p", "x", "y", 0.5),
        Judgement("q", "y", "x", 1.0),
    ]


def test_a_preference_scores_answer_zero_against_answer_one() -> None:
    tiers = (((0,), (1,)), ((1,), (0,)), ((0, 1),))
    assert [outcome(Preference("c", "r", t)) for t in tiers] == [1.0, 0.0, 0.5]


def test_the_summary_counts_wins_ties_and_losses_by_prompt() -> None:
    scores = [1.0, 0.75, 0.5, 0.25, 0.0, 1.0]
    given = [Judgement(f"p{i}", "rl", "initial", s) for i, s in enumerate(scores)]
    given += [Judgement(f"p{i}", a, b, 0.5) for i in range(6) for a, b in (("rl", "sft"), ("initial", "sft"))]
    pairs = {(p["a"], p["b"]): p for p in summary(given, answered(6))["pairs"]}
    assert list(pairs) == [("sft", "initial"), ("rl", "sft"), ("rl", "initial")]
    row = pairs["rl", "initial"]
    assert (row["wins"], row["ties"], row["losses"], row["num_prompts"]) == (3, 1, 2, 6)
    assert row["win_rate"] == pytest.approx(3.5 / 6)
    assert row["low"] < 3.5 / 6 < row["high"]
    assert pairs["sft", "initial"] | {"a": 0, "b": 0} == {
        "a": 0,
        "b": 0,
        "wins": 0,
        "ties": 6,
        "losses": 0,
        "win_rate": 0.5,
        "low": 0.5,
        "high": 0.5,
        "num_prompts": 6,
        **dict.fromkeys(("equal_length_win_rate", "equal_length_low", "equal_length_high"), 0.5),
    }


def test_a_player_that_wins_by_length_alone_wins_less_at_equal_length() -> None:
    longer = [bool(i % 4) for i in range(40)]
    given = [Judgement(f"p{i}", "rl", "initial", float(longer[i])) for i in range(40)]
    given += [Judgement(f"p{i}", a, "sft", 0.5) for i in range(40) for a in ("rl", "initial")]
    answers = [Answer(f"p{i}", p, 30 if p == "rl" and longer[i] else 20, False, {}) for i in range(40) for p in PLAYERS]
    answers = [replace(a, num_tokens=12) if a.player == "rl" and a.num_tokens == 20 else a for a in answers]
    (row,) = (p for p in summary(given, answers)["pairs"] if (p["a"], p["b"]) == ("rl", "initial"))
    assert row["win_rate"] == pytest.approx(0.75)
    assert row["equal_length_low"] < row["equal_length_win_rate"] < 0.6


def test_the_summary_anchors_the_first_player_and_orders_the_rest() -> None:
    got = summary(judged(), answered())
    players = got["players"]
    assert (players["initial"]["elo"], players["initial"]["elo_low"], players["initial"]["elo_high"]) == (1000,) * 3
    assert players["rl"]["elo"] > players["sft"]["elo"] > 1000
    assert players["rl"]["elo_low"] < players["rl"]["elo"] < players["rl"]["elo_high"]
    assert [players[p]["mean_tokens"] for p in PLAYERS] == [20, 25, 30]
    assert [players[p]["truncated_frac"] for p in PLAYERS] == pytest.approx([1 / 2, 1 / 3, 1 / 4])
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_measures_have_means_and_paired_deltas_and_none_where_nothing_was_measured() -> None:
    got = summary(judged(), answered())
    assert got["unrewarded"] == ["reference_f1"]
    assert got["measures"]["sft"]["constraints_met"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert got["measures"]["sft"]["gone"] == {"mean": None, "low": None, "high": None}
    delta = next(d for d in got["deltas"] if (d["measure"], d["a"], d["b"]) == ("reference_f1", "rl", "initial"))
    means = [got["measures"][p]["reference_f1"]["mean"] for p in ("rl", "initial")]
    assert delta["delta"] == pytest.approx(means[0] - means[1])
    assert 0.7 < delta["low"] < delta["delta"] < delta["high"] < 1.3


def test_pairing_makes_the_delta_surer_than_the_means() -> None:
    dice = np.random.default_rng(4)
    level, draws = dice.normal(0, 1, 80), multinomial(80, 400)
    better = level + 0.1 + dice.normal(0, 0.05, 80)
    _, low, high = clustered_mean(better - level, draws) or (0, 0, 0)
    _, low_mean, high_mean = clustered_mean(better, draws) or (0, 0, 0)
    assert 0 < low < 0.1 < high
    assert (high - low) < 0.2 * (high_mean - low_mean)


def test_the_same_seed_gives_the_same_summary_and_renaming_players_moves_nothing() -> None:
    given, answers = judged(), answered()
    assert summary(given, answers) == summary(list(reversed(given)), list(reversed(answers)))
    new = {"initial": "zz", "sft": "aa", "rl": "mm"}
    renamed = arena_summary(
        [Judgement(j.prompt_id, new[j.a], new[j.b], j.score) for j in given],
        [Answer(a.prompt_id, new[a.player], a.num_tokens, a.truncated, a.measures) for a in answers],
        players=[new[p] for p in PLAYERS],
        unrewarded=(),
        resamples=400,
        seed=0,
    )
    for player, row in summary(given, answers)["players"].items():
        assert renamed["players"][new[player]] == pytest.approx(row, abs=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says_although_prompts_share_their_luck() -> None:
    dice = np.random.default_rng(7)
    num_prompts, num_datasets, raters = 60, 300, 8
    draws = multinomial(num_prompts, 500)
    covered = naive = 0
    for _ in range(num_datasets):
        chances = dice.beta(0.6 * 1.5, 0.4 * 1.5, num_prompts)  # mean 0.6, wide apart between prompts
        votes = dice.random((num_prompts, raters)) < chances[:, None]
        _, low, high = clustered_mean(votes.mean(axis=1), draws) or (0, 0, 0)
        covered += low <= 0.6 <= high
        half = 1.96 * votes.std() / math.sqrt(votes.size)
        naive += abs(votes.mean() - 0.6) <= half
    assert 0.90 <= covered / num_datasets <= 0.98
    assert naive / num_datasets < 0.75
