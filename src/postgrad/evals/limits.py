"""Does a model know its limits? What it says to requests beyond them, and to look-alikes that it can answer.

The prompts are written so that every claim to have done what is asked, or to know it, is false.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from postgrad.errors import DataError
from postgrad.evals.stance import Stance
from postgrad.feedback.intervals import Estimate, resampled, share_of

FIELDS: Final = ("id", "capability", "beyond", "within")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts that look alike."""

    id: str
    capability: str
    beyond: str
    """What a model that only writes text cannot do or know."""
    within: str
    """What it can answer."""


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from JSON lines.

    Raises:
        DataError: names every row that is none.
    """
    pairs, bad = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            pairs.append(Pair(*(row[field] for field in FIELDS)))
        except (ValueError, KeyError, TypeError):
            bad.append(number)
            continue
        if not all(isinstance(row[field], str) and row[field].strip() for field in FIELDS):
            bad.append(number)
    if bad:
        raise DataError(f"{path}: line {', '.join(map(str, bad[:10]))}: each row needs {', '.join(FIELDS)}, as text")
    if not pairs or len({pair.id for pair in pairs}) < len(pairs):
        raise DataError(f"{path}: no row, or one 'id' twice; give every pair its own")
    return pairs


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares with 95% Wilson intervals, of all rows and by capability.

    Args:
        rows: of one model; `id`, `capability`, `side` ("beyond" or "within"), `stance`, `finish_reason`.
    """
    return {
        **_shares(rows),
        "capabilities": {
            name: _shares([row for row in rows if row["capability"] == name])
            for name in dict.fromkeys(row["capability"] for row in rows)
        },
    }


def _shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    beyond, within = ([row for row in rows if row["side"] == side] for side in ("beyond", "within"))
    return {
        "false_claims": _share(beyond, "claims"),
        "admitted": _share(beyond, "admits"),
        "over_refusal": _share(within, "admits"),
        "cut_off": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
    }


def _share(rows: Sequence[Mapping[str, Any]], wanted: Stance) -> dict[str, Any]:
    found = share_of(sum(row["stance"] == wanted for row in rows), len(rows))
    assert found is not None
    return asdict(found)


def compare(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """After minus before on the same prompts, and false claims after over before, by a bootstrap over capabilities.

    What is asked of one capability stands or falls together, so capabilities are drawn, with all their prompts. A ratio
    does not exist where there were no false claims before, and has no upper bound (None) where more than one draw in
    forty holds none.
    """
    assert [(r["id"], r["side"]) for r in before] == [(r["id"], r["side"]) for r in after], "the same prompts, in order"
    names = list(dict.fromkeys(row["capability"] for row in before))

    def totals(side: str, wanted: Stance) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[num_capabilities, 3]: how many before, how many after, of how many."""
        sums = np.zeros((len(names), 3))
        for first, second in zip(before, after, strict=True):
            if first["side"] == side:
                sums[names.index(first["capability"])] += first["stance"] == wanted, second["stance"] == wanted, 1
        return sums

    def difference(side: str, wanted: Stance) -> dict[str, Any] | None:
        return _as_dict(resampled(totals(side, wanted), lambda s: (s[:, 1] - s[:, 0]) / s[:, 2], seed=0))

    ratio = _as_dict(resampled(totals("beyond", "claims"), lambda s: s[:, 1] / s[:, 0], seed=0))
    if ratio and not np.isfinite(ratio["high"]):
        ratio["high"] = None
    return {
        "false_claims": difference("beyond", "claims"),
        "admitted": difference("beyond", "admits"),
        "over_refusal": difference("within", "admits"),
        "false_claims_ratio": ratio,
    }


def _as_dict(found: Estimate | None) -> dict[str, Any] | None:
    return asdict(found) if found else None
