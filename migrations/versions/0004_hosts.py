"""Samples of the host beside those of its devices, and who holds the GPUs open."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = ("telemetry_chunks", "telemetry_latest")


def _kinds(*kinds: str) -> None:
    allowed = ", ".join(f"'{kind}'" for kind in kinds)
    for table in _TABLES:
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(op.f(f"ck_{table}_kind"), type_="check")
            batch.create_check_constraint(op.f(f"ck_{table}_kind"), f"kind IN ({allowed})")


def upgrade() -> None:
    _kinds("gpu", "nic", "host")
    with op.batch_alter_table("nodes") as batch:
        batch.add_column(sa.Column("users", sa.JSON(none_as_null=True), nullable=False, server_default="[]"))
    with op.batch_alter_table("nodes") as batch:
        batch.alter_column("users", server_default=None)


def downgrade() -> None:
    for table in _TABLES:
        op.execute(sa.text(f"DELETE FROM {table} WHERE kind = 'host'"))
    with op.batch_alter_table("nodes") as batch:
        batch.drop_column("users")
    _kinds("gpu", "nic")
