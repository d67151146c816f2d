"""The label store's opinions to pairs: comparisons, rankings, edits, and the turns of conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from postgrad.config.pairs import LabelKind, PairSourceConfig
from postgrad.db.tables import LabelRow, PromptRow, RaterRow, SampleRow, TaskRow
from postgrad.feedback.codec import conversation_from_json
from postgrad.feedback.pairs import Answered, Found, Pair, prompt_id_of
from postgrad.feedback.records import Judged
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import BETWEEN
from postgrad.types import Conversation, Message

LABELS: Final = "labels"
_BATCH: Final = 400
_IMPORTED: Final = "imported:"
"""Where an imported sample would name its checkpoint."""


def read_label_pairs(store: LabelStore, cfg: PairSourceConfig) -> list[Found]:
    """Every standing opinion of people and simulated raters that is for training; abstentions and judges are no pairs.

    Raises:
        StoreError: the store cannot be read.
    """
    between = tuple(kind for kind in BETWEEN if kind in cfg.kinds)
    judged = [
        j
        for j in (store.preferences(purpose="train", kinds=between) if between else ())
        if j.preference.tiers and (not cfg.rounds or j.round_id in cfg.rounds)
    ]
    with store.reading() as session:
        found = [*_compared(session, judged), *_edited(session, cfg), *_conversed(session, cfg)]
    return list(islice(found, cfg.max_pairs))


def _compared(session: Session, judged: Sequence[Judged]) -> Iterator[Found]:
    sides = _answers(session, {source for j in judged for source in j.comparison.sources})
    for j in judged:
        p, comparison = j.preference, j.comparison
        known: dict[str, Any] = {"weight": p.weight, "domain": str(j.details.get("source", ""))}
        ordered = [(better, worse, False) for better, worse in p.pairs()]
        tied = [(a, b, True) for tier in p.tiers for a, b in combinations(tier, 2)]
        for better, worse, tie in (*ordered, *tied):
            pair = Pair(
                j.prompt_id, comparison.prompt, sides[comparison.sources[better]], sides[comparison.sources[worse]],
                p.rater_id, j.rater_kind, LABELS, tie=tie, strength=p.strength or 1, **known,
            )  # fmt: skip
            yield Found(pair, f"comparison {comparison.id} by {p.rater_id}")


def _edited(session: Session, cfg: PairSourceConfig) -> Iterator[Found]:
    """An edit is better than what was edited."""
    if "edit" not in cfg.kinds:
        return
    query = _people(cfg, "edit").add_columns(SampleRow)
    for label, prompt, kind, sample in session.execute(query):
        conversation = conversation_from_json(prompt.conversation)
        pair = Pair(
            prompt.id, conversation, Answered(label.value["text"]), _answer(sample), label.rater_id, kind, LABELS,
            weight=label.weight, domain=str(prompt.details.get("source", "")),
        )  # fmt: skip
        yield Found(pair, f"label {label.id}")


def _conversed(session: Session, cfg: PairSourceConfig) -> Iterator[Found]:
    """At every turn, the candidate that the conversation went on with is better than the others.

    A prompt's own last message of a user only suggests how to begin.
    """
    if "converse" not in cfg.kinds:
        return
    rows = session.execute(_people(cfg, "converse")).all()
    sides = _answers(session, {i for label, *_ in rows for turn in label.value["turns"] for i in turn["candidates"]})
    for label, prompt, kind in rows:
        start = conversation_from_json(prompt.conversation)
        said = list(start.messages)
        if said and said[-1].role == "user":
            said.pop()
        for number, turn in enumerate(label.value["turns"], 1):
            said.append(Message("user", turn["message"]))
            asked = Conversation(tuple(said), start.tools)
            chosen = turn["candidates"][turn["chosen"]]
            for other in turn["candidates"]:
                if other != chosen:
                    pair = Pair(
                        prompt_id_of(asked), asked, sides[chosen], sides[other], label.rater_id, kind, LABELS,
                        strength=turn["strength"] or 1, weight=label.weight,
                    )  # fmt: skip
                    yield Found(pair, f"label {label.id}, turn {number}")
            said.append(Message("assistant", sides[chosen].text))


def _people(cfg: PairSourceConfig, kind: LabelKind) -> Any:
    """(label, prompt, rater kind) of standing labels."""
    query = (
        select(LabelRow, PromptRow, RaterRow.kind)
        .join(PromptRow, PromptRow.id == LabelRow.prompt_id)
        .join(RaterRow, RaterRow.id == LabelRow.rater_id)
        .outerjoin(TaskRow, TaskRow.id == LabelRow.task_id)
        .outerjoin(SampleRow, SampleRow.id == LabelRow.sample_id)
        .where(LabelRow.kind == kind, LabelRow.undone_at.is_(None), RaterRow.kind != "model")
        .order_by(LabelRow.id)
    )
    if cfg.rounds:
        query = query.where(func.coalesce(TaskRow.round_id, SampleRow.round_id).in_(cfg.rounds))
    return query


def _answers(session: Session, ids: Iterable[str]) -> dict[str, Answered]:
    wanted = sorted(ids)
    found: dict[str, Answered] = {}
    for start in range(0, len(wanted), _BATCH):
        query = select(SampleRow).where(SampleRow.id.in_(wanted[start : start + _BATCH]))
        found.update((row.id, _answer(row)) for row in session.scalars(query))
    return found


def _answer(sample: SampleRow) -> Answered:
    checkpoint = "" if sample.checkpoint.startswith(_IMPORTED) else sample.checkpoint
    return Answered(sample.text, tuple(sample.token_ids), checkpoint)
