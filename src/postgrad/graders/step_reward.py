"""A reward for every step as a grader, and the choice of the grader that a reward model's directory asks for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from postgrad.config.sections import BarConfig
from postgrad.errors import DataError
from postgrad.graders.certificate import certified_reward_model, length_trend
from postgrad.graders.reward_model import RewardModelGrader
from postgrad.models.placement import Placement
from postgrad.models.policy import PolicyModel
from postgrad.ops.packing import pad
from postgrad.run import STEPS
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.types import Group, Score


class StepRewardGrader:
    """The chance that all steps of an answer are good: the product of their chances (arXiv 2305.20050, section 2.6).

    Args:
        model: reads the chance of a step at its last token.
        decode: of its tokenizer.
        separator: white space after which a new step begins; empty reads the whole answer at its last token.
        name: of its scores.
        weight: of its scores in the reward.
    """

    def __init__(
        self, model: PolicyModel, decode: Callable[[Sequence[int]], str], separator: str, *, name: str, weight: float
    ) -> None:
        self.name = name
        self._model = model
        self._decode = decode
        self._separator = separator
        self._weight = weight

    async def grade(self, group: Group) -> Sequence[Score]:
        """The explanation holds the chance of each step."""
        turns = [t.turns[-1] for t in group.trajectories]
        rows = [(*turn.prompt_ids, *turn.completion.token_ids) for turn in turns]
        places = [
            [len(turn.prompt_ids) + place for place in self.step_ends(turn.completion.token_ids)] for turn in turns
        ]
        of = torch.tensor([i for i, ends in enumerate(places) for _ in ends])
        self._model.eval()
        with torch.no_grad():
            prefixes = torch.tensor([len(turn.prompt_ids) for turn in turns])
            at = torch.tensor([place for ends in places for place in ends])
            chances = self._model.rewards_at(*pad(rows), of, at, prefix_lengths_B=prefixes)[:, 0].sigmoid().cpu()
        by_answer = [chances[of == i].tolist() for i in range(len(rows))]
        return [
            Score(self.name, math.prod(steps), self._weight, " ".join(f"{chance:.2f}" for chance in steps))
            for steps in by_answer
        ]

    def step_ends(self, ids: Sequence[int]) -> list[int]:
        """Places of the last token of each separator within an answer, and of the answer's own last token."""
        if not self._separator:
            return [len(ids) - 1]
        breaks = [self._separator[-1] in self._decode([token]) for token in ids]
        inner = [t for t in range(len(ids) - 1) if breaks[t] and not breaks[t + 1]]
        return [*inner, len(ids) - 1]


def reward_grader(
    directory: Path, bar: BarConfig, renderer: Renderer, placement: Placement, *, name: str, weight: float
) -> RewardModelGrader | StepRewardGrader:
    """The grader of a reward model that may be optimised by a policy.

    Args:
        directory: of the reward model.
        bar: that its certificate must pass.
        renderer: the policy's; the reward model must read its tokens as it writes them.
        placement: of the model.
        name: of its scores.
        weight: of its scores in the reward.

    Raises:
        DataError: it is not certified, or reads text in other tokens or another chat template than the policy.
    """
    model = certified_reward_model(directory, bar, placement=placement)
    if Renderer(load_tokenizer(directory)).fingerprint != renderer.fingerprint:
        raise DataError(
            f"reward model {str(directory)!r} was trained with another tokenizer or chat template than the policy's; "
            "train one that begins as this policy does"
        )
    steps = directory / STEPS
    if not steps.exists():
        return RewardModelGrader(model, length=length_trend(directory), name=name, weight=weight)
    separator = json.loads(steps.read_text(encoding="utf-8"))["separator"]
    return StepRewardGrader(model, renderer.decode, separator, name=name, weight=weight)
