"""Lines of the native format back to the rows that they were written from.

Ids that are hashes are computed again, so that no file can put other words under the id of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from postgrad.db.tables import (
    AssignmentRow,
    ComparisonAnswerRow,
    ComparisonRow,
    GuidelineRow,
    LabelRow,
    PromptRow,
    RaterRow,
    RoundRow,
    SampleRow,
    TaskRow,
)
from postgrad.errors import DataError, StoreError
from postgrad.feedback.codec import conversation_from_json, conversation_to_json
from postgrad.feedback.intake import BadRow, identifier
from postgrad.feedback.records import Purpose, RaterKind, content_id
from postgrad.feedback.store import LabelStore
from postgrad.feedback.values import BETWEEN, Kind, check_value
from postgrad.types import FinishReason

_BATCH: Final = 400


def _named(value: str) -> str:
    return identifier(value, "id")


Name = Annotated[str, AfterValidator(_named)]
Instant = Annotated[AwareDatetime, Field(strict=False)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RoundLine(_Part):
    type: Literal["round"]
    id: Name
    recipe: str
    created_at: Instant


class RaterLine(_Part):
    type: Literal["rater"]
    id: Name
    kind: RaterKind
    params: dict[str, Any]
    created_at: Instant


class GuidelineLine(_Part):
    type: Literal["guideline"]
    version: Count
    text: str
    author_id: str
    created_at: Instant


class Prompt(_Part):
    id: Name
    conversation: dict[str, Any]
    target: str | None
    details: dict[str, Any]
    created_at: Instant


class Answer(_Part):
    id: str
    prompt: str
    round: str
    stage: str
    checkpoint: str
    policy_version: int
    params: dict[str, Any]
    seed: str
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    created_at: Instant

    @property
    def computed_id(self) -> str:
        columns = self.model_dump(exclude={"id", "prompt", "round", "created_at"})
        return content_id(
            "sample", {**columns, "prompt_id": self.prompt, "round_id": self.round, "seed": int(self.seed)}
        )


class Comparison(_Part):
    id: str
    round: str
    purpose: Purpose
    created_at: Instant


class Task(_Part):
    key: str
    round: str
    details: dict[str, Any]
    gold: bool
    answer: dict[str, Any] | None
    turn: int
    overlap: Annotated[int, Field(ge=1, lt=2**31)]
    created_at: Instant


class Assignment(_Part):
    id: Name
    repeat: bool
    correct: bool | None
    opened_at: Instant


class LabelLine(_Part):
    type: Literal["label"]
    kind: Kind
    key: Annotated[str, Field(min_length=1, max_length=255)]
    rater: str
    rater_kind: RaterKind
    value: dict[str, Any]
    display_order: str
    rationale: str
    milliseconds: Count | None
    guideline: int | None
    created_at: Instant
    undone_at: Instant | None
    comparison: Comparison | None
    sample: str | None
    task: Task | None
    assignment: Assignment | None
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    prompt: Prompt
    answers: list[Answer]

    @property
    def subject(self) -> str:
        return self.comparison.id if self.comparison else self.sample or self.prompt.id


Line = Annotated[RoundLine | RaterLine | GuidelineLine | LabelLine, Field(discriminator="type")]
_LINE: Final[TypeAdapter[RoundLine | RaterLine | GuidelineLine | LabelLine]] = TypeAdapter(Line)


def read_line(row: dict[str, Any]) -> RoundLine | RaterLine | GuidelineLine | LabelLine:
    try:
        return _LINE.validate_python(row)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise BadRow(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


class Checked:
    """What the lines so far have told, which the next one may refer to."""

    def __init__(self) -> None:
        self.num_labels = 0
        self._rounds: set[str] = set()
        self._raters: dict[str, str] = {}
        self._guidelines: set[int | None] = {None}
        self._prompts: dict[str, int] = {}
        self._keys: set[int] = set()

    def row(self, row: dict[str, Any], line: int) -> None:
        match read_line(row):
            case RoundLine() as told:
                self._rounds.add(told.id)
            case RaterLine() as told:
                self._raters[told.id] = told.kind
            case GuidelineLine() as told:
                if told.author_id not in self._raters:
                    raise BadRow(f"author {told.author_id!r} is told on no line before")
                self._guidelines.add(told.version)
            case LabelLine() as label:
                self._references(label)
                _check_label(label)
                self.num_labels += 1

    def _references(self, label: LabelLine) -> None:
        if self._raters.get(label.rater) != label.rater_kind:
            raise BadRow(f"{label.rater_kind} rater {label.rater!r} is told on no line before")
        rounds = {part.round for part in (label.comparison, label.task, *label.answers) if part is not None}
        if unknown := sorted(rounds - self._rounds):
            raise BadRow(f"round {unknown[0]!r} is told on no line before")
        if label.guideline not in self._guidelines:
            raise BadRow(f"guideline {label.guideline} is told on no line before")
        digest = hash(content_id(label.prompt.model_dump(exclude={"created_at"})))
        if self._prompts.setdefault(label.prompt.id, digest) != digest:
            raise BadRow(f"prompt {label.prompt.id!r} has other words than on a line before")
        if hash(label.key) in self._keys:
            raise BadRow(f"key {label.key!r} stands on a line before, too")
        self._keys.add(hash(label.key))


def restore(store: LabelStore, rows: Iterable[dict[str, Any]]) -> None:
    """Write lines that were checked; tasks come back closed, with nothing left to answer."""
    lines = (read_line(row) for row in rows)
    while batch := list(islice(lines, _BATCH)):
        with store.writing() as session:
            _write(store, session, batch)


def _check_label(label: LabelLine) -> None:
    ids = [answer.id for answer in label.answers]
    for answer in label.answers:
        if not answer.seed.isdecimal() or answer.computed_id != answer.id or answer.prompt != label.prompt.id:
            raise BadRow(f"answer {answer.id!r} is not what its id, a hash of its content, says")
    try:
        told = conversation_to_json(conversation_from_json(label.prompt.conversation))
    except (KeyError, TypeError, ValueError):
        told = {}
    if told != label.prompt.conversation or not all(isinstance(m["content"], str) for m in told["messages"]):
        raise BadRow("'prompt.conversation' is no conversation")
    about = label.comparison
    if (label.kind in BETWEEN) != (about is not None):
        raise BadRow(f"a label of kind {label.kind} {'needs a' if about is None else 'has no'} comparison")
    if about is not None and about.id not in {
        # One for training may have become gold later.
        content_id("comparison", about.round, "train" if about.purpose == "gold" else about.purpose, ids),
        content_id("comparison", about.round, about.purpose, ids),
    }:
        raise BadRow(f"comparison {about.id!r} is not what its id, a hash of its content, says")
    if about is not None and sorted(label.display_order.split(",")) != [str(i) for i in range(len(ids))]:
        raise BadRow(f"'display_order' {label.display_order!r} does not name each answer once")
    if label.sample is not None and ids != [label.sample]:
        raise BadRow("'answers' must hold the sample that the label is about")
    task = label.task
    if task is not None and task.key != content_id(
        "task", label.kind, label.subject, task.details, task.answer is not None
    ):
        raise BadRow("'task.key' is not what the task asks")
    if (label.assignment is not None and task is None) or (task is not None and task.gold != (task.answer is not None)):
        raise BadRow("an assignment needs a task, and a gold task its answer")
    _check_value(label, len(ids) if about is not None else 0)
    candidates = {candidate for turn in label.value.get("turns", ()) for candidate in turn["candidates"]}
    if unknown := sorted(candidates - set(ids)):
        raise BadRow(f"candidate {unknown[0]!r} is not among the answers")


def _check_value(label: LabelLine, num_answers: int) -> None:
    details = label.task.details if label.task else {key: list(label.value.get(key, ())) for key in ("axes", "steps")}
    try:
        checked = check_value(label.kind, label.value, num_answers=num_answers, details=details)
        if label.task and label.task.answer is not None:
            check_value(label.kind, label.task.answer, num_answers=num_answers, details=details)
    except DataError as e:
        raise BadRow(str(e)) from None
    if checked != label.value:
        raise BadRow("'value' does not spell out every field, as the store does")


def _write(store: LabelStore, session: Session, lines: Sequence[Any]) -> None:
    labels = [line for line in lines if isinstance(line, LabelLine)]
    _insert_named(store, session, RoundRow, [line for line in lines if isinstance(line, RoundLine)])
    _insert_named(store, session, RaterRow, [line for line in lines if isinstance(line, RaterLine)])
    _insert_guidelines(store, session, [line for line in lines if isinstance(line, GuidelineLine)])
    _insert_named(store, session, PromptRow, [label.prompt for label in labels])
    store.insert(session, SampleRow, [_sample_row(answer) for label in labels for answer in label.answers])
    asked = [label for label in labels if label.comparison]
    store.insert(session, ComparisonRow, [_comparison_row(label) for label in asked])
    sides = [
        {"comparison_id": label.subject, "position": i, "sample_id": answer.id}
        for label in asked
        for i, answer in enumerate(label.answers)
    ]
    store.insert(session, ComparisonAnswerRow, sides)
    tasks = _insert_tasks(store, session, labels)
    _insert_labels(session, labels, tasks)


_NAMED: Final[dict[Any, tuple[str, ...]]] = {
    RoundRow: ("recipe",),
    RaterRow: ("kind", "params"),
    PromptRow: ("conversation", "target", "details"),
}


def _insert_named(store: LabelStore, session: Session, table: Any, parts: Sequence[Any]) -> None:
    rows = {part.id: part.model_dump(exclude={"type"}) for part in parts}
    store.insert_named(session, table, list(rows.values()), _NAMED[table])


def _insert_guidelines(store: LabelStore, session: Session, lines: Sequence[GuidelineLine]) -> None:
    for line in lines:
        stored = session.get(GuidelineRow, line.version)
        if stored is not None and stored.text != line.text:
            raise StoreError(f"the label store has another guideline {line.version}; import into an empty store")
    store.insert(session, GuidelineRow, [line.model_dump(exclude={"type"}) for line in lines])
    if lines and session.get_bind().dialect.name == "postgresql":
        session.execute(
            text("SELECT setval(pg_get_serial_sequence('guidelines', 'version'), max(version)) FROM guidelines")
        )


def _sample_row(answer: Answer) -> dict[str, Any]:
    return {
        **answer.model_dump(exclude={"prompt", "round"}),
        "prompt_id": answer.prompt,
        "round_id": answer.round,
    }


def _comparison_row(label: LabelLine) -> dict[str, Any]:
    assert label.comparison is not None
    columns = label.comparison.model_dump(exclude={"round"})
    return {**columns, "round_id": label.comparison.round, "prompt_id": label.prompt.id}


def _insert_tasks(store: LabelStore, session: Session, labels: Sequence[LabelLine]) -> dict[str, int]:
    """Tasks and assignments; the number of each task by its key."""
    rows = [
        {
            **label.task.model_dump(exclude={"round"}),
            "kind": label.kind,
            "round_id": label.task.round,
            "prompt_id": label.prompt.id,
            "comparison_id": label.comparison.id if label.comparison else None,
            "sample_id": label.sample,
            "free": 0,
            "done": 0,
            "state": "closed",
        }
        for label in labels
        if label.task
    ]
    store.insert(session, TaskRow, rows)
    found = session.execute(select(TaskRow.key, TaskRow.id).where(TaskRow.key.in_({row["key"] for row in rows})))
    numbers = {row.key: row.id for row in found}
    assigned = [(label, label.task, label.assignment) for label in labels if label.task and label.assignment]
    rows = [
        {
            **assignment.model_dump(),
            "task_id": numbers[task.key],
            "rater_id": label.rater,
            "gold": task.gold,
            "state": "expired",
            "display_order": label.display_order,
            "lease_until": assignment.opened_at,
            "draft_version": 0,
            "reason": "",
            "closed_at": label.created_at,
        }
        for label, task, assignment in assigned
    ]
    store.insert(session, AssignmentRow, rows)
    standing = [assignment.id for label, _, assignment in assigned if label.undone_at is None]
    session.execute(update(AssignmentRow).where(AssignmentRow.id.in_(standing)).values(state="submitted"))
    _count_places(session, list(numbers.values()))
    return numbers


def _count_places(session: Session, task_ids: Sequence[int]) -> None:
    done = (
        select(func.count())
        .where(AssignmentRow.task_id == TaskRow.id, AssignmentRow.state == "submitted")
        .where(~AssignmentRow.repeat, ~AssignmentRow.gold)
        .scalar_subquery()
    )
    own = TaskRow.id.in_(task_ids), TaskRow.state == "closed"
    session.execute(update(TaskRow).where(*own).values(done=done), execution_options={"synchronize_session": False})
    session.execute(
        update(TaskRow).where(*own, ~TaskRow.gold).values(free=TaskRow.overlap - TaskRow.done),
        execution_options={"synchronize_session": False},
    )


_SAME: Final = {
    "value", "display_order", "rationale", "milliseconds", "weight", "guideline", "created_at", "undone_at",
}  # fmt: skip
"""What a line and a row call by the same name."""


def _insert_labels(session: Session, labels: Sequence[LabelLine], tasks: dict[str, int]) -> None:
    keys = [label.key for label in labels]
    columns = (LabelRow.client_key, LabelRow.rater_id, LabelRow.prompt_id, LabelRow.value)
    query = select(*columns).where(LabelRow.client_key.in_(keys))
    stored = {row.client_key: (row.rater_id, row.prompt_id, row.value) for row in session.execute(query)}
    rows = []
    for label in labels:
        if label.key in stored:
            if stored[label.key] != (label.rater, label.prompt.id, label.value):
                raise StoreError(f"the label store holds another label under the key {label.key!r}")
            continue
        rows.append(
            {
                "kind": label.kind,
                "prompt_id": label.prompt.id,
                "comparison_id": label.comparison.id if label.comparison else None,
                "sample_id": label.sample,
                "task_id": tasks[label.task.key] if label.task else None,
                "assignment_id": label.assignment.id if label.assignment else None,
                "rater_id": label.rater,
                "client_key": label.key,
                **label.model_dump(include=_SAME),
            }
        )
    if rows:
        session.execute(insert(LabelRow), rows)
