"""A scalar reward model as a grader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from postgrad.models.policy import PolicyModel
from postgrad.ops.packing import pad
from postgrad.types import Group, Score


@dataclass(frozen=True, slots=True)
class LengthTrend:
    """What length alone predicts of a reward: a line through 0 at the mean length, which leaves the mean reward alone.

    A reward without it is uncorrelated with length among answers like those that the line was read on (Huang et al.
    2024, "Post-hoc Reward Calibration", arXiv 2409.17407, with their local regression).
    """

    slope: float
    """Reward a token."""
    centre: float
    """Tokens an answer, on average."""

    def at(self, tokens: int) -> float:
        """The reward that an answer of so many tokens has for its length."""
        return self.slope * (tokens - self.centre)


class RewardModelGrader:
    """Scores the very token ids that were sampled, prompt included; of an ensemble, says how far its heads differ.

    Args:
        model: from `certified_reward_model` wherever a policy is optimised against it.
        length: taken from the rewards, and named beside each; None leaves them as they are.
        name: of its scores.
        weight: of its scores in the reward.
    """

    def __init__(
        self,
        model: PolicyModel,
        *,
        length: LengthTrend | None = None,
        name: str = "reward_model",
        weight: float = 1.0,
    ) -> None:
        self.name = name
        self._model = model
        self._length = length
        self._weight = weight

    async def grade(self, group: Group) -> Sequence[Score]:
        turns = [t.turns[-1] for t in group.trajectories]
        rows = [(*turn.prompt_ids, *turn.completion.token_ids) for turn in turns]
        prompts = torch.tensor([len(turn.prompt_ids) for turn in turns])
        self._model.eval()
        with torch.no_grad():
            rewards_BK = self._model.ensemble_rewards(*pad(rows), prefix_lengths_B=prompts).cpu()
        num = rewards_BK.shape[1]
        spread_B = rewards_BK.std(1) if num > 1 else rewards_BK.new_zeros(len(rows))
        return [
            self._score(reward, len(turn.completion.token_ids), num, spread)
            for reward, spread, turn in zip(rewards_BK.mean(1).tolist(), spread_B.tolist(), turns, strict=True)
        ]

    def _score(self, reward: float, tokens: int, num_heads: int, spread: float) -> Score:
        said = [f"{num_heads} heads, standard deviation {spread:.3f}"] if num_heads > 1 else []
        if self._length is not None:
            taken = self._length.at(tokens)
            said.append(f"{reward:.3f} as read, less {taken:+.3f} for {tokens} tokens")
            reward -= taken
        return Score(self.name, reward, self._weight, explanation="; ".join(said))
