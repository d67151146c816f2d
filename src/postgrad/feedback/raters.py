"""Simulated raters: the gold utility seen through a person's noise and biases.

An ordered logit (McCullagh, 1980, "Regression models for ordinal data"). A rater perceives

    d = u_first - u_second + position_bias + length_bias * (l_first - l_second) / (l_first + l_second + 1)
        + temperature * noise,    noise ~ Logistic(0, 1)

where "first" is the answer displayed first and u, l are utility and length. |d| <= TIE_BAND is a tie, else the sign
decides and |d| grades the strength at `STRENGTH_CUTS`. All biases are in units of utility.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any, Final

from postgrad.types import Preference

TIE_BAND: Final = 0.1
STRENGTH_CUTS: Final = (0.75, 1.75)
"""Perceived differences at which "slightly" becomes "clearly" and "clearly" becomes "much"."""

_TEMPERATURE_SPREAD: Final = 0.25
_POSITION_BIAS: Final = (0.1, 0.1)
_LENGTH_BIAS: Final = (0.2, 0.2)
_CAREFUL_SLIPS: Final = (0.0, 0.04)
_CARELESS_SLIPS: Final = (0.4, 0.9)


@dataclass(frozen=True, slots=True)
class SimulatedRater:
    id: str
    temperature: float
    """Scale of the logistic noise."""
    position_bias: float
    """Added to the answer displayed first."""
    length_bias: float
    """Times the relative difference in length, which lies in (-1, 1)."""
    carelessness: float
    """Probability of choosing a side by a coin, without reading."""

    def params(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "id"}

    def probabilities(
        self, utilities: tuple[float, float], lengths: tuple[int, int], *, order: tuple[int, int]
    ) -> tuple[float, float, float]:
        """(first is better, tie, second is better) in displayed order; exact, for checks against simulated answers."""
        perceived = self._perceived(utilities, lengths, order)
        first = _sigmoid((perceived - TIE_BAND) / self.temperature)
        second = _sigmoid((-perceived - TIE_BAND) / self.temperature)
        attentive, coin = 1 - self.carelessness, self.carelessness / 2
        return attentive * first + coin, attentive * (1 - first - second), attentive * second + coin

    def compare(
        self, comparison_id: str, utilities: tuple[float, float], lengths: tuple[int, int], *, order: tuple[int, int]
    ) -> Preference:
        """Answer one comparison; a pure function of the rater, the comparison and the displayed order.

        Args:
            comparison_id: names the comparison in the answer, and seeds the noise.
            utilities: of answer 0 and answer 1, whatever their place on the screen.
            lengths: of answer 0 and answer 1, in any one unit.
            order: answer indices as displayed, (0, 1) or (1, 0).
        """
        dice = random.Random(f"{self!r}|{comparison_id}|{order}")
        if dice.random() < self.carelessness:
            winner = order[dice.randrange(2)]
            return Preference(comparison_id, self.id, ((winner,), (1 - winner,)), strength=dice.randint(1, 3))
        noise = _logistic(dice)
        perceived = self._perceived(utilities, lengths, order) + self.temperature * noise
        if abs(perceived) <= TIE_BAND:
            return Preference(comparison_id, self.id, ((0, 1),))
        winner = order[0] if perceived > 0 else order[1]
        strength = 1 + sum(abs(perceived) > cut for cut in STRENGTH_CUTS)
        return Preference(comparison_id, self.id, ((winner,), (1 - winner,)), strength=strength)

    def _perceived(self, utilities: tuple[float, float], lengths: tuple[int, int], order: tuple[int, int]) -> float:
        first, second = order
        longer = (lengths[first] - lengths[second]) / (lengths[0] + lengths[1] + 1)
        return utilities[first] - utilities[second] + self.position_bias + self.length_bias * longer


def make_pool(num: int, *, seed: int, temperature: float, careless_frac: float, prefix: str) -> list[SimulatedRater]:
    """Draw a pool whose parameters scatter around the given ones; `round(num * careless_frac)` of it is careless.

    Temperatures are log-normal around `temperature`; on average, the pool leans a little towards the first and the
    longer answer, as people do. Pools of different `prefix` share no rater.
    """
    dice = random.Random(f"{prefix}|{seed}")
    careless = set(dice.sample(range(num), round(num * careless_frac)))
    return [
        SimulatedRater(
            id=f"{prefix}-{seed}-{i:03d}",
            temperature=temperature * math.exp(dice.gauss(0, _TEMPERATURE_SPREAD)),
            position_bias=dice.gauss(*_POSITION_BIAS),
            length_bias=dice.gauss(*_LENGTH_BIAS),
            carelessness=dice.uniform(*(_CARELESS_SLIPS if i in careless else _CAREFUL_SLIPS)),
        )
        for i in range(num)
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _logistic(dice: random.Random) -> float:
    u = dice.random() or math.ulp(0.0)
    return math.log(u) - math.log1p(-u)
