"""Alembic environment; `versions` holds one module per schema revision."""
