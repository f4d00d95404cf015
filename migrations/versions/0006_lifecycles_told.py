"""Lifecycles are told to channels as incidents are; a stage says for which disk it waits; costs of ended runs stay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COSTS = ("used_gpu_h", "productive_gpu_h", "queued_gpu_h")


def upgrade() -> None:
    with op.batch_alter_table("lifecycle_states") as batch:
        batch.add_column(sa.Column("seq", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("lifecycle_states") as batch:
        batch.alter_column("seq", server_default=None)
    op.add_column("lifecycle_stages", sa.Column("unread", sa.JSON(none_as_null=True), nullable=True))
    for name in _COSTS:
        op.add_column("stage_runs", sa.Column(name, sa.Double(), nullable=True))
    with op.batch_alter_table("deliveries") as batch:
        batch.alter_column("incident_id", existing_type=sa.Text(), nullable=True)
        batch.add_column(sa.Column("lifecycle_id", sa.Text(), nullable=True))
        batch.create_foreign_key(
            op.f("fk_deliveries_lifecycle_id"),
            "lifecycle_states",
            ["lifecycle_id"],
            ["lifecycle_id"],
            initially="DEFERRED",
            deferrable=True,
        )
        batch.create_check_constraint(op.f("ck_deliveries_about"), "(incident_id IS NULL) <> (lifecycle_id IS NULL)")
        batch.create_unique_constraint(
            op.f("uq_deliveries_lifecycle_id_seq_channel"), ["lifecycle_id", "seq", "channel"]
        )


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM deliveries WHERE incident_id IS NULL"))
    with op.batch_alter_table("deliveries") as batch:
        batch.drop_constraint(op.f("uq_deliveries_lifecycle_id_seq_channel"), type_="unique")
        batch.drop_constraint(op.f("ck_deliveries_about"), type_="check")
        batch.drop_constraint(op.f("fk_deliveries_lifecycle_id"), type_="foreignkey")
        batch.drop_column("lifecycle_id")
        batch.alter_column("incident_id", existing_type=sa.Text(), nullable=False)
    for name in _COSTS:
        op.drop_column("stage_runs", name)
    op.drop_column("lifecycle_stages", "unread")
    op.drop_column("lifecycle_states", "seq")
