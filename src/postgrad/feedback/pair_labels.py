"""The label store's opinions to pairs: comparisons, rankings, edits, and the turns of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from postgrad.config.pairs import PairSourceConfig
from postgrad.db.tables import LabelRow, PromptRow, RaterRow, SampleRow, TaskRow
from postgrad.feedback.codec import conversation_from_json
from postgrad.feedback.pairs import Answered, Found, Pair, prompt_id_of
from postgrad.feedback.records import Judged
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import BETWEEN, Kind

LABELS: Final = "labels"
_BATCH: Final = 400
_IMPORTED: Final = "imported:"
"""Where an imported sample would name its checkpoint."""


def read_label_pairs(store: LabelStore, cfg: PairSourceConfig) -> list[Found]:
    """Every standing opinion of people and simulated raters that is for training; abstentions and judges are no pairs.

    Raises:
        StoreError: the store cannot be read.
    """
    compared = _judged(store, cfg, tuple(kind for kind in BETWEEN if kind in cfg.kinds))
    chosen = _judged(store, cfg, ("converse",) if "converse" in cfg.kinds else ())
    with store.reading() as session:
        found = [*_compared(session, compared), *_edited(session, cfg), *_chosen(session, chosen)]
    return found[: cfg.max_pairs]


def _judged(store: LabelStore, cfg: PairSourceConfig, kinds: tuple[Kind, ...]) -> list[Judged]:
    found = store.preferences(purpose="train", kinds=kinds) if kinds else ()
    return [j for j in found if j.preference.tiers and (not cfg.rounds or j.round_id in cfg.rounds)]


def _compared(session: Session, judged: Sequence[Judged]) -> Iterator[Found]:
    sides = _answers(session, judged)
    for j in judged:
        p = j.preference
        where = f"comparison {j.comparison.id} by {p.rater_id}"
        for better, worse in p.pairs():
            yield Found(_pair(j, sides, better, worse), where)
        for number, tier in enumerate(p.tiers, 1):
            both_bad = p.both_bad or 1 < number == len(p.tiers)
            for a, b in combinations(tier, 2):
                yield Found(replace(_pair(j, sides, a, b), tie=True, both_bad=both_bad), where)


def _chosen(session: Session, judged: Sequence[Judged]) -> Iterator[Found]:
    """At every turn of a conversation, the candidate that it went on with is better than the others."""
    sides = _answers(session, judged)
    for j in judged:
        prompt = j.comparison.prompt
        turn = sum(m.role == "user" for m in prompt.messages)
        where = f"a conversation about prompt {j.prompt_id} by {j.preference.rater_id}, message {turn}"
        for better, worse in j.preference.pairs():
            yield Found(replace(_pair(j, sides, better, worse), prompt_id=prompt_id_of(prompt)), where)


def _pair(j: Judged, sides: Mapping[str, Answered], better: int, worse: int) -> Pair:
    p, comparison = j.preference, j.comparison
    return Pair(
        j.prompt_id, comparison.prompt, sides[comparison.sources[better]], sides[comparison.sources[worse]],
        p.rater_id, j.rater_kind, LABELS, strength=p.strength or 1, weight=p.weight,
        domain=str(j.details.get("source", "")),
    )  # fmt: skip


def _edited(session: Session, cfg: PairSourceConfig) -> Iterator[Found]:
    """An edit is better than what was edited."""
    if "edit" not in cfg.kinds:
        return
    query = (
        select(LabelRow, PromptRow, RaterRow.kind, SampleRow)
        .join(PromptRow, PromptRow.id == LabelRow.prompt_id)
        .join(RaterRow, RaterRow.id == LabelRow.rater_id)
        .join(SampleRow, SampleRow.id == LabelRow.sample_id)
        .outerjoin(TaskRow, TaskRow.id == LabelRow.task_id)
        .where(LabelRow.kind == "edit", LabelRow.undone_at.is_(None), RaterRow.kind != "model")
        .order_by(LabelRow.id)
    )
    if cfg.rounds:
        query = query.where(func.coalesce(TaskRow.round_id, SampleRow.round_id).in_(cfg.rounds))
    for label, prompt, kind, sample in session.execute(query):
        conversation = conversation_from_json(prompt.conversation)
        known: dict[str, Any] = {"rater_kind": kind, "weight": label.weight}
        pair = Pair(
            prompt.id, conversation, Answered(label.value["text"]), _answer(sample), label.rater_id, source=LABELS,
            domain=str(prompt.details.get("source", "")), **known,
        )  # fmt: skip
        yield Found(pair, f"label {label.id}")


def _answers(session: Session, judged: Sequence[Judged]) -> dict[str, Answered]:
    """What was judged, by sample id."""
    wanted = sorted({source for j in judged for source in j.comparison.sources})
    found: dict[str, Answered] = {}
    for start in range(0, len(wanted), _BATCH):
        query = select(SampleRow).where(SampleRow.id.in_(wanted[start : start + _BATCH]))
        found.update((row.id, _answer(row)) for row in session.scalars(query))
    return found


def _answer(sample: SampleRow) -> Answered:
    checkpoint = "" if sample.checkpoint.startswith(_IMPORTED) else sample.checkpoint
    return Answered(sample.text, tuple(sample.token_ids), checkpoint)
