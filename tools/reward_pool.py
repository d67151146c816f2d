"""Does a reward model learn what simulated raters were declared to want? Written for docs/experiments/reward-model.md.

    python tools/reward_pool.py --seeds 5

Answers are people's own (the packaged references) and spoiled copies of them; raters are `feedback.raters`' pool. The
model is linear in what a program can measure of an answer, fitted with the loss, soft labels, rater weights and
certificate that a language model gets, so it tests these and not a language model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from postgrad.evals.reward_health import HeldOut, certificate
from postgrad.feedback.agreement import Grade
from postgrad.feedback.competence import competence
from postgrad.feedback.raters import SimulatedRater, make_pool
from postgrad.feedback.utility import measures, utility
from postgrad.ops.losses import bradley_terry_loss
from postgrad.recipes import quickstart_rows

NUM_LABELS = 5_000
OVERLAP = 3
"""Raters of one pair."""
CARELESS = 1 / 3


@dataclass(frozen=True)
class Answer:
    prompt: str
    text: str
    features: tuple[float, ...]
    utility: float
    num_words: int


@dataclass(frozen=True)
class Label:
    pair: int
    rater: str
    won: float
    """1 where the first answer is better, 0 where the second is, 0.5 for a tie."""


def spoiled(row: Mapping[str, Any], other: str, dice: random.Random) -> str:
    """The reference, or something a weak policy might have said in its place."""
    words = row["reference"].split()
    kind = dice.randrange(7)
    if kind == 0:
        return str(row["reference"])
    if kind == 1:
        return " ".join(words[: max(1, len(words) // 2)])
    if kind == 2:
        return " ".join(words * 3)
    if kind == 3:
        return other
    if kind == 4:
        return f"{row['reference']} {row['prompt']} {other}"
    if kind == 5:
        return str(row["reference"]).lower()
    return "" if dice.random() < 0.3 else f"{' '.join(words[:12])}."


def answers(num_pairs: int, dice: random.Random, splits: Sequence[str] = ()) -> list[tuple[Answer, Answer]]:
    """Pairs of answers to prompts of these splits, by default of all."""
    rows = [row for row in quickstart_rows() if row["reference"] and (not splits or row["split"] in splits)]
    found = []
    for _ in range(num_pairs):
        row, other = dice.choice(rows), dice.choice(rows)["reference"]
        found.append((_measured(row, spoiled(row, other, dice)), _measured(row, spoiled(row, other, dice))))
    return found


def _measured(row: Mapping[str, Any], text: str) -> Answer:
    got = measures(
        text,
        finish_reason="stop",
        reference=row["reference"],
        constraints=row["constraints"],
        prompt=row["prompt"],
    )
    num_words = got["words"] or 0.0
    names = ("constraints_met", "reference_contained", "repeated_trigrams", "ends_properly", "empty", "question_echo")
    features = (*(got[name] or 0.0 for name in names), float(np.log1p(num_words)), num_words / 50)
    return Answer(row["prompt"], text, features, utility(got), int(num_words))


def labelled(
    pairs: Sequence[tuple[Answer, Answer]], pool: Sequence[SimulatedRater], dice: random.Random, *, overlap: int
) -> list[Label]:
    found = []
    for i, (a, b) in enumerate(pairs):
        for rater in dice.sample(list(pool), overlap):
            order = (0, 1) if dice.random() < 0.5 else (1, 0)
            said = rater.compare(str(i), (a.utility, b.utility), (a.num_words, b.num_words), order=order)
            better = next(said.pairs(), None)
            found.append(Label(i, rater.id, 0.5 if better is None else float(better == (0, 1))))
    return found


def fitted(
    pairs: Sequence[tuple[Answer, Answer]], labels: Sequence[Label], weights: Mapping[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(coefficients, scale of the features), by the loss that reward models are trained with."""
    first, second = (torch.tensor([pairs[label.pair][side].features for label in labels]) for side in (0, 1))
    scale = torch.cat([first, second]).std(0).clamp_min(1e-6)
    won = torch.tensor([label.won for label in labels])
    weight = torch.tensor([weights.get(label.rater, 1.0) for label in labels])
    coefficients = torch.zeros(first.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total, count, _ = bradley_terry_loss(
            first / scale @ coefficients, second / scale @ coefficients, weight=weight, label=won
        )
        loss = total / count
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return coefficients.detach(), scale


def gaps(pairs: Sequence[tuple[Answer, Answer]], model: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray[Any, Any]:
    coefficients, scale = model
    first, second = (torch.tensor([pair[side].features for pair in pairs]) for side in (0, 1))
    return ((first - second) / scale @ coefficients).numpy()


def trial(seed: int) -> dict[str, float]:
    dice = random.Random(seed)
    pool = make_pool(12, seed=seed, temperature=0.5, careless_frac=CARELESS, prefix="train")
    pairs = answers(NUM_LABELS // OVERLAP, dice)
    labels = labelled(pairs, pool, dice, overlap=OVERLAP)
    weights = {name: e.value for name, e in competence(_grades(labels)).weight.items()}
    judges = make_pool(12, seed=seed, temperature=0.5, careless_frac=0.0, prefix="held-out")
    fresh = answers(2_000, dice)
    verdicts = labelled(fresh, judges, dice, overlap=1)
    truth = np.array([a.utility - b.utility for a, b in fresh])
    found: dict[str, float] = {}
    for name, given in (("plain", {}), ("weighted", weights)):
        margins = gaps(fresh, fitted(pairs, labels, given))
        held = [
            HeldOut(str(v.pair), float(margins[v.pair] * (1 if v.won else -1)), 0) for v in verdicts if v.won != 0.5
        ]
        health = certificate(held, [], reward_std=float(margins.std()))
        decided = np.abs(truth) > 0.1
        found |= {
            f"{name}_correlation": float(np.corrcoef(margins, truth)[0, 1]),
            f"{name}_right": float((np.sign(margins) == np.sign(truth))[decided].mean()),
            f"{name}_accuracy": health["accuracy"],
            f"{name}_ece": health["ece"],
            f"{name}_ece_calibrated": health["ece_calibrated"],
            f"{name}_temperature": health["temperature"],
        }
    return found


def _grades(labels: Sequence[Label]) -> list[Grade]:
    return [Grade(str(label.pair), label.rater, int(2 * label.won - 1)) for label in labels]


def interval(values: Sequence[float]) -> str:
    """Mean and 95% t interval over seeds."""
    from scipy.stats import t

    mean, num = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, num - 1) * np.std(values, ddof=1) / np.sqrt(num))
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    trials = [trial(seed) for seed in range(seeds)]
    for key in trials[0]:
        print(f"{key:26} {interval([one[key] for one in trials])}")
    for key in ("correlation", "right", "accuracy"):
        gain = [one[f"weighted_{key}"] - one[f"plain_{key}"] for one in trials]
        print(f"{'gain in ' + key:26} {interval(gain)}")


if __name__ == "__main__":
    main()
