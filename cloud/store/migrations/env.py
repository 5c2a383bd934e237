"""What Alembic runs: on the connection that ``cloud.store.migrate`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from cloud.store.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through Store.migrate(), which hands over a connection")
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
