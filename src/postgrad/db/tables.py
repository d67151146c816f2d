"""The label store's tables. Ids are content hashes, so that writing a row twice is harmless.

Every change here needs a revision under `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Double, ForeignKey, Index, MetaData, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
_LIVE = text("undone_at IS NULL")


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


class PreferenceRow(Base):
    __tablename__ = "preferences"
    __table_args__ = (
        Index(
            "uq_preferences_live",
            "comparison_id",
            "rater_id",
            "display_order",
            unique=True,
            sqlite_where=_LIVE,
            postgresql_where=_LIVE,
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), index=True)
    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.id"), index=True)
    client_key: Mapped[str] = mapped_column(unique=True)
    """Names one submission; the same key again is the same submission again."""
    tiers: Mapped[list[Any]]
    strength: Mapped[int | None]
    display_order: Mapped[str]
    """Answer indices as shown, comma-separated."""
    rationale: Mapped[str] = mapped_column(Text)
    milliseconds: Mapped[int | None]
    weight: Mapped[float] = mapped_column(Double)
    created_at: Mapped[datetime]
    undone_at: Mapped[datetime | None]


class EditRow(Base):
    __tablename__ = "edits"

    id: Mapped[str] = mapped_column(primary_key=True)
    sample_id: Mapped[str] = mapped_column(ForeignKey("samples.id"), index=True)
    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.id"), index=True)
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
