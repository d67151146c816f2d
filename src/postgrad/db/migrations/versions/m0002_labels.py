"""Preferences and edits become labels; tasks, assignments, guidelines, accounts, tokens and the audit join them."""

import json
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _name(column: str = "id", *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(column, sa.String(255), nullable=nullable)


def _instant(column: str = "created_at", *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(column, sa.DateTime(timezone=True), nullable=nullable)


def _refers(table: str, column: str, target: str, key: str = "id") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.{key}"], name=f"fk_{table}_{column}")


def _partial_index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def upgrade() -> None:
    op.create_table(
        "guidelines",
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        _name("author_id"),
        _instant(),
        sa.PrimaryKeyConstraint("version", name="pk_guidelines"),
        _refers("guidelines", "author_id", "raters"),
    )
    _create_tasks()
    _create_assignments()
    _create_labels()
    _create_people()
    _move_to_labels()
    op.drop_table("preferences")
    op.drop_table("edits")


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, nullable=False),
        _name("key"),
        _name("kind"),
        _name("round_id"),
        _name("prompt_id"),
        _name("comparison_id", nullable=True),
        _name("sample_id", nullable=True),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("gold", sa.Boolean, nullable=False),
        sa.Column("answer", sa.JSON),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("free", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        _name("state"),
        _instant(),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("key", name="uq_tasks_key"),
        sa.CheckConstraint("free >= 0 AND done >= 0", name="ck_tasks_counts"),
        _refers("tasks", "round_id", "rounds"),
        _refers("tasks", "prompt_id", "prompts"),
        _refers("tasks", "comparison_id", "comparisons"),
        _refers("tasks", "sample_id", "samples"),
    )
    for column in ("round_id", "prompt_id", "comparison_id", "sample_id"):
        op.create_index(f"ix_tasks_{column}", "tasks", [column])
    _partial_index("ix_tasks_queue", "tasks", ["turn", "id"], "free > 0 AND state = 'open' AND NOT gold")
    _partial_index("ix_tasks_gold", "tasks", ["id"], "gold")


def _create_assignments() -> None:
    op.create_table(
        "assignments",
        _name(),
        sa.Column("task_id", sa.Integer, nullable=False),
        _name("rater_id"),
        sa.Column("repeat", sa.Boolean, nullable=False),
        sa.Column("gold", sa.Boolean, nullable=False),
        sa.Column("correct", sa.Boolean),
        _name("state"),
        _name("display_order"),
        _instant("lease_until"),
        sa.Column("draft", sa.JSON),
        sa.Column("draft_version", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        _instant("opened_at"),
        _instant("closed_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_assignments"),
        sa.UniqueConstraint("task_id", "rater_id", "repeat", name="uq_assignments_task_id_rater_id_repeat"),
        _refers("assignments", "task_id", "tasks"),
        _refers("assignments", "rater_id", "raters"),
    )
    op.create_index("ix_assignments_rater_id_opened_at", "assignments", ["rater_id", "opened_at"])
    leased = "state = 'leased'"
    _partial_index("uq_assignments_leased", "assignments", ["rater_id"], leased, unique=True)
    _partial_index("ix_assignments_lease_until", "assignments", ["lease_until"], leased)
    _partial_index("ix_assignments_gold", "assignments", ["rater_id"], "gold")


def _create_labels() -> None:
    op.create_table(
        "labels",
        sa.Column("id", sa.Integer, nullable=False),
        _name("kind"),
        _name("prompt_id"),
        _name("comparison_id", nullable=True),
        _name("sample_id", nullable=True),
        sa.Column("task_id", sa.Integer),
        _name("assignment_id", nullable=True),
        _name("rater_id"),
        _name("client_key"),
        sa.Column("value", sa.JSON, nullable=False),
        _name("display_order"),
        sa.Column("rationale", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Integer),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("guideline", sa.Integer),
        _instant(),
        _instant("undone_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.UniqueConstraint("client_key", name="uq_labels_client_key"),
        _refers("labels", "prompt_id", "prompts"),
        _refers("labels", "comparison_id", "comparisons"),
        _refers("labels", "sample_id", "samples"),
        _refers("labels", "task_id", "tasks"),
        _refers("labels", "assignment_id", "assignments"),
        _refers("labels", "rater_id", "raters"),
        _refers("labels", "guideline", "guidelines", "version"),
    )
    for column in ("kind", "prompt_id", "comparison_id", "sample_id", "task_id", "rater_id"):
        op.create_index(f"ix_labels_{column}", "labels", [column])
    live = "undone_at IS NULL"
    _partial_index("uq_labels_live", "labels", ["comparison_id", "rater_id", "display_order"], live, unique=True)
    _partial_index("uq_labels_assignment", "labels", ["assignment_id"], live, unique=True)


def _create_people() -> None:
    op.create_table(
        "accounts",
        _name("rater_id"),
        _name("name"),
        sa.Column("password", sa.Text, nullable=False),
        _name("role"),
        _name("state"),
        sa.Column("reason", sa.Text, nullable=False),
        _instant(),
        sa.PrimaryKeyConstraint("rater_id", name="pk_accounts"),
        sa.UniqueConstraint("name", name="uq_accounts_name"),
        _refers("accounts", "rater_id", "raters"),
    )
    op.create_table(
        "tokens",
        _name("digest"),
        _name("rater_id"),
        _name("kind"),
        _name("name"),
        _name("scope"),
        _instant("expires_at"),
        _instant(),
        sa.PrimaryKeyConstraint("digest", name="pk_tokens"),
        _refers("tokens", "rater_id", "accounts", "rater_id"),
    )
    op.create_index("ix_tokens_rater_id", "tokens", ["rater_id"])
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, nullable=False),
        _instant("at"),
        _name("actor"),
        _name("action"),
        _name("object"),
        sa.Column("details", sa.JSON, nullable=False),
        _name("previous"),
        _name("digest"),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sa.UniqueConstraint("digest", name="uq_events_digest"),
    )


def _move_to_labels() -> None:
    """Values are written anew in Python: no expression builds the same JSON in both databases."""
    connection = op.get_bind()
    labels = sa.Table("labels", sa.MetaData(), autoload_with=connection)
    old = sa.MetaData()
    old.reflect(connection, only=("preferences", "edits", "comparisons", "samples"))
    preferences, edits, comparisons, samples = (
        old.tables[t] for t in ("preferences", "edits", "comparisons", "samples")
    )
    asked = sa.select(preferences, comparisons.c.prompt_id).join(
        comparisons, comparisons.c.id == preferences.c.comparison_id
    )
    for rows in connection.execute(asked.order_by(preferences.c.id)).partitions(1000):
        connection.execute(
            labels.insert(),
            [
                {
                    "kind": "compare" if sum(map(len, _json(row.tiers))) == 2 else "rank",
                    "value": {
                        "tiers": _json(row.tiers),
                        "strength": row.strength,
                        "both_bad": False,
                        "cannot_judge": "",
                    },
                    **{key: row._mapping[key] for key in _KEPT},
                }
                for row in rows
            ],
        )
    corrected = sa.select(edits, samples.c.prompt_id).join(samples, samples.c.id == edits.c.sample_id)
    for rows in connection.execute(corrected.order_by(edits.c.created_at, edits.c.id)).partitions(1000):
        connection.execute(
            labels.insert(),
            [
                {
                    "kind": "edit",
                    "prompt_id": row.prompt_id,
                    "sample_id": row.sample_id,
                    "rater_id": row.rater_id,
                    "client_key": row.id,
                    "value": {"text": row.text},
                    "display_order": "",
                    "rationale": "",
                    "weight": 1.0,
                    "created_at": row.created_at,
                }
                for row in rows
            ],
        )


_KEPT = (
    "prompt_id",
    "comparison_id",
    "rater_id",
    "client_key",
    "display_order",
    "rationale",
    "milliseconds",
    "weight",
    "created_at",
    "undone_at",
)


def _json(value: object) -> list[list[int]]:
    return json.loads(value) if isinstance(value, str) else value  # type: ignore[return-value]
