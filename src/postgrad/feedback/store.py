"""The label store: prompts, samples, raters, comparisons and labels in one database.

Writing is idempotent: what is there already, with the same content, is left alone, so a stage that was killed
simply writes everything again. Every call is one transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from postgrad.db.engine import name, open_database, scrub, store_errors
from postgrad.db.tables import (
    AssignmentRow,
    Base,
    ComparisonAnswerRow,
    ComparisonRow,
    LabelRow,
    PromptRow,
    RaterRow,
    RoundRow,
    SampleRow,
    TaskRow,
)
from postgrad.errors import StoreError
from postgrad.feedback import codec
from postgrad.feedback.records import Judged, Purpose, RaterKind, Sample, Submission, content_id
from postgrad.feedback.values import BETWEEN, Kind, check_value
from postgrad.types import Comparison, Edit, Example

Item = TypeVar("Item")

_BY_JUDGE = exists().where(RaterRow.id == LabelRow.rater_id, RaterRow.kind == "model")
_BATCH = 400
"""Rows per statement; SQLite allows 32766 bound values in one."""


class LabelStore:
    """All feedback of a workspace.

    Every method raises StoreError, with one sentence, when the database is locked, damaged or full, and when a row
    contradicts or refers to something that the store does not hold.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 10.0) -> None:
        self._engine = open_database(url, busy_timeout_s=busy_timeout_s)
        self._writer = self._engine.execution_options(write=True)
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if self._engine.dialect.name == "sqlite" else nullcontext()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @property
    def url(self) -> str | None:
        """For another process, with its password; None where the store is in this one's memory."""
        url = self._engine.url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return None
        return url.render_as_string(hide_password=False)

    def add_round(self, round_id: str, *, recipe: str) -> None:
        self._insert_named(RoundRow, [{"id": round_id, "recipe": recipe}], ("recipe",))

    def ensure_round(self, round_id: str, *, made_by: str) -> None:
        """A round to put tasks into; one that is there stays as it is."""
        with self.writing() as session:
            self.insert(session, RoundRow, [{"id": round_id, "recipe": made_by}])

    def add_prompts(self, examples: Iterable[Example]) -> None:
        """Store prompts with their targets and metadata; demonstrations stay in their files."""
        rows = [
            {
                "id": e.id,
                "conversation": codec.conversation_to_json(e.prompt),
                "target": e.target,
                "details": codec.plain(e.metadata),
            }
            for e in examples
        ]
        self._insert_named(PromptRow, rows, ("conversation", "target", "details"))

    def add_samples(self, samples: Iterable[Sample]) -> list[str]:
        """Store answers; their ids, in order."""
        rows = [{"id": s.id, **codec.sample_to_row(s)} for s in samples]
        with self.writing() as session:
            self.insert(session, SampleRow, rows)
        return [row["id"] for row in rows]

    def add_raters(self, kind: RaterKind, raters: Mapping[str, Mapping[str, Any]]) -> None:
        """Store raters by id, with the parameters that describe them."""
        rows = [{"id": rater_id, "kind": kind, "params": codec.plain(params)} for rater_id, params in raters.items()]
        self._insert_named(RaterRow, rows, ("kind", "params"))

    def ask(self, questions: Iterable[Sequence[str]], *, purpose: Purpose, round_id: str) -> list[str]:
        """Store comparisons, each a sequence of two or more sample ids of one prompt; their ids, in order."""
        groups = [tuple(question) for question in questions]
        ids = [content_id("comparison", round_id, purpose, group) for group in groups]
        with self.writing() as session:
            prompts = self._prompts_of(session, {sample_id for group in groups for sample_id in group})
            comparisons, answers = [], []
            for comparison_id, group in zip(ids, groups, strict=True):
                prompt_ids = {prompts[sample_id] for sample_id in group}
                if len(prompt_ids) != 1 or len(set(group)) < max(2, len(group)):
                    raise StoreError(f"comparison of {list(group)} needs two or more different samples of one prompt")
                comparisons.append(
                    {"id": comparison_id, "prompt_id": prompt_ids.pop(), "round_id": round_id, "purpose": purpose}
                )
                answers += [
                    {"comparison_id": comparison_id, "position": i, "sample_id": sample_id}
                    for i, sample_id in enumerate(group)
                ]
            self.insert(session, ComparisonRow, comparisons)
            self.insert(session, ComparisonAnswerRow, answers)
        return ids

    def answer(self, submissions: Iterable[Submission], *, first_wins: bool = False) -> None:
        """Store preferences; the same client key again, with the same content, changes nothing.

        Args:
            submissions: each under a key of its own.
            first_wins: the same key again, with other content, changes nothing either.

        Raises:
            StoreError: also when a rater has already answered that question in that order under another key.
        """
        given = list(submissions)
        wanted: dict[str, dict[str, Any]] = {}
        with self.writing() as session:
            asked = self._asked(session, {s.preference.comparison_id for s in given})
            for submission in given:
                prompt_id, num_answers = asked[submission.preference.comparison_id]
                row = codec.submission_to_row(submission, prompt_id=prompt_id, num_answers=num_answers)
                if wanted.setdefault(submission.key, row) != row:
                    raise StoreError(
                        f"client key {submission.key!r} names two different answers; use a new key for each"
                    )
            for keys in _batches(list(wanted)):
                for stored in session.scalars(select(LabelRow).where(LabelRow.client_key.in_(keys))):
                    row = wanted.pop(stored.client_key)
                    if first_wins:
                        continue
                    if stored.undone_at is not None or any(getattr(stored, c) != v for c, v in row.items()):
                        raise StoreError(
                            f"client key {stored.client_key!r} names another answer, or an undone one; use a new key"
                        )
            if first_wins:
                self.insert(session, LabelRow, list(wanted.values()))
                return
            now = datetime.now(UTC)
            session.add_all(LabelRow(**row, created_at=now) for row in wanted.values())
            try:
                session.flush()
            except IntegrityError as e:
                raise StoreError(
                    f"{name(self._engine)} refused an answer: its rater is unknown, or that rater has "
                    f"answered it in that order already and must undo first ({str(e.orig).splitlines()[0]})"
                ) from e

    def undo(self, rater_id: str, *, purpose: Purpose, round_id: str) -> Comparison | None:
        """Take back the rater's last standing answer; the question it was about, or None where there is none.

        The answer is kept, marked as undone.
        """
        with self.writing() as session:
            last = session.scalars(
                _live_preferences(purpose, round_id)
                .where(LabelRow.rater_id == rater_id)
                .order_by(LabelRow.id.desc())
                .limit(1)
            ).first()
            if last is None:
                return None
            assert last.comparison_id is not None
            session.execute(update(LabelRow).where(LabelRow.id == last.id).values(undone_at=datetime.now(UTC)))
            return self._comparisons(session, [last.comparison_id])[last.comparison_id][0]

    def record_edits(self, edits: Iterable[Edit]) -> None:
        """Store corrected answers; `original` must be the sample's text."""
        rows = []
        with self.writing() as session:
            for e in edits:
                sample = session.get(SampleRow, e.sample_id)
                if sample is None or sample.text != e.original:
                    raise StoreError(f"the edit of sample {e.sample_id!r} does not start from that sample's text")
                rows.append(
                    {
                        "kind": "edit",
                        "prompt_id": sample.prompt_id,
                        "sample_id": e.sample_id,
                        "rater_id": e.rater_id,
                        "client_key": content_id("edit", asdict(e)),
                        "value": check_value("edit", {"text": e.text}),
                        "display_order": "",
                        "rationale": "",
                        "weight": 1.0,
                    }
                )
            self.insert(session, LabelRow, rows)

    def next_for(self, rater_id: str, *, purpose: Purpose, round_id: str) -> Comparison | None:
        """The question with the fewest answers that this rater has not answered; ties go by id, which is a hash.

        What model judges answered does not count.
        """
        live = and_(LabelRow.comparison_id == ComparisonRow.id, LabelRow.undone_at.is_(None))
        num_answers = select(func.count()).where(live, ~_BY_JUDGE).correlate(ComparisonRow).scalar_subquery()
        with self.reading() as session:
            comparison_id = session.scalars(
                select(ComparisonRow.id)
                .where(ComparisonRow.purpose == purpose, ComparisonRow.round_id == round_id)
                .where(~exists().where(live, LabelRow.rater_id == rater_id))
                .order_by(num_answers, ComparisonRow.id)
                .limit(1)
            ).first()
            return None if comparison_id is None else self._comparisons(session, [comparison_id])[comparison_id][0]

    def comparisons(self, *, purpose: Purpose, round_id: str | None = None) -> Iterator[Comparison]:
        """All questions by id; of all rounds where `round_id` is None."""
        ids = select(ComparisonRow.id).where(ComparisonRow.purpose == purpose)
        if round_id is not None:
            ids = ids.where(ComparisonRow.round_id == round_id)
        with self.reading() as session:
            for batch in _batches(list(session.scalars(ids.order_by(ComparisonRow.id)))):
                found = self._comparisons(session, batch)
                yield from (found[comparison_id][0] for comparison_id in batch)

    def preferences(
        self,
        *,
        purpose: Purpose,
        round_id: str | None = None,
        rater_id: str | None = None,
        kinds: Collection[Kind] = BETWEEN,
        repeats: bool = False,
        judges: bool = False,
    ) -> Iterator[Judged]:
        """Standing preferences in the order of their submission; of all rounds where `round_id` is None.

        With "converse" among the kinds, the turns of conversations come after them: what was chosen over the other
        candidates, given all that was said before. These are for "train" alone.

        Abstentions are among them; what a rater was asked a second time, to see whether they agree with
        themselves, is not, and with `repeats` nothing else is. Model judges are left out, unless they are asked for,
        all with `judges` or one by its `rater_id`.
        """
        repeat = exists().where(AssignmentRow.id == LabelRow.assignment_id, AssignmentRow.repeat)
        wanted = [repeat if repeats else ~repeat]
        if rater_id is not None:
            wanted.append(LabelRow.rater_id == rater_id)
        elif not judges:
            wanted.append(~_BY_JUDGE)
        query = _live_preferences(purpose, round_id).where(LabelRow.kind.in_(kinds), *wanted).order_by(LabelRow.id)
        with self.reading() as session:
            who: dict[str, Any] = {row.id: row.kind for row in session.execute(select(RaterRow.id, RaterRow.kind))}
            for batch in _batches(list(session.scalars(query.with_only_columns(LabelRow.id)))):
                rows = session.scalars(select(LabelRow).where(LabelRow.id.in_(batch)).order_by(LabelRow.id)).all()
                asked = self._comparisons(session, {row.comparison_id for row in rows if row.comparison_id})
                for row in rows:
                    assert row.comparison_id is not None
                    yield codec.judged(row, *asked[row.comparison_id], who[row.rater_id])
            if "converse" in kinds and purpose == "train":
                yield from _turns(session, round_id, wanted)

    def samples(self, *, round_id: str, stage: str | None = None) -> Iterator[Sample]:
        query = select(SampleRow).where(SampleRow.round_id == round_id).order_by(SampleRow.prompt_id, SampleRow.id)
        if stage is not None:
            query = query.where(SampleRow.stage == stage)
        with self.reading() as session:
            for row in session.scalars(query).yield_per(_BATCH):
                yield codec.sample_from_row(row)

    def samples_of(self, ids: Collection[str]) -> Iterator[Sample]:
        """Those of these that the store holds, by id."""
        with self.reading() as session:
            for batch in _batches(sorted(ids)):
                rows = session.scalars(select(SampleRow).where(SampleRow.id.in_(batch)).order_by(SampleRow.id))
                yield from map(codec.sample_from_row, rows)

    def edits(self, *, round_id: str | None = None, stage: str | None = None) -> Iterator[Edit]:
        """Standing ones, in the order of their submission; of all rounds and stages where none is named."""
        query = select(LabelRow, SampleRow).join(SampleRow, SampleRow.id == LabelRow.sample_id)
        query = query.where(LabelRow.kind == "edit", LabelRow.undone_at.is_(None)).order_by(LabelRow.id)
        if round_id is not None:
            query = query.where(SampleRow.round_id == round_id)
        if stage is not None:
            query = query.where(SampleRow.stage == stage)
        with self.reading() as session:
            for row, sample in session.execute(query):
                yield Edit(sample.id, row.rater_id, original=sample.text, text=row.value["text"])

    def counts(self) -> dict[str, int]:
        """Rows by kind; undone preferences do not count."""
        tables: dict[str, type[Base]] = {
            "prompts": PromptRow,
            "samples": SampleRow,
            "raters": RaterRow,
            "comparisons": ComparisonRow,
        }
        with self.reading() as session:
            found = {key: session.scalar(select(func.count()).select_from(table)) or 0 for key, table in tables.items()}
            standing = select(func.count()).select_from(LabelRow).where(LabelRow.undone_at.is_(None))
            edits = session.scalar(standing.where(LabelRow.kind == "edit")) or 0
            preferences = session.scalar(standing.where(LabelRow.kind.in_(BETWEEN))) or 0
            return {**found, "edits": edits, "preferences": preferences}

    def scrub(self) -> None:
        """Leave nothing in a SQLite file of what was deleted or overwritten; takes as long as copying it."""
        scrub(self._engine)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction. SQLite's writers take turns here: its own waiting is a nap of doubling length."""
        with self._turn, store_errors(self._engine), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with store_errors(self._engine), Session(self._engine) as session:
            yield session

    def insert(self, session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert what is not there; ids are content hashes, so what is there is the same.

        Rows without `created_at` are created now.
        """
        if not rows:
            return
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        stamp = {"created_at": datetime.now(UTC)} if "created_at" in table.__table__.columns else {}
        session.execute(dialect.insert(table).on_conflict_do_nothing(), [{**stamp, **row} for row in rows])

    def insert_named(
        self, session: Session, table: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
    ) -> None:
        """Insert rows that somebody else named, after checking that a known name means the same."""
        self.insert(session, table, rows)
        for batch in _batches(rows):
            found = session.scalars(select(table).where(table.id.in_([row["id"] for row in batch])))
            stored = {row.id: row for row in found}
            for row in batch:
                different = [c for c in columns if getattr(stored[row["id"]], c) != row[c]]
                if different:
                    raise StoreError(
                        f"{name(self._engine)} holds {table.__tablename__[:-1]} {row['id']!r} with another "
                        f"{different[0]}; give the changed one a new id"
                    )

    def _insert_named(self, table: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        with self.writing() as session:
            self.insert_named(session, table, rows, columns)

    def _prompts_of(self, session: Session, sample_ids: set[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for batch in _batches(sorted(sample_ids)):
            query = select(SampleRow.id, SampleRow.prompt_id).where(SampleRow.id.in_(batch))
            found.update((row.id, row.prompt_id) for row in session.execute(query))
        if unknown := sorted(sample_ids - found.keys()):
            raise StoreError(f"{name(self._engine)} holds no sample {unknown[0]!r}; add the samples before you ask")
        return found

    def _asked(self, session: Session, comparison_ids: set[str]) -> dict[str, tuple[str, int]]:
        """(prompt, number of answers) of each comparison."""
        found: dict[str, tuple[str, int]] = {}
        for batch in _batches(sorted(comparison_ids)):
            query = (
                select(ComparisonRow.id, ComparisonRow.prompt_id, func.count())
                .join(ComparisonAnswerRow)
                .where(ComparisonRow.id.in_(batch))
                .group_by(ComparisonRow.id)
            )
            found.update((row[0], (row[1], row[2])) for row in session.execute(query))
        if unknown := sorted(comparison_ids - found.keys()):
            raise StoreError(f"{name(self._engine)} holds no question {unknown[0]!r}; ask it before you answer it")
        return found

    def _comparisons(
        self, session: Session, ids: Iterable[str]
    ) -> dict[str, tuple[Comparison, ComparisonRow, PromptRow, tuple[str, ...]]]:
        """Comparisons by id, each with its row, its prompt and the stages of its answers."""
        wanted = sorted(ids)
        asked = session.execute(
            select(ComparisonRow, PromptRow).join(PromptRow).where(ComparisonRow.id.in_(wanted))
        ).all()
        sides: dict[str, list[SampleRow]] = {comparison_id: [] for comparison_id in wanted}
        query = (
            select(ComparisonAnswerRow.comparison_id, SampleRow)
            .join(SampleRow)
            .where(ComparisonAnswerRow.comparison_id.in_(wanted))
            .order_by(ComparisonAnswerRow.comparison_id, ComparisonAnswerRow.position)
        )
        for comparison_id, sample in session.execute(query):
            sides[comparison_id].append(sample)
        return {
            row.id: (
                codec.comparison(row.id, prompt, sides[row.id]),
                row,
                prompt,
                tuple(sample.stage for sample in sides[row.id]),
            )
            for row, prompt in asked
        }


def _live_preferences(purpose: Purpose, round_id: str | None) -> Select[LabelRow]:
    query = (
        select(LabelRow)
        .join(ComparisonRow, ComparisonRow.id == LabelRow.comparison_id)
        .where(LabelRow.undone_at.is_(None), LabelRow.kind.in_(BETWEEN), ComparisonRow.purpose == purpose)
    )
    return query if round_id is None else query.where(ComparisonRow.round_id == round_id)


def _turns(session: Session, round_id: str | None, wanted: Sequence[ColumnElement[bool]]) -> Iterator[Judged]:
    """Each choice in a standing conversation as a preference."""
    query = (
        select(LabelRow.id)
        .join(TaskRow, TaskRow.id == LabelRow.task_id)
        .where(LabelRow.kind == "converse", LabelRow.undone_at.is_(None), ~TaskRow.gold, *wanted)
        .order_by(LabelRow.id)
    )
    if round_id is not None:
        query = query.where(TaskRow.round_id == round_id)
    told = select(LabelRow, TaskRow, PromptRow, RaterRow.kind).join(TaskRow, TaskRow.id == LabelRow.task_id)
    told = told.join(PromptRow, PromptRow.id == LabelRow.prompt_id).join(RaterRow, RaterRow.id == LabelRow.rater_id)
    for batch in _batches(list(session.scalars(query))):
        for row, task, prompt, kind in session.execute(told.where(LabelRow.id.in_(batch)).order_by(LabelRow.id)):
            names = {sample_id for turn in row.value["turns"] for sample_id in turn["candidates"]}
            samples = {s.id: s for s in session.scalars(select(SampleRow).where(SampleRow.id.in_(names)))}
            yield from codec.judged_turns(row, task, prompt, samples, kind)


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
