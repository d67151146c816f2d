"""Alembic's entry: migrates the connection that `postgrad.db.migrate.to_revision` hands over, in its transaction."""

from alembic import context

from postgrad.db.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
