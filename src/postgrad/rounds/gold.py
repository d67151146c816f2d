"""What an examination holds the reward model against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from postgrad.errors import GraderError
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.tasks import coverage
from postgrad.feedback.utility import Utility
from postgrad.graders.certificate import certified_grader, weights_sha256
from postgrad.protocols import Grader
from postgrad.rollout import grade_groups, request_seed
from postgrad.rounds.context import Context, completions, wanted, worth
from postgrad.rounds.exam_labels import Row, win_rates
from postgrad.types import Group, SamplingParams


class Gold(Protocol):
    """An opinion on held-out answers."""

    settled: bool
    """Whether it says at once, and the same for ever."""

    async def read(
        self, groups: Sequence[Group], *, step: int, first: Sequence[Row], policy: Path
    ) -> list[dict[str, Any]]:
        """What each prompt's row keeps of it.

        Args:
            groups: one for each prompt.
            step: after which they were sampled.
            first: the rows of the examination of the SFT policy; none at that one.
            policy: directory of the examined policy, where this is not settled.
        """
        ...

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Of each prompt's first answer, NaN where nobody has said yet."""
        ...


def make_gold(ctx: Context) -> Gold:
    """The recipe's own `exam.gold`.

    Raises:
        DataError: the ensemble may not be used, with the reason.
    """
    assert ctx.recipe.exam is not None
    if ctx.recipe.exam.gold == "labels":
        return Labels(ctx)
    if ctx.recipe.exam.gold == "ensemble":
        directory = ctx.manifest.stage_directory("gold") / "model"
        return Ensemble(certified_grader(directory, ctx.recipe.reward.bar, placement=ctx.placement))
    return Raters(wanted(ctx.recipe.labels))


def exam_seed(ctx: Context, num_answers: int) -> int:
    """Of examinations with so many answers a prompt: the same at every step."""
    return request_seed(ctx.recipe.seed, f"exam {num_answers}", 0)


async def rewards_of(groups: Sequence[Group], grader: Grader, *, who: str) -> list[list[float]]:
    """What a grader gives every answer, by prompt.

    Raises:
        GraderError: an answer has no score; `who` failed to give it.
    """
    graded = await grade_groups(groups, [grader])
    unscored = [t.id for group in graded for t in group.trajectories if t.reward is None]
    if unscored:
        raise GraderError(f"{who} gave {len(unscored)} held-out answers no score, such as {unscored[0]!r}")
    return [[t.reward for t in group.trajectories if t.reward is not None] for group in graded]


class _Read:
    """Scores that stand in the rows."""

    settled = True

    def scores(self, rows: Sequence[Row]) -> list[float]:
        return [row["gold"][0] for row in rows]


@dataclass(frozen=True)
class Raters(_Read):
    """The utility that the simulated raters were declared to have."""

    weights: Utility

    async def read(
        self, groups: Sequence[Group], *, step: int, first: Sequence[Row], policy: Path
    ) -> list[dict[str, Any]]:
        return [
            {"gold": [worth(group.example, c.text, c.finish_reason, self.weights) for c in completions([group])]}
            for group in groups
        ]


@dataclass(frozen=True)
class Ensemble(_Read):
    """Reward models on a shared trunk, learned from labels that the examined reward model never saw."""

    grader: Grader

    async def read(
        self, groups: Sequence[Group], *, step: int, first: Sequence[Row], policy: Path
    ) -> list[dict[str, Any]]:
        return [{"gold": rewards} for rewards in await rewards_of(groups, self.grader, who="the held-out ensemble")]


@dataclass(frozen=True)
class Labels:
    """What people say: every answer that differs from the SFT policy's is put into the label queue beside it."""

    ctx: Context
    settled = False

    async def read(
        self, groups: Sequence[Group], *, step: int, first: Sequence[Row], policy: Path
    ) -> list[dict[str, Any]]:
        store, round_id = self.ctx.store, self.ctx.round_id
        checkpoint = weights_sha256(policy)
        samples = [self._sample(group, step, checkpoint) for group in groups]
        store.add_samples(samples)
        rows: list[dict[str, Any]] = [{"sample": sample.id, "question": ""} for sample in samples]
        pairs = zip(first, rows, groups, strict=True) if first else ()
        asked = [
            (row, (before["sample"], row["sample"]))
            for before, row, group in pairs
            if before["answers"][0] != completions([group])[0].text
        ]
        questions = store.ask([pair for _, pair in asked], purpose="exam", round_id=round_id)
        for (row, _), question in zip(asked, questions, strict=True):
            row["question"] = question
        LabelQueue(store).add(coverage(questions, overlap=1, share=1.0), round_id=round_id)
        return rows

    def scores(self, rows: Sequence[Row]) -> list[float]:
        return win_rates(self.ctx.store, rows, round_id=self.ctx.round_id)

    def _sample(self, group: Group, step: int, checkpoint: str) -> Sample:
        (completion,), rl = completions([group]), self.ctx.recipe.rl
        return Sample(
            prompt_id=group.example.id,
            round_id=self.ctx.round_id,
            stage=f"exam-{step:04d}",
            checkpoint=checkpoint,
            policy_version=completion.policy_version,
            params=SamplingParams(max_tokens=rl.max_tokens, temperature=rl.temperature),
            seed=request_seed(exam_seed(self.ctx, 1), group.example.id, 0),
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
        )
