"""What a reward model's certificate says: pure functions of rewards that were read on held-out pairs and on probes.

Intervals are 95%: Wilson's for shares of one table, and a bootstrap over prompts (Efron and Tibshirani 1993, ch. 13)
wherever two things are compared, because the pairs of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from postgrad.evals.calibration import brier, ece, fit_temperature, pair_calibration, reliability
from postgrad.feedback.agreement import Grade, raw_agreement
from postgrad.feedback.intervals import Floats, resampled, share_of

MAX_ROWS: Final = 12
"""Of a table by rater or domain: those with most pairs."""
NUM_BINS: Final = 5


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A decided pair that the model never learned from."""

    prompt: str
    """Pairs with the same one are resampled together."""
    margin: float
    """Reward of the preferred answer minus reward of the other."""
    longer_by: int
    """Tokens by which the preferred answer is longer."""
    strength: int = 1
    domain: str = ""
    rater: str = ""
    spread: float = 0.0
    """Standard deviation over an ensemble's heads of the margin."""
    baselines: Mapping[str, float] | None = None
    """Margins by which simple baselines prefer the preferred answer."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One held-out answer before and after one thing about it changed."""

    kind: str
    prompt: str
    before: float
    after: float


def certificate(
    pairs: Sequence[HeldOut],
    probes: Sequence[Probe],
    grades: Iterable[Grade] = (),
    *,
    reward_std: float,
    sample_spread: Sequence[float] = (),
    length: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything but the model's name and hash.

    Args:
        pairs: decided and held out; at least one.
        probes: of the same model.
        grades: of raters on held-out questions, from which the ceiling of agreement is read.
        reward_std: standard deviation of rewards over held-out answers, the unit in which probes are told.
        sample_spread: of an ensemble, its heads' standard deviation on each of the policy's own answers.
        length: what length alone predicts of the reward as the model reads it, and whether it is "residualised".
    """
    found = [_with_length(pair) for pair in pairs]
    agreement = raw_agreement(grades)
    return {
        **pair_calibration([p.margin for p in found], num_bins=NUM_BINS),
        **_calibrated(found),
        "baselines": _baselines(found),
        "by": {
            "margin": _by(found, _quantiles([abs(p.margin) for p in found]), lambda p: abs(p.margin)),
            "length": _by_name(found, _length_class),
            "strength": _by_name(found, lambda p: _STRENGTHS[p.strength]),
            "domain": _by_name(found, lambda p: p.domain),
            "rater": _by_name(found, lambda p: p.rater),
        },
        "probes": _probes(probes, reward_std),
        "reward_std": reward_std,
        "length": length,
        "disagreement": _disagreement(found, sample_spread),
        "rater_agreement": None if agreement is None else asdict(agreement),
    }


def _with_length(pair: HeldOut) -> HeldOut:
    """The longer and the shorter answer are baselines of every certificate."""
    known = {"longer": float(pair.longer_by), "shorter": float(-pair.longer_by)}
    return replace(pair, baselines={**known, **(pair.baselines or {})})


def _right(margins: Iterable[float]) -> Floats:
    return (np.sign(np.array(list(margins), dtype=np.float64)) + 1) / 2


def _clustered(pairs: Sequence[HeldOut], columns: Sequence[Floats]) -> Floats:
    """[prompts, columns]: sums over each prompt's pairs."""
    index = {name: i for i, name in enumerate(dict.fromkeys(p.prompt for p in pairs))}
    sums = np.zeros((len(index), len(columns)))
    np.add.at(sums, [index[p.prompt] for p in pairs], np.stack(columns, axis=1))
    return sums


def _mean(pairs: Sequence[HeldOut], values: Floats) -> dict[str, Any]:
    found = resampled(_clustered(pairs, [values, np.ones(len(pairs))]), lambda t: t[:, 0] / t[:, 1], seed=0)
    assert found is not None
    return asdict(found)


def _baselines(pairs: Sequence[HeldOut]) -> list[dict[str, Any]]:
    """Accuracy of each simple baseline, and by how much the model's is higher on the same pairs; the best first."""
    right = _right(p.margin for p in pairs)
    rows = []
    for name in pairs[0].baselines or {}:
        its = _right((p.baselines or {})[name] for p in pairs)
        rows.append({"name": name, "accuracy": _mean(pairs, its), "gain": _mean(pairs, right - its)})
    return sorted(rows, key=lambda row: -row["accuracy"]["value"])


def _calibrated(pairs: Sequence[HeldOut]) -> dict[str, Any]:
    """After a temperature that each half of the prompts took from the other half, so that nothing checks itself."""
    names = {name: i % 2 for i, name in enumerate(sorted({p.prompt for p in pairs}))}
    margins = np.array([p.margin for p in pairs])
    half = np.array([names[p.prompt] for p in pairs])
    if len(set(half.tolist())) < 2:
        return {"ece_calibrated": None, "brier_calibrated": None, "calibration_calibrated": []}
    scaled = np.zeros_like(margins)
    for part in (0, 1):
        other = margins[half != part]
        scaled[half == part] = margins[half == part] / fit_temperature(other, np.ones_like(other))
    confidence, right = 1 / (1 + np.exp(-np.abs(scaled))), _right(scaled)
    return {
        "ece_calibrated": ece(confidence, right, num_bins=NUM_BINS, binning="mass"),
        "brier_calibrated": brier(confidence, right),
        "calibration_calibrated": reliability(confidence, right, num_bins=NUM_BINS, binning="mass"),
    }


def _quantiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, np.linspace(0, 1, NUM_BINS + 1))]


def _by(pairs: Sequence[HeldOut], edges: Sequence[float], key: Callable[[HeldOut], float]) -> list[dict[str, Any]]:
    """Accuracy in bins of a number, smallest first."""
    index = np.searchsorted(edges[1:-1], [key(p) for p in pairs], side="right")
    rows = []
    for b in range(len(edges) - 1):
        members = [p for p, i in zip(pairs, index, strict=True) if i == b]
        if members:
            rows.append(_row(f"{edges[b]:.2f} to {edges[b + 1]:.2f}", members))
    return rows


def _by_name(pairs: Sequence[HeldOut], key: Callable[[HeldOut], str]) -> list[dict[str, Any]]:
    """Accuracy by a name, those with most pairs first; pairs without one are in no row."""
    groups: dict[str, list[HeldOut]] = {}
    for pair in pairs:
        if name := key(pair):
            groups.setdefault(name, []).append(pair)
    rows = [_row(name, members) for name, members in groups.items()]
    return sorted(rows, key=lambda row: -row["num"])[:MAX_ROWS]


def _row(name: str, members: Sequence[HeldOut]) -> dict[str, Any]:
    found = share_of(float(_right(p.margin for p in members).sum()), len(members))
    assert found is not None
    return {"name": name, **asdict(found)}


_STRENGTHS: Final = {1: "slightly or not graded", 2: "clearly better", 3: "much better"}
_NEAR: Final = 5


def _length_class(pair: HeldOut) -> str:
    if abs(pair.longer_by) <= _NEAR:
        return f"within {_NEAR} tokens"
    return "the longer one is better" if pair.longer_by > 0 else "the shorter one is better"


def _probes(probes: Sequence[Probe], reward_std: float) -> list[dict[str, Any]]:
    """What one change does to the reward, in its standard deviations, and how often it raises it."""
    rows = []
    for kind in dict.fromkeys(p.kind for p in probes):
        mine = [p for p in probes if p.kind == kind]
        moved = np.array([p.after - p.before for p in mine])
        gain = resampled(np.stack([moved / max(reward_std, 1e-9), np.ones(len(mine))], axis=1), _ratio, seed=0)
        raised = share_of(float((moved > 0).sum()), len(mine))
        assert gain is not None
        assert raised is not None
        rows.append({"kind": kind, "gain": asdict(gain), "raised": asdict(raised)})
    return rows


def _ratio(totals: Floats) -> Floats:
    ratio: Floats = totals[:, 0] / totals[:, 1]
    return ratio


def _disagreement(pairs: Sequence[HeldOut], sample_spread: Sequence[float]) -> dict[str, Any] | None:
    """Whether the heads' disagreement tells where the model errs: accuracy where they agree more, and less, than usual.

    None for a single head.
    """
    spread = np.array([p.spread for p in pairs])
    if not spread.any():
        return None
    middle = float(np.median(spread))
    calm = [p for p in pairs if p.spread <= middle]
    torn = [p for p in pairs if p.spread > middle]
    return {
        "held_out": float(spread.mean()),
        "samples": float(np.mean(sample_spread)) if len(sample_spread) else None,
        "num_samples": len(sample_spread),
        "accuracy_low_spread": _row("heads agree", calm),
        "accuracy_high_spread": _row("heads differ", torn) if torn else None,
    }
