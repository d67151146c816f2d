"""May this candidate replace the incumbent? Pass, fail or investigate; missing evidence never passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from postgrad.config.round import GateConfig

Verdict = Literal["pass", "fail", "investigate"]


@dataclass(frozen=True, slots=True)
class Guard:
    """A limit that no improvement buys off; `value` is None where the evidence is missing."""

    name: str
    value: float | None
    limit: float
    explanation: str

    @property
    def ok(self) -> bool:
        return self.value is not None and self.value <= self.limit


def decide(
    arena: Mapping[str, Any],
    rl_summary: Mapping[str, Any],
    limits: GateConfig,
    *,
    candidate: str,
    incumbent: str,
    evidence: Mapping[str, str],
) -> dict[str, Any]:
    """The gate's record, ready for JSON.

    Pass: the 95% interval of the win rate over the incumbent lies above 0.5 and every guard holds. Fail: a guard
    trips, or the interval lies below 0.5. Investigate: anything else, missing values included.

    Args:
        arena: what `arena_summary` returned.
        rl_summary: the RL stage's summary, with `kl_last` in nats per answer.
        limits: of the guards.
        candidate: the arena's name of the new policy.
        incumbent: the arena's name of the released one.
        evidence: name of each file that the decision rests on -> its SHA-256.
    """
    improvement = _improvement(arena, candidate, incumbent)
    guards = _guards(arena, rl_summary, limits, candidate, incumbent)
    verdict, reasons = _judge(improvement, guards, candidate, incumbent)
    return {
        "verdict": verdict,
        "candidate": candidate,
        "incumbent": incumbent,
        "improvement": improvement,
        "guards": [{**asdict(guard), "ok": guard.ok} for guard in guards],
        "reasons": reasons,
        "evidence": dict(evidence),
        "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _judge(
    improvement: Mapping[str, float | None], guards: list[Guard], candidate: str, incumbent: str
) -> tuple[Verdict, list[str]]:
    low, high = improvement["low"], improvement["high"]
    tripped = [f"{g.name} is {g.value:.3g}, beyond {g.limit:.3g}" for g in guards if g.value is not None and not g.ok]
    missing = [f"{g.name} is missing" for g in guards if g.value is None]
    if low is None or high is None:
        return ("fail" if tripped else "investigate"), [
            *tripped,
            f"{candidate} was not judged against {incumbent}",
            *missing,
        ]
    interval = f"[{low:.1%}, {high:.1%}]"
    if high < 0.5:
        return "fail", [f"{candidate} loses to {incumbent}: its win rate lies in {interval}", *tripped, *missing]
    if tripped:
        return "fail", [*tripped, *missing]
    if low <= 0.5:
        reason = f"the win rate of {candidate} over {incumbent} lies in {interval}, which includes 50%"
        return "investigate", [f"{reason}: collect more judgements, or train further", *missing]
    if missing:
        return "investigate", missing
    return "pass", [f"{candidate} beats {incumbent}: its win rate lies in {interval}, and every guard holds"]


def _improvement(arena: Mapping[str, Any], candidate: str, incumbent: str) -> dict[str, float | None]:
    for pair in arena.get("pairs", ()):
        if (pair["a"], pair["b"]) == (candidate, incumbent):
            return {key: _number(pair[key]) for key in ("win_rate", "low", "high")}
        if (pair["a"], pair["b"]) == (incumbent, candidate):
            rate, low, high = (_number(pair[key]) for key in ("win_rate", "low", "high"))
            turned = {"win_rate": rate, "low": high, "high": low}
            return {key: None if value is None else 1 - value for key, value in turned.items()}
    return {"win_rate": None, "low": None, "high": None}


def _guards(
    arena: Mapping[str, Any], rl_summary: Mapping[str, Any], limits: GateConfig, candidate: str, incumbent: str
) -> list[Guard]:
    players = arena.get("players", {})
    new, old = players.get(candidate, {}), players.get(incumbent, {})
    length, before = _number(new.get("mean_tokens")), _number(old.get("mean_tokens"))
    repetition = arena.get("measures", {}).get(candidate, {}).get("repeated_trigrams", {}).get("mean")
    return [
        Guard(
            "length_ratio",
            length / before if length is not None and before else None,
            limits.max_length_ratio,
            "mean answer length over the incumbent's; longer answers win votes without being better",
        ),
        Guard(
            "repetition",
            _number(repetition),
            limits.max_repetition,
            "mean share of repeated word trigrams in an answer",
        ),
        Guard(
            "kl",
            _number(rl_summary.get("kl_last")),
            limits.max_kl,
            "nats per answer from the reference policy at the last step",
        ),
        Guard(
            "truncated_frac",
            _number(new.get("truncated_frac")),
            limits.max_truncated_frac,
            "share of answers cut at the token limit",
        ),
    ]


def _number(value: Any) -> float | None:
    """A finite number, else None: a NaN is missing evidence."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
