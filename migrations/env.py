"""Alembic's entry: runs the revisions on the connection that the store hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from controlplane.store.tables import metadata


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("migrations run on a live database: there is no offline mode")
_run(context.config.attributes["connection"])
