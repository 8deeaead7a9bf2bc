"""Runs the migrations on the connection that `service.storage.database.schema` hands over, inside its transaction.

Alembic loads this file by its path; it owns no engine and reads no settings.
"""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run on a connection of the program: use `tamis db upgrade`, not `alembic`")

# Batch mode: SQLite cannot alter a column, so Alembic rebuilds the table.
context.configure(connection=connection, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
