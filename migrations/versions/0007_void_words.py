"""A word on a checkpoint that came to nothing is told apart from one that was carried out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("approvals", sa.Column("voided_s", sa.Double(), nullable=True))


def downgrade() -> None:
    op.execute(sa.text("UPDATE approvals SET used_s = voided_s WHERE used_s IS NULL"))  # as it was said before
    op.drop_column("approvals", "voided_s")
