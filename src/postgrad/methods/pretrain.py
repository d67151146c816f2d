"""Next-token prediction on raw text: every token counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from postgrad.config.pretrain import PretrainConfig
from postgrad.data.batch import Batch, collate
from postgrad.data.text import Span, pack_rows
from postgrad.methods.schedule import rate_share
from postgrad.methods.sft import Progress, epoch_batches
from postgrad.models.policy import PolicyModel
from postgrad.ops.losses import nll_loss
from postgrad.protocols import Loss, PolicyOutput, Trainer
from postgrad.run import RunDirectory
from postgrad.trainer.checkpoint import checkpoint_directory, load_checkpoint, save_checkpoint

NUM_CONFIDENCE_BINS = 15
"""Of equal width over [0, 1], as in Guo et al. 2017 (arXiv 1706.04599)."""
PROBABILITY_DECADES = 6
"""Two bins a decade down to 1e-6, and one for all that is below."""
WARMUP_FRAC = 0.1
"""Share of the steps over which the learning rate rises."""
READ_AT_ONCE = 1024
"""Tokens of one forward pass whose whole distributions are read."""


@dataclass(frozen=True)
class TokenStream:
    """Documents as tokens: EOS, document, EOS, document, ..., EOS."""

    ids: torch.Tensor  # [N] int32
    ends: Sequence[int]
    """Places of the EOS tokens; one more than there are documents."""
    num_bytes: Sequence[int]
    """UTF-8 bytes of each document's text; EOS has none."""

    def batch(self, spans: Sequence[Span]) -> Batch:
        """One sequence a span, all tokens but its first trained."""
        ids = [self.ids[start:stop].tolist() for start, stop in spans]
        return collate(ids, [[False] + [True] * (len(row) - 1) for row in ids])

    def document_spans(self, context: int) -> Iterator[list[Span]]:
        """Each document by itself, cut from its beginning into spans of at most `context` tokens."""
        for ends in pairwise(self.ends):
            yield [span for row in pack_rows(ends, context) for span in row]


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss over the text's length: the same for every tokenizer, and what a compressor would need."""
    return nats / (math.log(2) * num_bytes)


def pretrain(
    trainer: Trainer,
    training: TokenStream,
    validation: TokenStream,
    cfg: PretrainConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    context: int,
) -> None:
    """Minimise the mean negative log-likelihood of every token.

    Args:
        trainer: resumed from the run's newest checkpoint, if there is one.
        training: packed into rows once; every pass over them is a new order.
        validation: read whole, at every checkpoint and after the last step.
        cfg: steps, rows a step, peak learning rate, cadence.
        run: receives metrics and checkpoints.
        progress: told after every step.
        context: tokens of a row.
    """
    checkpoints = checkpoint_directory(run)
    start = load_checkpoint(trainer, checkpoints)
    run.truncate_after(start)
    rows = pack_rows(training.ends, context)
    epochs = math.ceil(cfg.steps / math.ceil(len(rows) / cfg.rows_per_step))
    schedule = epoch_batches(len(rows), epochs, cfg.rows_per_step, seed=run.seed(0))[: cfg.steps]
    held_out = validation.batch([span for spans in validation.document_spans(context) for span in spans])
    for step, index in enumerate(schedule[start:], start=start):
        began = time.perf_counter()
        batch = training.batch([span for i in index for span in rows[i]])
        metrics = trainer.forward_backward(batch, _loss)
        rate = cfg.learning_rate * rate_share("linear", step, cfg.steps, warmup_frac=WARMUP_FRAC)
        metrics |= trainer.optim_step(rate) | {"optim/learning_rate": rate}
        seconds = time.perf_counter() - began
        metrics |= {"time/step_s": seconds, "time/tokens_per_s": batch.num_loss_tokens / seconds}
        due = (step + 1) % cfg.evaluate_every == 0
        if due or step + 1 == cfg.steps:
            nats = -float(trainer.evaluate(held_out).logprobs.double().sum())
            metrics["validation/bits_per_byte"] = bits_per_byte(nats, sum(validation.num_bytes))
        run.write_metrics(step + 1, metrics)
        if due:
            save_checkpoint(trainer, checkpoints, step + 1)
        progress(step + 1, cfg.steps)


def _loss(batch: Batch, output: PolicyOutput) -> Loss:
    return Loss(*nll_loss(output.logprobs, batch.loss_mask))


@dataclass(frozen=True)
class NextTokens:
    """What a model says about every next token of some documents, D of them; columns are (n, sum p, hits)."""

    nats: NDArray[np.float64]  # [D]
    num_tokens: NDArray[np.float64]  # [D], EOS included
    confidence: NDArray[np.float64]  # [D, bins, 3]: the likeliest token of every place, by its probability
    probability: NDArray[np.float64]  # [D, bins, 3]: every token of the vocabulary at every place, by its probability


@torch.no_grad()
def read_next_tokens(model: PolicyModel, stream: TokenStream, progress: Progress) -> NextTokens:
    """Every document's whole predicted distributions, counted into bins.

    The model is run as transformers runs it, on right-padded rows of one document, so that this is a reading of its
    own, which owes nothing to the trainer's packing.
    """
    model.eval()
    nats, counts, confidence, probability = [], [], [], []
    at_once = max(1, READ_AT_ONCE // model.context)
    documents = list(stream.document_spans(model.context))
    for number, spans in enumerate(documents, 1):
        own = _Counts()
        for i in range(0, len(spans), at_once):
            batch = stream.batch(spans[i : i + at_once])
            logits = model.lm(input_ids=batch.input_ids.to(model.device), use_cache=False).logits
            # The logits at t - 1 are of token t.
            following = batch.loss_mask[:, 1:]
            targets = batch.input_ids[:, 1:][following].to(model.device)
            own.add(logits[:, :-1][following.to(model.device)], targets)
        nats.append(own.nats)
        counts.append(float(own.confidence[:, 0].sum()))
        confidence.append(own.confidence)
        probability.append(own.probability)
        progress(number, len(documents))
    return NextTokens(
        np.array(nats), np.array(counts), torch.stack(confidence).numpy(), torch.stack(probability).numpy()
    )


class _Counts:
    """Sums over the places of one document."""

    def __init__(self) -> None:
        self.nats = 0.0
        self.confidence = torch.zeros(NUM_CONFIDENCE_BINS, 3, dtype=torch.float64)
        self.probability = torch.zeros(2 * PROBABILITY_DECADES + 1, 3, dtype=torch.float64)

    def add(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> None:
        logp_NV = logits_NV.log_softmax(-1)
        self.nats -= float(logp_NV.gather(1, targets_N[:, None]).double().sum())
        hit_NV = torch.zeros_like(logp_NV).scatter_(1, targets_N[:, None], 1.0)
        top_N, choice_N = logp_NV.exp().max(-1)
        bins_N = (top_N * NUM_CONFIDENCE_BINS).long().clamp_max(NUM_CONFIDENCE_BINS - 1)
        self.confidence += _binned(bins_N, top_N, (choice_N == targets_N).double(), NUM_CONFIDENCE_BINS)
        size = len(self.probability)
        bins_NV = (logp_NV * (2 / math.log(10))).floor().long().add_(size).clamp_(0, size - 1)
        self.probability += _binned(bins_NV.flatten(), logp_NV.exp().flatten(), hit_NV.flatten(), size)


def _binned(bins: torch.Tensor, predicted: torch.Tensor, hits: torch.Tensor, size: int) -> torch.Tensor:
    columns = (None, predicted.double(), hits.double())
    return torch.stack([bins.bincount(weights=column, minlength=size).double() for column in columns], dim=1).cpu()
