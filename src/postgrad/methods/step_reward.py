"""A reward for every step of a solution, or for its outcome, by binary cross-entropy (Lightman et al. 2023).

arXiv 2305.20050, "Let's verify step by step". The score of a step is read at its last token, and of a whole solution
it is the chance that all of its steps are good: the product of their chances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from postgrad.config.sections import RewardConfig
from postgrad.data.batch import Batch
from postgrad.feedback.steps import Solution
from postgrad.methods.reward import fit
from postgrad.methods.sft import Progress
from postgrad.models.policy import PolicyModel
from postgrad.ops.losses import step_loss
from postgrad.ops.packing import pad
from postgrad.protocols import Loss
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.trainer.local import LocalTrainer

Supervision = Literal["process", "outcome"]


@dataclass(frozen=True, slots=True)
class Scored:
    """A solution as token ids, and where it is scored."""

    prompt_length: int
    ids: tuple[int, ...]
    places: tuple[int, ...]
    """Tokens at which something is read: each step's last one, or the solution's."""
    good: tuple[float, ...]
    weight: tuple[float, ...]
    """0 where nothing is learned: neutral steps that are ignored."""


def scored(solution: Solution, renderer: Renderer, *, supervision: Supervision, separator: str, neutral: str) -> Scored:
    """Every step ends with the separator, the last one with the end of the turn.

    Args:
        solution: with verdicts on its first steps, beyond which nothing is read.
        renderer: of the model that is to read it.
        supervision: what is learned from.
        separator: between two steps.
        neutral: what a neutral step counts as; "ignore" gives it no weight.
    """
    prompt = renderer.render_prompt(solution.prompt, name=f"prompt {solution.prompt_id!r}")
    name = f"a step of prompt {solution.prompt_id!r}"
    ids, ends = list(prompt), []
    for step in solution.steps[:-1]:
        ids += renderer.render_answer(step + separator, name=name)[:-1]
        ends.append(len(ids) - 1)
    ids += renderer.render_answer(solution.steps[-1], name=name)
    ends.append(len(ids) - 1)
    if supervision == "outcome":
        return Scored(len(prompt), tuple(ids), (ends[-1],), (float(solution.right),), (1.0,))
    good = tuple(float(v == "good" or (v == "neutral" and neutral == "good")) for v in solution.verdicts)
    weight = tuple(0.0 if v == "neutral" and neutral == "ignore" else 1.0 for v in solution.verdicts)
    return Scored(len(prompt), tuple(ids), tuple(ends[: len(good)]), good, weight)


def train_step_reward(
    trainer: LocalTrainer, rows: Sequence[Scored], cfg: RewardConfig, run: RunDirectory, progress: Progress
) -> None:
    """Learn whether each place is good; resumes as `train_sft` does. `prompts_per_step` counts solutions."""

    def accumulate(index: Sequence[int]) -> dict[str, float]:
        parts = _parts([rows[i] for i in index], trainer.batch_tokens)
        return trainer.accumulate(parts, lambda part: _loss(trainer.model, part))

    fit(trainer, len(rows), cfg, run, progress, accumulate)


@torch.no_grad()
def step_chances(model: PolicyModel, rows: Sequence[Scored], progress: Progress) -> list[list[float]]:
    """The chance that each place is good, by solution."""
    model.eval()
    found = []
    for row in rows:
        ids, lengths = pad([row.ids])
        places = torch.tensor(row.places)
        scores = model.rewards_at(ids, lengths, torch.zeros_like(places), places)[:, 0]
        found.append(scores.sigmoid().tolist())
        progress(len(found), len(rows))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    batch: Batch
    rows: torch.Tensor  # [N] int64
    places: torch.Tensor  # [N] int64
    good: torch.Tensor  # [N] float32
    weight: torch.Tensor  # [N] float32


def _parts(rows: Sequence[Scored], max_tokens: int) -> Iterator[_Part]:
    part: list[Scored] = []
    for row in rows:
        if part and sum(len(r.ids) for r in part) + len(row.ids) > max_tokens:
            yield _collate(part)
            part = []
        part.append(row)
    yield _collate(part)


def _collate(rows: Sequence[Scored]) -> _Part:
    ids, lengths = pad([row.ids for row in rows])
    batch = Batch(ids, lengths, torch.zeros_like(ids, dtype=torch.bool))
    return _Part(
        batch,
        torch.tensor([i for i, row in enumerate(rows) for _ in row.places]),
        torch.tensor([place for row in rows for place in row.places]),
        torch.tensor([good for row in rows for good in row.good]),
        torch.tensor([weight for row in rows for weight in row.weight]),
    )


def _loss(model: PolicyModel, part: _Part) -> Loss:
    scores_N = model.rewards_at(part.batch.input_ids, part.batch.lengths, part.rows, part.places)[:, 0]
    return Loss(*step_loss(scores_N, part.good.to(model.device), part.weight.to(model.device)))
