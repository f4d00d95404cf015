"""What failed members of an attempt said last, kept past their pods."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "last_words",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("said", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("log", sa.LargeBinary(), nullable=False),
        sa.Column("missing", sa.Text(), nullable=False),
        sa.Column("kept_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_last_words_run_id"), deferrable=True, initially="DEFERRED"
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt_no", "member", name=op.f("pk_last_words")),
    )
    op.create_index("ix_last_words_kept", "last_words", ["kept_s"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_last_words_kept", table_name="last_words")
    op.drop_table("last_words")
