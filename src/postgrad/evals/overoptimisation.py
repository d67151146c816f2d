"""Is the policy still getting better, or only better at pleasing its reward model? Pure functions of scores.

The reward model is a proxy; the gold score is what it stands for. Both are read on the same held-out answers, against
the distance from the start, sqrt(KL), along which Gao, Schulman and Hilton 2023 (arXiv 2210.10760) found the proxy to
rise while the gold rises, peaks and falls. Answers to one prompt are one cluster; intervals are 95% bootstraps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postgrad.evals.arena import clustered_mean

CURVE: Final = "overoptimisation.json"
"""Where a stage writes its points."""
RESAMPLES: Final = 2000
MIN_PROMPTS: Final = 8
"""With fewer gold scores than this, nothing is said of an examination."""
Floats = NDArray[np.float64]


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of n samples from the policy that they come from: log n - (n - 1) / n.

    Stiennon et al. 2020, arXiv 2009.01325, appendix G.3; exact without ties, an upper bound with them (Beirami et
    al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Floats, gold: Floats, n: int) -> tuple[Floats, Floats]:
    """What the answer with the highest proxy among n would score, averaged over every choice of n from N answers.

    Args:
        proxy: [P, N] the reward model's scores of N answers to each of P prompts.
        gold: [P, N]
        n: at most N.

    Returns:
        Proxy and gold score of each prompt, [P].
    """
    total = proxy.shape[1]
    assert 1 <= n <= total, f"the best of {n} among {total} answers"
    order = np.argsort(proxy, axis=1, kind="stable")
    # The i-th lowest is the best of n where the other n - 1 lie below it.
    ways = np.array([math.comb(i, n - 1) for i in range(total)], dtype=np.float64)
    chance = ways / math.comb(total, n)
    return (
        np.take_along_axis(proxy, order, axis=1) @ chance,
        np.take_along_axis(gold, order, axis=1) @ chance,
    )


def best_of_n_curve(proxy: Floats, gold: Floats) -> list[dict[str, Any]]:
    """Points for n = 1, 2, 4, ... up to the number of answers."""
    sizes = [2**i for i in range(int(math.log2(proxy.shape[1])) + 1)]
    return [{"n": n, **point(best_of_n_kl(n), *best_of_n(proxy, gold, n))} for n in sizes]


def point(kl: float, proxy: Sequence[float] | Floats, gold: Sequence[float] | Floats) -> dict[str, Any]:
    """Means over prompts with their intervals, at a distance of `kl` nats an answer.

    A NaN is a score that nobody has given yet; with fewer than `MIN_PROMPTS`, a mean and its ends are None.
    """
    found: dict[str, Any] = {"kl": kl, "sqrt_kl": math.sqrt(max(kl, 0.0))}
    for name, given in (("proxy", proxy), ("gold", gold)):
        values = np.asarray(given, dtype=np.float64)
        ends = _mean(values) if is_known(values) else (None, None, None)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return found


def is_known(gold: Sequence[float] | Floats) -> bool:
    """Whether enough prompts have a gold score."""
    return int(np.isfinite(np.asarray(gold, dtype=np.float64)).sum()) >= MIN_PROMPTS


def fallen(best: Sequence[float], now: Sequence[float]) -> dict[str, float] | None:
    """The change of the gold score from its best examination to this one, where it is surely a fall; else None.

    Args:
        best: gold score of each prompt's answer, at the examination with the highest mean.
        now: of the same prompts, later; those with a NaN in either count for nothing.
    """
    changes = np.asarray(now, dtype=np.float64) - np.asarray(best, dtype=np.float64)
    if not is_known(changes):
        return None
    change, low, high = _mean(changes)
    return {"change": change, "low": low, "high": high} if high < 0 else None


def peak(points: Sequence[Mapping[str, Any]]) -> int:
    """Index of the highest gold score that is known, the earliest of equals; one must be."""
    return max((i for i, p in enumerate(points) if p["gold"] is not None), key=lambda i: (points[i]["gold"], -i))


def _mean(values: Floats) -> tuple[float, float, float]:
    num = len(values)
    draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
    found = clustered_mean(values, draws)
    assert found is not None, "scores are finite"
    return found
