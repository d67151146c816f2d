import copy
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from postgrad.config.round import GateConfig
from postgrad.gates.promote import decide

LIMITS = GateConfig(max_length_ratio=1.5, max_repetition=0.2, max_truncated_frac=0.5, max_kl=20.0)
ARENA: dict[str, Any] = {
    "players": {
        "initial": {"mean_tokens": 20.0, "truncated_frac": 0.4},
        "rl": {"mean_tokens": 25.0, "truncated_frac": 0.1},
    },
    "pairs": [{"a": "rl", "b": "initial", "win_rate": 0.62, "low": 0.55, "high": 0.69}],
    "measures": {"rl": {"repeated_trigrams": {"mean": 0.05, "low": 0.02, "high": 0.08}}},
}
RL = {"kl_last": 8.0}


def gate(arena: dict[str, Any] = ARENA, rl: dict[str, Any] = RL) -> dict[str, Any]:
    return decide(arena, rl, LIMITS, candidate="rl", incumbent="initial", evidence={"arena": "ab" * 32})


def changed(path: str, value: Any) -> dict[str, Any]:
    arena = copy.deepcopy(ARENA)
    *parents, last = path.split(".")
    table: Any = arena
    for key in parents:
        table = table[int(key)] if isinstance(table, list) else table[key]
    table[last] = value
    return arena


def interval(low: float | None, high: float | None) -> dict[str, Any]:
    arena = copy.deepcopy(ARENA)
    arena["pairs"][0] |= {"low": low, "high": high}
    return arena


def test_an_improvement_that_excludes_a_half_with_every_guard_holding_passes() -> None:
    got = gate()
    assert got["verdict"] == "pass"
    assert got["improvement"] == {"win_rate": 0.62, "low": 0.55, "high": 0.69}
    assert [(g["name"], g["value"], g["limit"], g["ok"]) for g in got["guards"]] == [
        ("length_ratio", 1.25, 1.5, True),
        ("repetition", 0.05, 0.2, True),
        ("kl", 8.0, 20.0, True),
        ("truncated_frac", 0.1, 0.5, True),
    ]
    assert got["reasons"] == ["rl beats initial: its win rate lies in [55.0%, 69.0%], and every guard holds"]
    assert (got["candidate"], got["incumbent"], got["evidence"]) == ("rl", "initial", {"arena": "ab" * 32})
    assert datetime.fromisoformat(got["decided_at"]).tzinfo == UTC
    assert json.loads(json.dumps(got, allow_nan=False)) == got


@pytest.mark.parametrize(
    ("arena", "rl", "reason"),
    [
        (changed("players.rl.mean_tokens", 31.0), RL, "length_ratio is 1.55, beyond 1.5"),
        (changed("measures.rl.repeated_trigrams.mean", 0.3), RL, "repetition is 0.3, beyond 0.2"),
        (ARENA, {"kl_last": 21.0}, "kl is 21, beyond 20"),
        (changed("players.rl.truncated_frac", 0.6), RL, "truncated_frac is 0.6, beyond 0.5"),
    ],
)
def test_one_guard_beyond_its_limit_fails_a_candidate_that_wins(
    arena: dict[str, Any], rl: dict[str, Any], reason: str
) -> None:
    got = gate(arena, rl)
    assert (got["verdict"], got["reasons"]) == ("fail", [reason])
    assert [g["ok"] for g in got["guards"]].count(False) == 1


def test_a_guard_at_its_limit_holds() -> None:
    assert gate(changed("players.rl.mean_tokens", 30.0))["verdict"] == "pass"


def test_a_candidate_that_loses_fails() -> None:
    got = gate(interval(0.3, 0.45))
    assert got["verdict"] == "fail"
    assert got["reasons"] == ["rl loses to initial: its win rate lies in [30.0%, 45.0%]"]


@pytest.mark.parametrize(("low", "high"), [(0.45, 0.6), (0.5, 0.6), (0.4, 0.5)])
def test_an_interval_that_includes_a_half_is_investigated(low: float, high: float) -> None:
    got = gate(interval(low, high))
    assert got["verdict"] == "investigate"
    assert "includes 50%: collect more judgements" in got["reasons"][0]


@pytest.mark.parametrize("gone", [None, math.nan])
def test_missing_evidence_never_passes(gone: float | None) -> None:
    got = gate(rl={"kl_last": gone})
    assert (got["verdict"], got["reasons"]) == ("investigate", ["kl is missing"])
    assert next(g for g in got["guards"] if g["name"] == "kl")["ok"] is False
    assert gate(interval(gone, gone))["reasons"] == ["rl was not judged against initial"]
    assert gate({}, {})["verdict"] == "investigate"


def test_a_guard_beyond_its_limit_fails_even_where_other_evidence_is_missing() -> None:
    got = gate(interval(None, None), {"kl_last": 30.0})
    assert (got["verdict"], got["reasons"][0]) == ("fail", "kl is 30, beyond 20")


def test_a_pair_listed_the_other_way_round_is_turned() -> None:
    arena = copy.deepcopy(ARENA)
    arena["pairs"] = [{"a": "initial", "b": "rl", "win_rate": 0.4, "low": 0.3, "high": 0.45}]
    assert gate(arena)["improvement"] == pytest.approx({"win_rate": 0.6, "low": 0.55, "high": 0.7})
