"""Which example comes when: pure functions of the step, so that a resumed run needs no iterator state."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from postgrad.errors import ConfigError, DataError
from postgrad.types import Example

_CYCLE = 1000
"""Draws after which the interleaving of sources repeats: weights are met to one part in this."""


class Mixture:
    """Several data sets interleaved by weight, each in a new random order every epoch."""

    def __init__(self, sources: Sequence[tuple[Sequence[Example], float]], *, seed: int = 0) -> None:
        """Lay out one cycle of draws.

        Args:
            sources: (examples, weight); a weight is the source's share of draws, relative to the others.
            seed: of the orders; the interleaving itself is not random.

        Raises:
            DataError: no source, or one without examples.
            ConfigError: a weight is not positive and finite, or too small to be drawn.
        """
        if not sources:
            raise DataError("a mixture needs at least one data set")
        for number, (examples, weight) in enumerate(sources, 1):
            if not examples:
                raise DataError(f"data set {number} of the mixture is empty; remove it or fill it")
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"weight {weight} of data set {number} in the mixture must be positive and finite")
        self._examples = [examples for examples, _ in sources]
        self._seed = seed
        self._plan, self._per_cycle = _interleave([weight for _, weight in sources])
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def examples(self) -> Iterator[Example]:
        """Every example once, source by source."""
        return itertools.chain.from_iterable(self._examples)

    def take(self, step: int, n: int) -> list[Example]:
        """The `n` examples of `step`, counted from 0; every step of a run takes the same number."""
        assert step >= 0, "steps count from 0"
        assert n > 0, "a step takes at least one example"
        return [self._draw(position) for position in range(step * n, (step + 1) * n)]

    def _draw(self, position: int) -> Example:
        cycle, slot = divmod(position, _CYCLE)
        source, rank = self._plan[slot]
        examples = self._examples[source]
        epoch, place = divmod(cycle * self._per_cycle[source] + rank, len(examples))
        return examples[self._order(source, epoch)[place]]

    def _order(self, source: int, epoch: int) -> list[int]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            order = list(range(len(self._examples[source])))
            random.Random(f"{self._seed}/{source}/{epoch}").shuffle(order)
            known = self._orders[source] = (epoch, order)
        return known[1]


def split_of(text: str, shares: Mapping[str, float], salt: str) -> str:
    """The split that a prompt belongs to, by SHA-256 of its normalised text: the same in every file and every run.

    Case, white space and Unicode compatibility forms do not count, so near copies land on the same side.

    Args:
        text: the prompt.
        shares: split name to its share; they sum to 1, and their order matters.
        salt: another one gives an independent split.

    Raises:
        ConfigError: the shares are not non-negative or do not sum to 1.
    """
    if min(shares.values(), default=-1) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ConfigError(f"split shares {dict(shares)} must be non-negative and sum to 1")
    digest = hashlib.sha256(f"{salt}\n{normalise(text)}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8]) / 2**64
    bound = 0.0
    for name, share in shares.items():
        bound += share
        if point < bound:
            return name
    return [name for name, share in shares.items() if share > 0][-1]


def normalise(text: str) -> str:
    """What two texts have in common that differ in case, white space and Unicode compatibility forms alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _interleave(weights: Sequence[float]) -> tuple[list[tuple[int, int]], list[int]]:
    """One cycle of (source, how many draws it had before), and draws per cycle; never a whole draw behind its share."""
    total = math.fsum(weights)
    counts = [0] * len(weights)
    plan = []
    for slot in range(1, _CYCLE + 1):
        source = max(range(len(weights)), key=lambda s: weights[s] / total * slot - counts[s])
        plan.append((source, counts[source]))
        counts[source] += 1
    starved = next((s for s, count in enumerate(counts) if count == 0), None)
    if starved is not None:
        raise ConfigError(
            f"weight {weights[starved]} of data set {starved + 1} in the mixture is below 1/{_CYCLE} of their sum "
            f"{total}; raise it or remove the data set"
        )
    return plan, counts
