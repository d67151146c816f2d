"""A scalar reward model as a grader."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from postgrad.models.policy import PolicyModel
from postgrad.ops.packing import pad
from postgrad.types import Group, Score


class RewardModelGrader:
    """Scores the very token ids that were sampled, prompt included; of an ensemble, says how far its heads differ.

    Args:
        model: from `certified_reward_model` wherever a policy is optimised against it.
        name: of its scores.
        weight: of its scores in the reward.
    """

    def __init__(self, model: PolicyModel, *, name: str = "reward_model", weight: float = 1.0) -> None:
        self.name = name
        self._model = model
        self._weight = weight

    async def grade(self, group: Group) -> Sequence[Score]:
        rows = [(*t.turns[-1].prompt_ids, *t.turns[-1].completion.token_ids) for t in group.trajectories]
        prompts = torch.tensor([len(t.turns[-1].prompt_ids) for t in group.trajectories])
        self._model.eval()
        with torch.no_grad():
            rewards_BK = self._model.ensemble_rewards(*pad(rows), prefix_lengths_B=prompts).cpu()
        num = rewards_BK.shape[1]
        spread_B = rewards_BK.std(1) if num > 1 else rewards_BK.new_zeros(len(rows))
        said = (f"{num} heads, standard deviation {s:.3f}" if num > 1 else "" for s in spread_B.tolist())
        return [
            Score(self.name, value, self._weight, explanation=why)
            for value, why in zip(rewards_BK.mean(1).tolist(), said, strict=True)
        ]
