"""How good each rater is, from nothing but what all of them said.

Two models. Dawid and Skene's knows classes and how each rater confuses them. The other knows how far apart answers
are: Bradley-Terry, in which each rater has a discrimination, as items have in Birnbaum's model (1968), with whose
marginal likelihood (Bock and Aitkin 1981) it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from postgrad.feedback.agreement import Grade
from postgrad.feedback.intervals import Z95, Estimate, Floats, wilson_interval

Item = tuple[str, str]

RIGHT, WRONG = 3.0, 0.5
"""Grades that each cell of a confusion matrix has before any is seen: without them, a class that hardly exists takes
in whatever the others explain badly."""
LEAST_KNOWN: Final = 0.25
"""Share of a rater's grades that count at least, however little is known of the true classes."""
SPREAD: Final = 0.5
"""Standard deviation of discriminations around the raters' mean, as a share of it, before anything was seen."""
_NODES: Final = 31
_TOLERANCE: Final = 1e-5
_ROUNDS: Final = 500


@dataclass(frozen=True, slots=True)
class DawidSkene:
    classes: tuple[int, ...]
    prior: Floats  # [K]
    confusion: Mapping[str, Floats]  # [K, K], true class by given class
    accuracy: Mapping[str, Estimate]
    """Share of a rater's grades that were right."""
    posterior: Mapping[Item, Floats]  # [K]


@dataclass(frozen=True, slots=True)
class Competence:
    weight: Mapping[str, Estimate]
    """Discrimination over that of the average rater; 0 for one who says nothing about the answers."""
    first_better: Mapping[Item, float]
    """Chance that the first answer is the better one."""


def dawid_skene(grades: Iterable[Grade]) -> DawidSkene:
    """Dawid and Skene 1979, equations 2.3 to 2.5, from the shares of votes, with a prior on the confusions.

    Accuracies have Wilson intervals, of as many grades as the rater gave less the information that is missing because
    nobody knows the true classes (Louis 1982).
    """
    given = list(grades)
    if not given:
        return DawidSkene((), np.zeros(0), {}, {}, {})
    items, raters, classes = _names(given)
    item, rater, said = _indices(given, items, raters, classes)
    num = len(classes)
    belief = np.zeros((len(items), num))
    np.add.at(belief, (item, said), 1.0)
    belief /= belief.sum(axis=1, keepdims=True)
    for _ in range(_ROUNDS):
        prior = (belief.sum(axis=0) + 1) / (len(items) + num)
        counts = np.tile(np.where(np.eye(num), RIGHT, WRONG), (len(raters), 1, 1))  # [rater, given, true]
        np.add.at(counts, (rater, said), belief[item])
        confusion = counts / counts.sum(axis=1, keepdims=True)
        log = np.tile(np.log(prior), (len(items), 1))
        np.add.at(log, item, np.log(confusion[rater, said]))
        before, belief = belief, _normalised(log)
        if float(np.abs(belief - before).max()) < _TOLERANCE:
            break
    return DawidSkene(
        classes=tuple(classes),
        prior=prior,
        confusion={name: confusion[r].T for name, r in raters.items()},
        accuracy={name: _accuracy(belief[item, said][rater == r]) for name, r in raters.items()},
        posterior={name: belief[i] for name, i in items.items()},
    )


def _accuracy(right: Floats) -> Estimate:
    """From the chance of each of a rater's grades to be right."""
    num, share = len(right), float(right.mean())
    spread = share * (1 - share)
    known = float(((right - share) ** 2).sum()) / spread if spread else 0.0
    counted = max(known, LEAST_KNOWN * num)
    return Estimate(share, *wilson_interval(share * counted, counted), num)


def _normalised(log: Floats) -> Floats:
    """Probabilities [items, outcomes] in proportion to exp(log)."""
    mass = np.exp(log - log.max(axis=1, keepdims=True))
    share: Floats = mass / mass.sum(axis=1, keepdims=True)
    return share


def competence(grades: Iterable[Grade]) -> Competence:
    """P(rater l prefers i to j) = sigmoid(c_l (theta_i - theta_j)), c_l drawn towards the raters' mean.

    Chen et al. 2013 ("Pairwise ranking aggregation in a crowdsourced setting") weigh raters in Bradley-Terry by the
    chance of a swapped answer; a discrimination also tells the noisy from the exact. theta_i - theta_j is standard
    normal and integrated out, each pair by itself: fitted jointly, it would follow whoever labelled it, and everybody
    would look competent. A tie is half of each. Intervals are from the outer product of scores.
    """
    given = list(grades)
    if not given:
        return Competence({}, {})
    items, raters, _ = _names(given)
    item, rater, _ = _indices(given, items, raters, ())
    won = (np.sign([g.value for g in given]) + 1) / 2
    nodes, masses = np.polynomial.hermite_e.hermegauss(_NODES)
    scale = np.ones(len(raters))
    for _ in range(_ROUNDS):
        belief, scores, curvature = _expected(item, rater, won, scale, nodes, masses)
        mean = float(scale.mean())
        precision = 1 / (SPREAD * mean) ** 2
        gradient = np.bincount(rater, weights=scores, minlength=len(raters)) - precision * (scale - mean)
        hessian = np.bincount(rater, weights=curvature, minlength=len(raters)) + precision
        step = gradient / hessian
        scale = np.maximum(scale + step, 0.01)
        if float(np.abs(step).max()) < _TOLERANCE:
            break
    mean = float(scale.mean())
    information = np.bincount(rater, weights=scores**2, minlength=len(raters)) + 1 / (SPREAD * mean) ** 2
    error = Z95 / np.sqrt(information) / mean
    weight = scale / mean
    answered = np.bincount(rater, minlength=len(raters))
    positive = (nodes > 0) + 0.5 * (nodes == 0)
    return Competence(
        weight={
            name: Estimate(
                float(weight[r]),
                max(0.0, float(weight[r] - error[r])),
                float(weight[r] + error[r]),
                int(answered[r]),
            )
            for name, r in raters.items()
        },
        first_better={name: float(belief[i] @ positive) for name, i in items.items()},
    )


def shared_weights(grades: Sequence[Grade]) -> dict[str, float]:
    """What each rater's grades are worth by those of questions that others answered too: 1 on average.

    A question that one rater answered says nothing of them; in the model, a tie of theirs would.
    """
    raters: dict[Item, set[str]] = {}
    for g in grades:
        raters.setdefault(g.item, set()).add(g.rater)
    skill = competence(g for g in grades if len(raters[g.item]) > 1)
    return {rater: estimate.value for rater, estimate in skill.weight.items()}


def _expected(
    item: NDArray[np.int64], rater: NDArray[np.int64], won: Floats, scale: Floats, nodes: Floats, masses: Floats
) -> tuple[Floats, Floats, Floats]:
    """What each pair's difference may be [num_items, nodes]; each grade's expected score and curvature."""
    logits = scale[rater][:, None] * nodes
    chance = 1 / (1 + np.exp(-logits))
    log = np.tile(np.log(masses), (int(item.max()) + 1, 1))
    np.add.at(log, item, won[:, None] * logits - np.logaddexp(0, logits))
    belief = _normalised(log)
    own = belief[item]
    scores = (own * nodes * (won[:, None] - chance)).sum(axis=1)
    return belief, scores, (own * nodes**2 * chance * (1 - chance)).sum(axis=1)


def _names(grades: Sequence[Grade]) -> tuple[dict[Item, int], dict[str, int], list[int]]:
    items = {name: i for i, name in enumerate(dict.fromkeys(g.item for g in grades))}
    raters = {name: i for i, name in enumerate(sorted({g.rater for g in grades}))}
    return items, raters, sorted({g.value for g in grades})


def _indices(
    grades: Sequence[Grade], items: Mapping[Item, int], raters: Mapping[str, int], classes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return (
        np.array([items[g.item] for g in grades], dtype=np.int64),
        np.array([raters[g.rater] for g in grades], dtype=np.int64),
        np.array([classes.index(g.value) for g in grades] if classes else [], dtype=np.int64),
    )
