"""What each rater does to the arena: win rates and ratings with and without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from postgrad.evals.arena import PRIOR_DRAWS, Judgement, average, bradley_terry, outcome
from postgrad.feedback.records import RATER_KINDS, Judged, RaterKind


@dataclass(frozen=True, slots=True)
class Standing:
    """Of two players of a round, by raters of one kind."""

    round_id: str
    raters: RaterKind
    a: str
    b: str
    win_rate: float
    """Of `a` over `b`; a tie is half a win, and every prompt counts once."""
    elo: float
    """By which `a` is above `b`, from everybody that both met."""
    without: Mapping[str, tuple[float, float]]
    """By rater: how much win rate and Elo change when the rater is left out; absent where nothing would be left."""


def influence(judged: Iterable[Judged]) -> list[Standing]:
    """Leave each rater out in turn. Comparisons of two answers by different players count, abstentions do not."""
    groups: dict[tuple[str, RaterKind], list[Judged]] = {}
    for j in judged:
        if len(j.stages) == 2 and j.stages[0] != j.stages[1] and j.preference.tiers:
            groups.setdefault((j.round_id, j.rater_kind), []).append(j)
    found = []
    for (round_id, raters), own in sorted(groups.items(), key=lambda g: (g[0][0], RATER_KINDS.index(g[0][1]))):
        names = sorted({j.preference.rater_id for j in own})
        whole = _standings(own)
        left = {name: _standings([j for j in own if j.preference.rater_id != name]) for name in names}
        for (a, b), (win_rate, elo) in whole.items():
            without = {
                name: (one[a, b][0] - win_rate, one[a, b][1] - elo) for name, one in left.items() if (a, b) in one
            }
            found.append(Standing(round_id, raters, a, b, win_rate, elo, without))
    return found


def _standings(judged: Sequence[Judged]) -> dict[tuple[str, str], tuple[float, float]]:
    """(win rate, Elo difference) of every two players that met."""
    met = average(Judgement(j.prompt_id, j.stages[0], j.stages[1], outcome(j.preference)) for j in judged)
    players = sorted({player for j in met for player in (j.a, j.b)})
    ratings = bradley_terry(met, anchor=players[0], prior_draws=PRIOR_DRAWS) if met else {}
    found = {}
    for a, b in combinations(players, 2):
        scores = [j.score if j.a == a else 1 - j.score for j in met if {j.a, j.b} == {a, b}]
        if scores:
            found[a, b] = sum(scores) / len(scores), ratings[a] - ratings[b]
    return found
