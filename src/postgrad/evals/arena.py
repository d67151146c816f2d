"""The arena's statistics: who wins, by how much, and how sure that is. Pure functions of judgements.

Ratings are Bradley-Terry maximum likelihood by evalica, shown on the Elo scale (400 points are odds of 10:1).
Every interval is a 95% percentile bootstrap that resamples prompts with everything judged on them (Efron and
Tibshirani 1993, ch. 13), because answers to one prompt are not independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import evalica
import numpy as np
from numpy.typing import NDArray

from postgrad.evals.length_control import length_controlled
from postgrad.types import Preference

ELO_SCALE: Final = 400.0
ANCHOR_ELO: Final = 1000.0
PRIOR_DRAWS: Final = 1.0
"""Draws added to every pair that met, so that a player who never lost has a finite rating in every resample."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one or more raters made of players `a` and `b` on one prompt."""

    prompt_id: str
    a: str
    b: str
    score: float
    """1 where `a` is better, 0 where `b` is, 0.5 for a tie; a mean over raters and display orders lies between."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One player's answer to one prompt, measured."""

    prompt_id: str
    player: str
    num_tokens: int
    truncated: bool
    measures: Mapping[str, float | None]
    """None where the prompt gives nothing to measure."""


def outcome(preference: Preference) -> float:
    """Score of answer 0 against answer 1 in a comparison of two."""
    better = dict(preference.pairs())
    return 0.5 if not better else float(0 in better)


def average(outcomes: Iterable[Judgement]) -> list[Judgement]:
    """One judgement per prompt and pair: the mean over raters and display orders, whichever player came first."""
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for j in outcomes:
        if (j.prompt_id, j.b, j.a) in scores:
            scores[j.prompt_id, j.b, j.a].append(1 - j.score)
        else:
            scores[j.prompt_id, j.a, j.b].append(j.score)
    return [Judgement(*key, math.fsum(given) / len(given)) for key, given in scores.items()]


def bradley_terry(judgements: Sequence[Judgement], *, anchor: str, prior_draws: float = 0.0) -> dict[str, float]:
    """Ratings on the Elo scale, 1000 + 400 log10(strength / strength of the anchor).

    A score between 0 and 1 counts as that share of a win and the rest of a loss. Without prior draws, the maximum
    exists only where every player has won and lost something (Ford, 1957).
    """
    pairs = sorted({tuple(sorted((j.a, j.b))) for j in judgements})
    wins = np.zeros((len(pairs), 2))
    index = {pair: i for i, pair in enumerate(pairs)}
    for j in judgements:
        first, second = sorted((j.a, j.b))
        share = j.score if j.a == first else 1 - j.score
        wins[index[first, second]] += share, 1 - share
    return _ratings([(a, b) for a, b in pairs], wins + prior_draws / 2, anchor)


def arena_summary(
    judgements: Sequence[Judgement],
    answers: Sequence[Answer],
    *,
    players: Sequence[str],
    unrewarded: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Everything the arena has to say, ready for JSON.

    Args:
        judgements: any number per prompt and pair; they are averaged first.
        answers: every player's answer to every prompt.
        players: oldest first; the first anchors the ratings at 1000, and pairs read newer against older.
        unrewarded: names of the measures that no reward and no utility term contains.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    averaged = average(judgements)
    prompt_ids = sorted({j.prompt_id for j in averaged} | {a.prompt_id for a in answers})
    draws = np.random.default_rng(seed).multinomial(
        len(prompt_ids), np.full(len(prompt_ids), 1 / len(prompt_ids)), size=resamples
    )
    pairs = [(newer, older) for i, newer in enumerate(players) for older in reversed(players[:i])]
    scores = _score_table(averaged, pairs, prompt_ids)
    lengths = _length_table(answers, players, prompt_ids)
    measured = _measure_tables(answers, players, prompt_ids)
    return {
        "players": _player_table(answers, players, pairs, scores, draws),
        "pairs": [
            _pair_row(a, b, scores[:, i], draws)
            | _equal_length_row(scores[:, i], lengths[:, players.index(a)] - lengths[:, players.index(b)], draws)
            for i, (a, b) in enumerate(pairs)
        ],
        "measures": {
            player: {name: _interval_row("mean", table[:, i], draws) for name, table in measured.items()}
            for i, player in enumerate(players)
        },
        "unrewarded": list(unrewarded),
        "deltas": [
            {"measure": name, "a": a, "b": b}
            | _interval_row("delta", table[:, players.index(a)] - table[:, players.index(b)], draws)
            for name, table in measured.items()
            for a, b in pairs
        ],
    }


def clustered_mean(values: Floats, draws: NDArray[np.int64]) -> tuple[float, float, float] | None:
    """Mean over prompts and its 95% interval; a NaN marks a prompt without a value. None where all are.

    Args:
        values: [num_prompts].
        draws: [resamples, num_prompts], how often each resample holds each prompt.
    """
    valid = np.isfinite(values)
    if not valid.any():
        return None
    filled, weights = np.where(valid, values, 0.0), draws * valid
    counts = weights.sum(axis=1)
    means = (weights @ filled)[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values[valid].mean()), float(low), float(high)


def _ratings(pairs: Sequence[tuple[str, str]], wins: Floats, anchor: str) -> dict[str, float]:
    """From `wins` [num_pairs, 2]: how often the first and the second player of each pair won."""
    result = evalica.bradley_terry(
        xs=[a for a, _ in pairs for _ in range(2)],
        ys=[b for _, b in pairs for _ in range(2)],
        winners=[evalica.Winner.X, evalica.Winner.Y] * len(pairs),
        weights=wins.ravel().tolist(),
        tolerance=1e-12,
        limit=10_000,
    )
    strengths = {str(player): float(strength) for player, strength in result.scores.items()}
    return {p: ANCHOR_ELO + ELO_SCALE * math.log10(s / strengths[anchor]) for p, s in strengths.items()}


def _score_table(
    judgements: Sequence[Judgement], pairs: Sequence[tuple[str, str]], prompt_ids: Sequence[str]
) -> Floats:
    """[num_prompts, num_pairs] score of the pair's first player; NaN where they were not judged."""
    row = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    column = {pair: i for i, pair in enumerate(pairs)}
    table = np.full((len(prompt_ids), len(pairs)), np.nan)
    for j in judgements:
        if (j.a, j.b) in column:
            table[row[j.prompt_id], column[j.a, j.b]] = j.score
        else:
            table[row[j.prompt_id], column[j.b, j.a]] = 1 - j.score
    return table


def _measure_tables(answers: Sequence[Answer], players: Sequence[str], prompt_ids: Sequence[str]) -> dict[str, Floats]:
    """Measure -> [num_prompts, num_players]; NaN where there is nothing to measure."""
    row = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    tables: dict[str, Floats] = {}
    for answer in answers:
        for name, value in answer.measures.items():
            table = tables.setdefault(name, np.full((len(prompt_ids), len(players)), np.nan))
            if value is not None:
                table[row[answer.prompt_id], players.index(answer.player)] = value
    return tables


def _length_table(answers: Sequence[Answer], players: Sequence[str], prompt_ids: Sequence[str]) -> Floats:
    """[num_prompts, num_players] tokens of the answers."""
    row = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
    table = np.zeros((len(prompt_ids), len(players)))
    for answer in answers:
        table[row[answer.prompt_id], players.index(answer.player)] = answer.num_tokens
    return table


def _player_table(
    answers: Sequence[Answer],
    players: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    scores: Floats,
    draws: NDArray[np.int64],
) -> dict[str, dict[str, float]]:
    judged = np.isfinite(scores)
    met = np.flatnonzero(judged.any(axis=0))
    wins, losses = np.where(judged, scores, 0.0)[:, met], np.where(judged, 1 - scores, 0.0)[:, met]
    shown = [pairs[int(i)] for i in met]

    def rate(weights: Floats) -> dict[str, float]:
        table = np.stack([weights @ wins, weights @ losses], axis=1) + PRIOR_DRAWS / 2
        return _ratings(shown, table, players[0])

    ratings = rate(np.ones(len(scores)))
    resampled = [rate(draw.astype(np.float64)) for draw in draws]
    table = {}
    for player in players:
        own = [a for a in answers if a.player == player]
        low, high = np.quantile([r[player] for r in resampled], (0.025, 0.975))
        table[player] = {
            "elo": ratings[player],
            "elo_low": float(low),
            "elo_high": float(high),
            "mean_tokens": math.fsum(a.num_tokens for a in own) / len(own),
            "truncated_frac": sum(a.truncated for a in own) / len(own),
        }
    return table


def _pair_row(a: str, b: str, scores: Floats, draws: NDArray[np.int64]) -> dict[str, Any]:
    judged = scores[np.isfinite(scores)]
    row = _interval_row("win_rate", scores, draws)
    return {
        "a": a,
        "b": b,
        "wins": int((judged > 0.5).sum()),
        "ties": int((judged == 0.5).sum()),
        "losses": int((judged < 0.5).sum()),
        **row,
        "num_prompts": len(judged),
    }


def _equal_length_row(scores: Floats, longer: Floats, draws: NDArray[np.int64]) -> dict[str, float | None]:
    rate, low, high = length_controlled(scores, longer, draws) or (None, None, None)
    return {"equal_length_win_rate": rate, "equal_length_low": low, "equal_length_high": high}


def _interval_row(key: str, values: Floats, draws: NDArray[np.int64]) -> dict[str, float | None]:
    found = clustered_mean(values, draws)
    mean, low, high = (None, None, None) if found is None else found
    return {key: mean, "low": low, "high": high}
