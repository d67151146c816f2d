"""Preference optimisation without a reward model: DPO, IPO, KTO, ORPO and SimPO side by side, and their loop.

All that was said of one prompt's answers is learned from in one step, so that an answer is computed once however often
it was compared, and its prompt once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from postgrad.config.preference import PreferenceConfig
from postgrad.data.batch import Batch, collate, micro_batches
from postgrad.methods.schedule import rate_share
from postgrad.methods.sft import SAVE_EVERY, Progress, epoch_batches
from postgrad.models.policy import PolicyModel
from postgrad.ops.losses import LossSum, dpo_loss, kto_loss, orpo_loss, simpo_loss
from postgrad.protocols import Loss, Policy
from postgrad.run import RunDirectory
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint
from postgrad.trainer.local import LocalTrainer

Answers = tuple[tuple[int, ...], ...]
Rows = tuple[tuple[int, ...], Answers]
"""A prompt and answers to it, as token ids."""


class Choice(NamedTuple):
    """One rater on two answers of a `Compared`."""

    better: int
    worse: int
    weight: float = 1.0


class Opinion(NamedTuple):
    """One rater on one answer of a `Compared`."""

    answer: int
    good: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt and different answers to it as token ids, and what was said of them."""

    prompt: tuple[int, ...]
    answers: Answers
    """Without the prompt, with the token that ends them where they have one."""
    choices: tuple[Choice, ...]
    opinions: tuple[Opinion, ...]
    """What a method for single answers reads in place of `choices`."""
    question: str = ""
    """The end of the prompt, as people read it."""

    @property
    def rows(self) -> Rows:
        return self.prompt, self.answers


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch of whole prompts, B answers, on the model's device but for its batch."""

    batch: Batch
    num_tokens: Tensor  # [B] float32, of the answers
    ref: Tensor  # [B] float32, logprobs under the reference; zero where the method has none
    better: Tensor  # [P] int64, row of the batch
    worse: Tensor  # [P] int64
    choice_weight: Tensor  # [P] float32
    answer: Tensor  # [N] int64, row of the batch
    good: Tensor  # [N] bool
    opinion_weight: Tensor  # [N] float32
    kl: float
    """KTO's reference point."""


class Objective(Protocol):
    """The only place where the methods differ."""

    needs_reference: ClassVar[bool]

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        """Implicit reward of whole answers, all [B]."""
        ...

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        """Summed over pairs, or over answers; `logprobs` [B] are of whole answers."""
        ...


@dataclass(frozen=True)
class DPO:
    """Rafailov et al. 2023 (arXiv:2305.18290); with `label_smoothing` conservative DPO (Mitchell 2023, "A note on DPO
    with noisy preferences & relationship to IPO").
    """

    needs_reference: ClassVar[bool] = True
    beta: float = 0.1
    label_smoothing: float = 0.0

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        return self.beta * (logprobs - ref)

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        sides = [x[row] for x in (logprobs, part.ref) for row in (part.better, part.worse)]
        return dpo_loss(*sides, beta=self.beta, label_smoothing=self.label_smoothing, weight=part.choice_weight)


@dataclass(frozen=True)
class IPO:
    """Azar et al. 2023 (arXiv:2310.12036), with log-ratios averaged over an answer's tokens: summed, the distance that
    is asked for would shrink with length. TRL does the same, and says that the paper's results were so obtained.
    """

    needs_reference: ClassVar[bool] = True
    beta: float = 0.1

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        return self.beta * (logprobs - ref) / num_tokens

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        means = (logprobs / part.num_tokens, part.ref / part.num_tokens)
        sides = [x[row] for x in means for row in (part.better, part.worse)]
        return dpo_loss(*sides, beta=self.beta, kind="ipo", weight=part.choice_weight)


@dataclass(frozen=True)
class KTO:
    """Ethayarajh et al. 2024 (arXiv:2402.01306): answers one by one, good or bad against a reference point."""

    needs_reference: ClassVar[bool] = True
    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        return self.beta * (logprobs - ref)

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        return kto_loss(
            (logprobs - part.ref)[part.answer],
            part.good,
            kl=part.kl,
            beta=self.beta,
            good_weight=self.good_weight,
            bad_weight=self.bad_weight,
            weight=part.opinion_weight,
        )


@dataclass(frozen=True)
class ORPO:
    """Hong et al. 2024 (arXiv:2403.07691): likelihood of the preferred answer and an odds ratio, without reference."""

    needs_reference: ClassVar[bool] = False
    beta: float = 0.1

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        return logprobs / num_tokens

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        means = logprobs / part.num_tokens
        return orpo_loss(means[part.better], means[part.worse], beta=self.beta, weight=part.choice_weight)


@dataclass(frozen=True)
class SimPO:
    """Meng et al. 2024 (arXiv:2405.14734): mean logprobs and a margin, without reference."""

    needs_reference: ClassVar[bool] = False
    beta: float = 2.0
    gamma: float = 1.0

    def reward(self, logprobs: Tensor, num_tokens: Tensor, ref: Tensor) -> Tensor:
        return self.beta * logprobs / num_tokens

    def loss(self, logprobs: Tensor, part: Part) -> LossSum:
        means = logprobs / part.num_tokens
        chosen, rejected = means[part.better], means[part.worse]
        return simpo_loss(chosen, rejected, beta=self.beta, gamma=self.gamma, weight=part.choice_weight)


def make_objective(cfg: PreferenceConfig, compared: Sequence[Compared]) -> Objective:
    """The algorithm of the recipe; its own defaults where the recipe is silent.

    KTO's rarer kind of answer is weighted up until both kinds weigh the same, the lower end of what its paper advises.
    """
    beta = {} if cfg.beta is None else {"beta": cfg.beta}
    match cfg.algorithm:
        case "dpo":
            return DPO(label_smoothing=cfg.label_smoothing, **beta)
        case "ipo":
            return IPO(**beta)
        case "kto":
            opinions = [o for c in compared for o in c.opinions]
            good, bad = (sum(o.weight for o in opinions if o.good == kind) for kind in (True, False))
            most = max(good, bad)
            return KTO(good_weight=most / (good or most), bad_weight=most / (bad or most), **beta)
        case "orpo":
            return ORPO(**beta)
        case "simpo":
            return SimPO(**beta, **({} if cfg.gamma is None else {"gamma": cfg.gamma}))


@dataclass(frozen=True, slots=True)
class Reference:
    """Logprobs of whole answers under the reference, by prompt; they never change, so they are read once."""

    answers: Sequence[Sequence[float]]
    mismatched: Sequence[Sequence[float]] = ()
    """Of the answers in `mismatched_rows`, for KTO."""


def mismatched_rows(compared: Sequence[Compared], *, context: int, seed: int) -> list[Rows]:
    """Every prompt with the answers to another one, each answer used once, cut where they would not fit.

    They are KTO's sample of what the policy might say, from which it estimates its KL: the paper takes the next row of
    a batch; here the others are chosen once, so that the reference reads them once.
    """
    order: list[int] = torch.randperm(len(compared), generator=torch.Generator().manual_seed(seed)).tolist()
    other = dict(zip(order, [order[-1], *order[:-1]], strict=True))
    return [
        (c.prompt, tuple(answer[: context - len(c.prompt)] for answer in compared[other[i]].answers))
        for i, c in enumerate(compared)
    ]


def answer_logprobs(policy: Policy, rows: Sequence[Rows]) -> list[list[float]]:
    """Logprob of every answer, in nats, by prompt."""
    sums = iter(policy.evaluate(_batch(rows)).logprobs.sum(1).tolist())
    return [[next(sums) for _ in answers] for _, answers in rows]


def train_preference(
    trainer: LocalTrainer,
    compared: Sequence[Compared],
    objective: Objective,
    cfg: PreferenceConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    reference: Reference | None = None,
    mismatched: Sequence[Rows] = (),
) -> None:
    """Minimise the objective; resumes as `train_sft` does.

    Args:
        trainer: resumed from the run's newest checkpoint, if there is one.
        compared: each with something that the objective can learn from.
        objective: of `make_objective`.
        cfg: passes, prompts a step, peak learning rate and its schedule.
        run: receives metrics and checkpoints.
        progress: told after every step.
        reference: logprobs of `compared` and `mismatched`, where the objective asks for them.
        mismatched: for KTO, by prompt.
    """
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    schedule = epoch_batches(len(compared), cfg.epochs, cfg.prompts_per_step, seed=run.seed(0))
    for step, index in enumerate(schedule[start:], start=start):
        began = time.perf_counter()
        said: dict[str, float] = {}
        if mismatched:
            assert reference is not None
            theirs = [logprob for i in index for logprob in reference.mismatched[i]]
            said["preference/kl"] = _reference_point(trainer, [mismatched[i] for i in index], theirs)
        ref = [logprob for i in index for logprob in reference.answers[i]] if reference is not None else None
        parts = _parts([compared[i] for i in index], ref, said.get("preference/kl", 0.0), trainer)
        metrics = _settled(trainer.accumulate(parts, lambda part: _loss(trainer.model, objective, part)))
        rate = cfg.learning_rate * rate_share(cfg.schedule, step, len(schedule), warmup_frac=cfg.warmup_frac)
        metrics |= said | trainer.optim_step(rate) | {"optim/learning_rate": rate}
        run.write_metrics(step + 1, metrics | {"time/step_s": time.perf_counter() - began})
        if (step + 1) % SAVE_EVERY == 0:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, len(schedule))


def _reference_point(policy: Policy, rows: Sequence[Rows], ref: Sequence[float]) -> float:
    """KTO's z_0 over a whole step, however it is split: the mean log-ratio of mismatched answers, at least zero."""
    now = [logprob for logprobs in answer_logprobs(policy, rows) for logprob in logprobs]
    return max(0.0, sum(a - b for a, b in zip(now, ref, strict=True)) / len(now))


def _batch(rows: Sequence[Rows]) -> Batch:
    """One row an answer; those to one prompt are a group."""
    ids = [prompt + answer for prompt, answers in rows for answer in answers]
    masks = [[False] * len(prompt) + [True] * len(answer) for prompt, answers in rows for answer in answers]
    groups = [i for i, (_, answers) in enumerate(rows) for _ in answers]
    return collate(ids, masks).with_(group_ids=torch.tensor(groups))


def _parts(
    compared: Sequence[Compared], ref: Sequence[float] | None, kl: float, trainer: LocalTrainer
) -> Iterator[Part]:
    batch = _batch([c.rows for c in compared])
    ref_B = torch.zeros(len(batch)) if ref is None else torch.tensor(ref)
    firsts = [0]
    for c in compared:
        firsts.append(firsts[-1] + len(c.answers))
    device = trainer.model.device
    for index, rows in micro_batches(batch, trainer.batch_tokens):
        assert rows.group_ids is not None
        row_of = {int(row): i for i, row in enumerate(index)}
        groups = list(dict.fromkeys(rows.group_ids.tolist()))
        choices = [
            (row_of[firsts[g] + c.better], row_of[firsts[g] + c.worse], c.weight)
            for g in groups
            for c in compared[g].choices
        ]
        opinions = [(row_of[firsts[g] + o.answer], o.good, o.weight) for g in groups for o in compared[g].opinions]
        better, worse, choice_weight = _columns(choices, (torch.int64, torch.int64, torch.float32), device)
        answer, good, opinion_weight = _columns(opinions, (torch.int64, torch.bool, torch.float32), device)
        num_tokens = rows.loss_mask.sum(1).float().to(device)
        yield Part(
            rows, num_tokens, ref_B[index].to(device), better, worse, choice_weight, answer, good, opinion_weight, kl
        )


def _columns(rows: Sequence[tuple[float, ...]], dtypes: Sequence[torch.dtype], device: torch.device) -> list[Tensor]:
    return [torch.tensor([row[i] for row in rows], dtype=dtype, device=device) for i, dtype in enumerate(dtypes)]


def _loss(model: PolicyModel, objective: Objective, part: Part) -> Loss:
    batch = part.batch
    logprobs_BT, _, _ = model.token_outputs(batch.input_ids, batch.lengths, batch.loss_mask, temperature=1.0)
    logprobs = logprobs_BT.sum(1)
    total, count, metrics = objective.loss(logprobs, part)
    with torch.no_grad():
        return Loss(
            total, count, metrics | _likelihood(logprobs, part, objective, paired="preference/good" not in metrics)
        )


def _likelihood(logprobs: Tensor, part: Part, objective: Objective, *, paired: bool) -> dict[str, float]:
    """How likely good and bad answers are a token, and how far the policy has left the reference on them; sums."""
    if paired:
        good, bad, good_weight, bad_weight = part.better, part.worse, part.choice_weight, part.choice_weight
    else:
        good, bad = part.answer[part.good], part.answer[~part.good]
        good_weight, bad_weight = part.opinion_weight[part.good], part.opinion_weight[~part.good]
    means, left = logprobs / part.num_tokens, part.ref - logprobs
    sums = {
        "preference/chosen_logprob": (good_weight * means[good]).sum(),
        "preference/rejected_logprob": (bad_weight * means[bad]).sum(),
        "preference/good": good_weight.sum(),
        "preference/bad": bad_weight.sum(),
    }
    if objective.needs_reference:
        sums["preference/left"] = (good_weight * left[good]).sum() + (bad_weight * left[bad]).sum()
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))


def _settled(metrics: dict[str, float]) -> dict[str, float]:
    """Means over good and over bad answers from what the trainer divided by its one count."""
    good, bad = metrics.pop("preference/good"), metrics.pop("preference/bad")
    if "preference/left" in metrics:
        metrics["preference/kl_data"] = metrics.pop("preference/left") / (good + bad)
    for side, share in (("chosen", good), ("rejected", bad)):
        for key in (f"preference/{side}_reward", f"preference/{side}_logprob"):
            value = metrics.pop(key)
            if share:
                metrics[key] = value / share
    if good and bad:
        metrics["preference/margin"] = metrics["preference/chosen_reward"] - metrics["preference/rejected_reward"]
    return metrics
