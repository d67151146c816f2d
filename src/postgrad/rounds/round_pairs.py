"""The labels of a whole round as pairs: read and checked as any other mixture is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from postgrad.config.pairs import LabelKind, PairSourceConfig
from postgrad.data.mixture import split_of
from postgrad.errors import DataError
from postgrad.feedback.pair_checks import add_too_long, as_rows, check_pairs
from postgrad.feedback.pair_labels import LABELS, read_label_pairs
from postgrad.feedback.pair_sources import PairData, split_labels
from postgrad.feedback.pairs import Label, Pair, first_words, with_system
from postgrad.graders.certificate import weights_sha256
from postgrad.methods.reward import Ranked
from postgrad.methods.reward_data import rank_pairs, rater_weights_of
from postgrad.models.load import context_length
from postgrad.rounds.context import Context
from postgrad.rounds.manifest import workspace_checkpoints

VALIDATION_SHARE = 0.15
GOLD_SHARE = 0.5
"""Of what is learned from: the labels that go to a held-out ensemble, where one examines the policy."""
COMPARED: tuple[LabelKind, ...] = ("compare", "rank", "adjudicate")
CONVERSATIONS = "conversations"
ODD = "labels.odd"


def round_pairs(ctx: Context, *, conversations: bool) -> PairData:
    """The comparisons of this round, and, if asked for, every choice made in a conversation in this workspace.

    The prompt of such a choice is the conversation up to it.

    Raises:
        DataError: nothing is left, or something is odd on which the recipe says to stop.
    """
    sources = {LABELS: PairSourceConfig(format="labels", kinds=COMPARED, rounds=(ctx.round_id,))}
    if conversations:
        sources[CONVERSATIONS] = PairSourceConfig(format="labels", kinds=("converse",))
    read = {name: read_label_pairs(ctx.store, source) for name, source in sources.items()}
    everything = [
        replace(f, label=replace(with_system(f.label, ctx.recipe.data.system), source=name))
        for name, found in read.items()
        for f in found
    ]
    checkpoints = workspace_checkpoints(ctx.workspace) | {weights_sha256(ctx.initial)}
    labels, oddities = check_pairs(everything, ctx.recipe.labels.odd, checkpoints=checkpoints, key=ODD)
    counted = [
        {"source": name, "pairs": len(found), "left_out": 0, "weight": 1.0} for name, found in read.items() if found
    ]
    return PairData(labels, oddities, counted)


def count_pairs(ctx: Context, data: PairData, too_long: Sequence[Label]) -> dict[str, Any]:
    """What the manifest says of them.

    Raises:
        DataError: some are too long, and the recipe says to stop.
    """
    add_too_long(data.oddities, too_long, ctx.recipe.labels.odd, key=ODD)
    return {"sources": data.sources, "odd": as_rows(data.oddities)}


@dataclass(frozen=True)
class Lessons:
    """What a round's reward model learns from and is checked with."""

    training: list[Ranked]
    validation: list[Ranked]
    held_out: list[Pair]
    """Those of `validation`."""
    rater_weights: dict[str, float]
    counts: dict[str, Any]


def reward_lessons(ctx: Context, part: Literal["train", "gold"], *, conversations: bool) -> Lessons:
    """Pairs as token ids, by prompt, split by the first message; a label counts its own weight times its rater's.

    Where a held-out ensemble examines the policy, its labels are part "gold", and the reward model's the others.

    Raises:
        DataError: as `round_pairs`, or there is nothing to train on, or nothing to check it with.
    """
    data = round_pairs(ctx, conversations=conversations)
    learned, held_out = split_labels(data.pairs, VALIDATION_SHARE)
    parts = ([p for p in learned if _part_of(ctx, p) == part], held_out)
    seen = {id(pair) for pairs in parts for pair in pairs}
    weights = rater_weights_of([pair for pair in data.pairs if id(pair) in seen])
    limit = context_length(ctx.initial)
    ranked = [rank_pairs(p, ctx.renderer, ctx.recipe.reward, max_tokens=limit, rater_weights=weights) for p in parts]
    (training, long), (validation, also_long) = ranked
    counts = count_pairs(ctx, data, [*long, *also_long])
    if any(all(v.tie for group in groups for v in group.verdicts) for groups in (training, validation)):
        raise DataError(
            "too few prompts with a preference that is no tie to train and to check a reward model; label more"
        )
    return Lessons(training, validation, [p for p in held_out if p not in also_long], weights, counts)


def _part_of(ctx: Context, pair: Pair) -> str:
    exam = ctx.recipe.exam
    if exam is None or exam.gold != "ensemble":
        return "train"
    return split_of(first_words(pair.prompt), {"train": 1 - GOLD_SHARE, "gold": GOLD_SHARE}, "gold")
