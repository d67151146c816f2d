"""The label store's tables. Ids are content hashes, so that writing a row twice is harmless.

Every change here needs a revision under `migrations/versions`, and its name in `REVISION`; a test compares them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

REVISION: Final = "0002"
"""The newest of `migrations/versions`; a store that bears it is opened as it is."""
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
_LIVE = text("undone_at IS NULL")
_WAITING = text("free > 0 AND state = 'open' AND NOT gold")
_GOLD = text("gold")
_LEASED = text("state = 'leased'")


class UtcDateTime(TypeDecorator[datetime]):
    """A time zone aware instant, which SQLite would hand back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None, "naive datetime"
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        str: String(255),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
    }


class RoundRow(Base):
    __tablename__ = "rounds"

    id: Mapped[str] = mapped_column(primary_key=True)
    recipe: Mapped[str]
    created_at: Mapped[datetime]


class PromptRow(Base):
    __tablename__ = "prompts"

    id: Mapped[str] = mapped_column(primary_key=True)
    conversation: Mapped[dict[str, Any]]
    target: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]]
    """The example's metadata: split, source, constraints."""
    created_at: Mapped[datetime]


class SampleRow(Base):
    __tablename__ = "samples"

    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id"), index=True)
    stage: Mapped[str]
    checkpoint: Mapped[str]
    """SHA-256 of the weights that produced it."""
    policy_version: Mapped[int]
    params: Mapped[dict[str, Any]]
    seed: Mapped[str]
    """Decimal; 64-bit seeds do not fit every database's integer."""
    text: Mapped[str] = mapped_column(Text)
    token_ids: Mapped[list[Any]]
    finish_reason: Mapped[str]
    created_at: Mapped[datetime]


class RaterRow(Base):
    __tablename__ = "raters"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """human, simulated or model."""
    params: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ComparisonRow(Base):
    __tablename__ = "comparisons"
    __table_args__ = (Index("ix_comparisons_round_id_purpose", "round_id", "purpose"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id"))
    purpose: Mapped[str]
    """train or arena."""
    created_at: Mapped[datetime]


class ComparisonAnswerRow(Base):
    """One side of a comparison; `position` is the answer index that preferences speak of."""

    __tablename__ = "comparison_answers"

    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sample_id: Mapped[str] = mapped_column(ForeignKey("samples.id"), index=True)


class GuidelineRow(Base):
    """What labelers were told; every label names the version that was shown."""

    __tablename__ = "guidelines"

    version: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    author_id: Mapped[str] = mapped_column(ForeignKey("raters.id"))
    created_at: Mapped[datetime]


class TaskRow(Base):
    """A question that waits for people: handed out by `turn`, then `id`, while `free` is positive."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ix_tasks_queue", "turn", "id", sqlite_where=_WAITING, postgresql_where=_WAITING),
        Index("ix_tasks_gold", "id", sqlite_where=_GOLD, postgresql_where=_GOLD),
        CheckConstraint("free >= 0 AND done >= 0", name="counts"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """Hash of what is asked, so that adding a task twice adds it once."""
    kind: Mapped[str]
    round_id: Mapped[str] = mapped_column(ForeignKey("rounds.id"), index=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    comparison_id: Mapped[str | None] = mapped_column(ForeignKey("comparisons.id"), index=True)
    """The answers of compare, rank and adjudicate."""
    sample_id: Mapped[str | None] = mapped_column(ForeignKey("samples.id"), index=True)
    """The answer of rate, edit and review."""
    details: Mapped[dict[str, Any]]
    """What this kind needs besides: axes, flags, steps."""
    gold: Mapped[bool]
    """Its answer is known, and it is asked of everyone, whatever `overlap` says."""
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The known one."""
    turn: Mapped[int]
    """Lower ones are asked first: minus the task's priority."""
    overlap: Mapped[int]
    """Different people who are to answer; escalation raises it."""
    free: Mapped[int]
    """`overlap` less `done` and what is leased out."""
    done: Mapped[int]
    state: Mapped[str]
    """open, paused or closed."""
    created_at: Mapped[datetime]


class AssignmentRow(Base):
    """A task in somebody's hands."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "rater_id", "repeat"),
        Index("uq_assignments_leased", "rater_id", unique=True, sqlite_where=_LEASED, postgresql_where=_LEASED),
        Index("ix_assignments_lease_until", "lease_until", sqlite_where=_LEASED, postgresql_where=_LEASED),
        Index("ix_assignments_gold", "rater_id", sqlite_where=_GOLD, postgresql_where=_GOLD),
        Index("ix_assignments_rater_id_opened_at", "rater_id", "opened_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.id"))
    repeat: Mapped[bool]
    """Asked of the same person again with the sides swapped; counts toward no overlap."""
    gold: Mapped[bool]
    """As its task; counts toward no overlap either."""
    correct: Mapped[bool | None]
    """Whether the answer to a gold task was the known one."""
    state: Mapped[str]
    """leased, submitted, skipped, expired or erased."""
    display_order: Mapped[str]
    """Answer indices as shown, comma-separated; empty where there is one answer or none."""
    lease_until: Mapped[datetime]
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    draft_version: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)
    """Why it was skipped."""
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]


class LabelRow(Base):
    """An answer to a question, of whatever kind; `value` is its content, as `postgrad.feedback.values` defines it."""

    __tablename__ = "labels"
    __table_args__ = (
        Index(
            "uq_labels_live",
            "comparison_id",
            "rater_id",
            "display_order",
            unique=True,
            sqlite_where=_LIVE,
            postgresql_where=_LIVE,
        ),
        Index("uq_labels_assignment", "assignment_id", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"), index=True)
    comparison_id: Mapped[str | None] = mapped_column(ForeignKey("comparisons.id"), index=True)
    sample_id: Mapped[str | None] = mapped_column(ForeignKey("samples.id"), index=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("tasks.id"), index=True)
    """Empty where nobody queued for it: simulated raters, imports, the terminal."""
    assignment_id: Mapped[str | None] = mapped_column(ForeignKey("assignments.id"))
    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.id"), index=True)
    client_key: Mapped[str] = mapped_column(unique=True)
    """Names one submission; the same key again is the same submission again."""
    value: Mapped[dict[str, Any]]
    """Empty once its author is erased."""
    display_order: Mapped[str]
    """Answer indices as shown, comma-separated."""
    rationale: Mapped[str] = mapped_column(Text)
    milliseconds: Mapped[int | None]
    weight: Mapped[float] = mapped_column(Double)
    guideline: Mapped[int | None] = mapped_column(ForeignKey("guidelines.version"))
    created_at: Mapped[datetime]
    undone_at: Mapped[datetime | None]


class AccountRow(Base):
    """A person who may sign in; labels name the rater of the same id."""

    __tablename__ = "accounts"

    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str] = mapped_column(Text)
    """scrypt hash with its salt and cost; empty before an invitation is accepted, after erasure, and for `me`."""
    role: Mapped[str]
    """admin, lead, reviewer, labeler or reader."""
    state: Mapped[str]
    """invited, active, paused or erased."""
    reason: Mapped[str] = mapped_column(Text)
    """Why it is paused."""
    created_at: Mapped[datetime]


class TokenRow(Base):
    """Proof of who asks: SHA-256 of a random token that only its holder has."""

    __tablename__ = "tokens"

    digest: Mapped[str] = mapped_column(primary_key=True)
    rater_id: Mapped[str] = mapped_column(ForeignKey("accounts.rater_id"), index=True)
    kind: Mapped[str]
    """session, api or invitation."""
    name: Mapped[str]
    """What its holder calls it."""
    scope: Mapped[str]
    """The role beyond which it allows nothing, whatever its account may do."""
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime]


class EventRow(Base):
    """One line of the audit: append-only, each hashed with the one before."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    details: Mapped[dict[str, Any]]
    """Digests in place of what people wrote, so that erasing it leaves the chain whole."""
    previous: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
