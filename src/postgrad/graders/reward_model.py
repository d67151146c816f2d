"""A scalar reward model as a grader."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from postgrad.models.policy import PolicyModel
from postgrad.ops.packing import pad
from postgrad.types import Group, Score


class RewardModelGrader:
    """Scores the very token ids that were sampled, prompt included."""

    name = "reward_model"

    def __init__(self, model: PolicyModel) -> None:
        self._model = model

    async def grade(self, group: Group) -> Sequence[Score]:
        rows = [(*t.turns[-1].prompt_ids, *t.turns[-1].completion.token_ids) for t in group.trajectories]
        prompts = torch.tensor([len(t.turns[-1].prompt_ids) for t in group.trajectories])
        self._model.eval()
        with torch.no_grad():
            rewards = self._model.sequence_rewards(*pad(rows), prefix_lengths_B=prompts)
        return [Score(self.name, value) for value in rewards.tolist()]
