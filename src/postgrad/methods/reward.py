"""A scalar reward model from comparisons (Bradley and Terry 1952; Stiennon et al. 2020, arXiv:2009.01325, eq. 1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from postgrad.config.sections import RewardConfig
from postgrad.data.batch import Batch
from postgrad.graders.reward_model import LengthTrend
from postgrad.methods.schedule import rate_share
from postgrad.methods.sft import SAVE_EVERY, Progress, epoch_batches
from postgrad.models.policy import PolicyModel
from postgrad.ops.losses import bradley_terry_loss
from postgrad.ops.packing import pad
from postgrad.protocols import Loss
from postgrad.run import RunDirectory
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint
from postgrad.trainer.local import LocalTrainer


class Verdict(NamedTuple):
    """One rater on two answers of a `Ranked`; `better` is the better one unless `tie`."""

    better: int
    worse: int
    tie: bool = False
    weight: float = 1.0
    margin: float = 0.0
    """By how much the better answer has to win; larger for graver preferences (Touvron et al. 2023, eq. 2)."""
    label: float = 1.0
    """Chance that `better` is the better one."""
    strength: int = 1
    rater: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answers to one prompt as token ids, prompt included, and what raters said of them.

    All verdicts on a prompt are learned from in one step, so that an answer is computed once however often it
    was compared (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).
    """

    prompt_length: int
    answers: tuple[tuple[int, ...], ...]
    verdicts: tuple[Verdict, ...]


def train_reward_model(
    trainer: LocalTrainer, ranked: Sequence[Ranked], cfg: RewardConfig, run: RunDirectory, progress: Progress
) -> None:
    """Maximise the likelihood of the comparisons; resumes as `train_sft` does."""
    shares_GK = bootstrap_shares(len(ranked), cfg.num_heads, seed=run.seed(0))

    def accumulate(index: Sequence[int]) -> dict[str, float]:
        parts = _parts([ranked[i] for i in index], shares_GK[list(index)], trainer.batch_tokens)
        return trainer.accumulate(parts, lambda part: _loss(trainer.model, part, cfg.label_smoothing))

    fit(trainer, len(ranked), cfg, run, progress, accumulate)


def fit(
    trainer: LocalTrainer,
    num_rows: int,
    cfg: RewardConfig,
    run: RunDirectory,
    progress: Progress,
    accumulate: Callable[[Sequence[int]], dict[str, float]],
) -> None:
    """The steps of every reward model's training.

    Args:
        trainer: resumed from the run's newest checkpoint, if there is one.
        num_rows: of the data.
        cfg: passes, rows a step, peak learning rate.
        run: receives metrics and checkpoints.
        progress: told after every step.
        accumulate: adds the gradient of these rows; returns metrics with "reward/correct" and "reward/decided".
    """
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    schedule = epoch_batches(num_rows, cfg.epochs, cfg.prompts_per_step, seed=run.seed(0))
    for step, index in enumerate(schedule[start:], start=start):
        began = time.perf_counter()
        metrics = accumulate(index)
        correct, decided = metrics.pop("reward/correct"), metrics.pop("reward/decided")
        if decided:
            metrics["reward/accuracy"] = correct / decided
        share = rate_share("linear", step, len(schedule), warmup_frac=0.1)
        metrics |= trainer.optim_step(cfg.learning_rate * share)
        run.write_metrics(step + 1, metrics | {"time/step_s": time.perf_counter() - began})
        if (step + 1) % SAVE_EVERY == 0:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, len(schedule))


def bootstrap_shares(num_prompts: int, num_heads: int, *, seed: int) -> torch.Tensor:
    """How much each prompt counts for each head, [prompts, heads]: all ones for one head, else exponential with mean 1.

    Rubin 1981, "The Bayesian bootstrap": unlike drawn counts, no prompt has weight zero.
    """
    if num_heads == 1:
        return torch.ones(num_prompts, 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(num_prompts, num_heads).exponential_(generator=generator)


def freeze_below(model: PolicyModel, train_layers: int) -> None:
    """Leave only the topmost `train_layers` layers, the final norm and the heads to learn; 0 leaves everything.

    What the loss does not depend on never learns: the vocabulary's output, and the head's bias, which cancels in
    every difference of rewards. Architectures have their own names for the final norm: it is what is neither layers nor
    embeddings.
    """
    for parameter in model.lm.parameters():
        parameter.requires_grad_(train_layers == 0)
    for layer in model.layers[max(0, len(model.layers) - train_layers) :]:
        layer.requires_grad_(True)
    for part in model.body.children():
        if not isinstance(part, torch.nn.ModuleList | torch.nn.Embedding):
            part.requires_grad_(True)
    head = model.heads["reward"]
    assert isinstance(head, torch.nn.Linear)
    head.bias.requires_grad_(False)
    if model.vocabulary_VD is not model.lm.get_input_embeddings().weight:  # type: ignore[operator]
        model.lm.get_output_embeddings().requires_grad_(False)  # type: ignore[operator]


@torch.no_grad()
def score_ensemble(model: PolicyModel, ranked: Sequence[Ranked], progress: Progress) -> list[torch.Tensor]:
    """What each head makes of every answer, by prompt: [answers, heads] on the CPU."""
    model.eval()
    rewards: list[torch.Tensor] = []
    for group in ranked:
        prefixes = torch.full((len(group.answers),), group.prompt_length)
        rewards.append(model.ensemble_rewards(*pad(group.answers), prefix_lengths_B=prefixes).cpu())
        progress(len(rewards), len(ranked))
    return rewards


def without_length(
    ranked: Sequence[Ranked], rewards: Sequence[torch.Tensor], trend: LengthTrend | None
) -> list[torch.Tensor]:
    """The rewards of every answer, by prompt, [answers, heads], less what its length predicts."""
    if trend is None:
        return list(rewards)
    taken = (torch.tensor([trend.at(len(a) - group.prompt_length) for a in group.answers]) for group in ranked)
    return [rewards_AK - taken_A[:, None] for rewards_AK, taken_A in zip(rewards, taken, strict=True)]


def score(
    model: PolicyModel, ranked: Sequence[Ranked], progress: Progress, *, trend: LengthTrend | None = None
) -> list[list[float]]:
    """The reward of every answer, by prompt, less what its length predicts."""
    rewards = without_length(ranked, score_ensemble(model, ranked, progress), trend)
    return [rewards_AK.mean(1).tolist() for rewards_AK in rewards]


@torch.no_grad()
def standardise(model: PolicyModel, rewards_NK: torch.Tensor) -> None:
    """Fold shifts and a scale into the reward head, so that these rewards become 0 on average, with deviation 1.

    Each head has its own shift, since only differences were learned, and all share the scale of their mean.
    """
    head = model.heads["reward"]
    assert isinstance(head, torch.nn.Linear)
    scale = 1 / rewards_NK.mean(1).std().clamp_min(1e-6).to(head.weight.device)
    head.weight.mul_(scale)
    head.bias.sub_(rewards_NK.mean(0).to(head.bias.device)).mul_(scale)


def margins(ranked: Sequence[Ranked], rewards: Sequence[Sequence[float]]) -> list[float]:
    """Reward of the better answer minus reward of the worse, for every verdict that is not a tie."""
    return [
        given[v.better] - given[v.worse]
        for group, given in zip(ranked, rewards, strict=True)
        for v in group.verdicts
        if not v.tie
    ]


@dataclass(frozen=True, slots=True)
class _Part:
    """A micro-batch of whole prompts."""

    batch: Batch
    prefix_lengths: torch.Tensor  # [B] int64
    better: torch.Tensor  # [P] int64, row of the batch
    worse: torch.Tensor  # [P] int64
    tie: torch.Tensor  # [P] bool
    weight: torch.Tensor  # [P, K] float32, summing to the verdict's weight
    margin: torch.Tensor  # [P] float32
    label: torch.Tensor  # [P] float32


def _parts(ranked: Sequence[Ranked], shares_GK: torch.Tensor, max_tokens: int) -> Iterator[_Part]:
    part: list[int] = []
    size = 0
    for i, group in enumerate(ranked):
        tokens = group.prompt_length + sum(len(answer) - group.prompt_length for answer in group.answers)
        if part and size + tokens > max_tokens:
            yield _collate([ranked[j] for j in part], shares_GK[part])
            part, size = [], 0
        part.append(i)
        size += tokens
    yield _collate([ranked[j] for j in part], shares_GK[part])


def _collate(ranked: Sequence[Ranked], shares_GK: torch.Tensor) -> _Part:
    input_ids, lengths = pad([answer for group in ranked for answer in group.answers])
    rows: list[tuple[int, int, bool, float, float, float, int]] = []
    first = 0
    for g, group in enumerate(ranked):
        rows += [(first + v.better, first + v.worse, v.tie, v.weight, v.margin, v.label, g) for v in group.verdicts]
        first += len(group.answers)
    better, worse, tie, weight, margin, label, of = (torch.tensor(column) for column in zip(*rows, strict=True))
    weight = weight[:, None] * shares_GK[of] / shares_GK.shape[1]
    batch = Batch(input_ids, lengths, torch.zeros_like(input_ids, dtype=torch.bool))
    prefixes = torch.tensor([group.prompt_length for group in ranked for _ in group.answers])
    return _Part(batch, prefixes, better, worse, tie, weight, margin, label)


def _loss(model: PolicyModel, part: _Part, label_smoothing: float) -> Loss:
    rewards_BK = model.ensemble_rewards(part.batch.input_ids, part.batch.lengths, prefix_lengths_B=part.prefix_lengths)
    columns = (part.better, part.worse, part.tie, part.weight, part.margin, part.label)
    better, worse, tie, weight, margin, label = (column.to(model.device) for column in columns)
    return Loss(
        *bradley_terry_loss(
            rewards_BK[better],
            rewards_BK[worse],
            margin=margin[:, None],
            weight=weight,
            tie=tie[:, None],
            label=label[:, None],
            label_smoothing=label_smoothing,
        )
    )
