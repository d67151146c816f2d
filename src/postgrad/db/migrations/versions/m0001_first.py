"""Rounds, prompts, samples, raters, comparisons, preferences, edits."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _name(column: str = "id", *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(column, sa.String(255), nullable=nullable)


def _instant(column: str = "created_at", *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(column, sa.DateTime(timezone=True), nullable=nullable)


def _refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}")


def upgrade() -> None:
    op.create_table("rounds", _name(), _name("recipe"), _instant(), sa.PrimaryKeyConstraint("id", name="pk_rounds"))
    op.create_table(
        "prompts",
        _name(),
        sa.Column("conversation", sa.JSON, nullable=False),
        sa.Column("target", sa.Text),
        sa.Column("details", sa.JSON, nullable=False),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
    )
    op.create_table(
        "raters",
        _name(),
        _name("kind"),
        sa.Column("params", sa.JSON, nullable=False),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_raters"),
    )
    _create_samples_and_edits()
    _create_comparisons()
    _create_preferences()


def _create_samples_and_edits() -> None:
    op.create_table(
        "samples",
        _name(),
        _name("prompt_id"),
        _name("round_id"),
        _name("stage"),
        _name("checkpoint"),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        _name("seed"),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("token_ids", sa.JSON, nullable=False),
        _name("finish_reason"),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_samples"),
        _refers("samples", "prompt_id", "prompts"),
        _refers("samples", "round_id", "rounds"),
    )
    op.create_index("ix_samples_prompt_id", "samples", ["prompt_id"])
    op.create_index("ix_samples_round_id", "samples", ["round_id"])
    op.create_table(
        "edits",
        _name(),
        _name("sample_id"),
        _name("rater_id"),
        sa.Column("text", sa.Text, nullable=False),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_edits"),
        _refers("edits", "sample_id", "samples"),
        _refers("edits", "rater_id", "raters"),
    )
    op.create_index("ix_edits_sample_id", "edits", ["sample_id"])
    op.create_index("ix_edits_rater_id", "edits", ["rater_id"])


def _create_comparisons() -> None:
    op.create_table(
        "comparisons",
        _name(),
        _name("prompt_id"),
        _name("round_id"),
        _name("purpose"),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        _refers("comparisons", "prompt_id", "prompts"),
        _refers("comparisons", "round_id", "rounds"),
    )
    op.create_index("ix_comparisons_prompt_id", "comparisons", ["prompt_id"])
    op.create_index("ix_comparisons_round_id_purpose", "comparisons", ["round_id", "purpose"])
    op.create_table(
        "comparison_answers",
        _name("comparison_id"),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        _name("sample_id"),
        sa.PrimaryKeyConstraint("comparison_id", "position", name="pk_comparison_answers"),
        _refers("comparison_answers", "comparison_id", "comparisons"),
        _refers("comparison_answers", "sample_id", "samples"),
    )
    op.create_index("ix_comparison_answers_sample_id", "comparison_answers", ["sample_id"])


def _create_preferences() -> None:
    op.create_table(
        "preferences",
        sa.Column("id", sa.Integer, nullable=False),
        _name("comparison_id"),
        _name("rater_id"),
        _name("client_key"),
        sa.Column("tiers", sa.JSON, nullable=False),
        sa.Column("strength", sa.Integer),
        _name("display_order"),
        sa.Column("rationale", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Integer),
        sa.Column("weight", sa.Double, nullable=False),
        _instant(),
        _instant("undone_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_preferences"),
        sa.UniqueConstraint("client_key", name="uq_preferences_client_key"),
        _refers("preferences", "comparison_id", "comparisons"),
        _refers("preferences", "rater_id", "raters"),
    )
    op.create_index("ix_preferences_comparison_id", "preferences", ["comparison_id"])
    op.create_index("ix_preferences_rater_id", "preferences", ["rater_id"])
    live = sa.text("undone_at IS NULL")
    op.create_index(
        "uq_preferences_live",
        "preferences",
        ["comparison_id", "rater_id", "display_order"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
