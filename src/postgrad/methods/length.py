"""Length kept in a band, by a penalty whose strength follows what the policy does.

Reward models and raters lean towards longer answers, and a policy finds that out (Singhal et al. 2023, arXiv
2310.03716). A fixed penalty is too weak at first or too strong later; this one grows while the mean is outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from postgrad.types import Group, Score, Trajectory

GAIN = 1.0
"""Added to `coef` in a step, times the share by which the mean length misses the band; rewards have deviation 1."""
LARGEST_MISS = 0.5


@dataclass(frozen=True)
class LengthControl:
    """Takes `coef` times an answer's distance from the band, as a share of its middle, from its reward.

    A penalty that is linear in length would have no best length: against a reward that is linear too, the policy swings
    from one end to the other.
    """

    low: float
    """Tokens an answer."""
    high: float
    coef: float = 0.0

    def apply(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with one more score; an answer that nobody has an opinion on gets none."""
        return [
            replace(group, trajectories=tuple(self._scored(t) for t in group.trajectories)) if self.coef else group
            for group in groups
        ]

    def after(self, metrics: Mapping[str, float]) -> Self:
        """The control of the step that follows the one with these metrics; a resumed run folds its rows."""
        mean = metrics.get("rollout/completion_tokens")
        if mean is None:
            return self
        return replace(self, coef=metrics["reward/length_coef"] + GAIN * min(self._miss(mean), LARGEST_MISS))

    def _scored(self, t: Trajectory) -> Trajectory:
        if t.reward is None:
            return t
        tokens = sum(len(turn.completion.token_ids) for turn in t.turns)
        return replace(t, scores=(*t.scores, Score("length_control", -self.coef * self._miss(tokens))))

    def _miss(self, tokens: float) -> float:
        """Distance from the band, as a share of its middle."""
        return 2 * max(self.low - tokens, 0, tokens - self.high) / (self.low + self.high)
