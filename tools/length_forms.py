"""What form has the part of a reward that length predicts? Written for docs/experiments/reward-model.md.

    python tools/length_forms.py WORKSPACE/rounds/0001-quickstart/stages/rl

Reads the answers that a quickstart sampled while it learned, each with its reward and the utility that the raters
declared. Everything is within prompts, and every prompt is predicted from the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postgrad.feedback.utility import measures, utility
from postgrad.recipes import quickstart_rows
from postgrad.run import RunDirectory

Floats = NDArray[np.float64]
TOKENS, REWARD, UTILITY, CUT_OFF = range(4)
SPAN = 0.5
"""Share of the answers that the local regression looks at."""


def read(directory: Path) -> list[Floats]:
    """[answers, 4] of each prompt."""
    rows = {row["id"]: row for row in quickstart_rows()}
    run, groups = RunDirectory(directory), []
    for step in run.saved_steps():
        by_group: dict[int, list[list[float]]] = {}
        for record in run.read_trajectories(step):
            row, turn = rows[record["example_id"]], record["turns"][-1]
            found = measures(
                turn["text"], finish_reason=turn["finish_reason"], reference=row["reference"],
                constraints=row["constraints"], prompt=row["prompt"],
            )  # fmt: skip
            reward = next(s["value"] for s in record["scores"] if s["grader"] == "reward_model")
            cut = float(turn["finish_reason"] == "length")
            by_group.setdefault(record["group"], []).append([len(turn["token_ids"]), reward, utility(found), cut])
        groups += [np.array(answers) for answers in by_group.values()]
    return groups


def centred(groups: Sequence[Floats], column: int) -> list[Floats]:
    return [g[:, column] - g[:, column].mean() for g in groups]


def by_least_squares(form: Callable[[Floats], Floats]) -> Callable[..., Floats]:
    def predict(others: Sequence[Floats], target: Sequence[Floats], tokens: Floats) -> Floats:
        features = [form(g[:, TOKENS]) for g in others]
        x = np.concatenate([f - f.mean(0) for f in features])
        found: Floats = form(tokens) @ np.linalg.lstsq(x, np.concatenate(target), rcond=None)[0]
        return found

    return predict


def by_local_regression(others: Sequence[Floats], target: Sequence[Floats], tokens: Floats) -> Floats:
    """Tricube weights, straight lines (Cleveland 1979)."""
    x, y = np.concatenate([g[:, TOKENS] for g in others]), np.concatenate(target)
    found = []
    for at in tokens:
        far = np.abs(x - at)
        w = np.clip(1 - (far / (np.sort(far)[int(SPAN * len(far))] + 1e-9)) ** 3, 0, None) ** 3
        features = np.stack([np.ones_like(x), x - at], axis=1)
        found.append(np.linalg.lstsq(features * w[:, None] ** 0.5, y * w**0.5, rcond=None)[0][0])
    return np.array(found)


FORMS: Mapping[str, Callable[..., Floats]] = {
    "line": by_least_squares(lambda n: n[:, None]),
    "logarithm": by_least_squares(lambda n: np.log(n)[:, None]),
    "parabola": by_least_squares(lambda n: np.stack([n, n * n / 40], axis=1)),
    "local regression": by_local_regression,
}


def left(groups: Sequence[Floats], column: int, predict: Callable[..., Floats]) -> Floats:
    """What length leaves unexplained, each prompt predicted from the others."""
    values, rest = centred(groups, column), []
    for i, group in enumerate(groups):
        found = predict([*groups[:i], *groups[i + 1 :]], [*values[:i], *values[i + 1 :]], group[:, TOKENS])
        rest.append(values[i] - found + found.mean())
    return np.concatenate(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    every = read(parser.parse_args().directory)
    ended = [g for group in every if len(g := group[group[:, CUT_OFF] == 0]) > 1]
    rewards = {id(groups): np.concatenate(centred(groups, REWARD)) for groups in (every, ended)}
    wanted = np.concatenate(centred(every, UTILITY))
    print(f"{len(every)} prompts, {sum(map(len, every))} answers, {sum(map(len, ended))} of them ended")
    print(f"correlation of reward and utility: {np.corrcoef(rewards[id(every)], wanted)[0, 1]:.3f}")
    for name, predict in FORMS.items():
        shares = [1 - (left(g, REWARD, predict) ** 2).sum() / (rewards[id(g)] ** 2).sum() for g in (every, ended)]
        kept = np.corrcoef(left(every, REWARD, predict), wanted)[0, 1]
        said = ", ".join(f"{share:+.3f}" for share in shares)
        print(f"{name}: explains {said} of the variance (all, ended); correlation of the rest {kept:.3f}")


if __name__ == "__main__":
    main()
