"""Runs migrations on the connection that ``fabric.ledger.upgrade`` opened, in its transaction."""

from alembic import context

from fabric.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
