"""Lifecycles that are executed: their states, stages and runs, approvals, aliases, the hashes of checkpoints.

A stage's job was kept as a whole job of its own; from here on it is the job's body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _people()
    _stages()
    _states()
    _columns()
    _rewrite_plans(_body_of)


def downgrade() -> None:
    _rewrite_plans(_whole_job)
    op.drop_index("ix_events_lifecycle", table_name="events")
    op.drop_column("events", "lifecycle_id")
    op.drop_index("ix_checkpoints_hash", table_name="checkpoints")
    op.drop_column("checkpoints", "hash")
    op.drop_index("ix_stage_runs_init", table_name="stage_runs")
    op.drop_table("stage_runs")
    op.drop_index("ix_lifecycle_states_name", table_name="lifecycle_states")
    op.drop_table("lifecycle_states")
    op.drop_table("lifecycle_stages")
    op.drop_index("ix_approvals_stage", table_name="approvals")
    op.drop_table("approvals")
    op.drop_table("aliases")
    op.drop_index("ix_alias_moves_alias", table_name="alias_moves")
    op.drop_table("alias_moves")


def _people() -> None:
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("before_hash", sa.Text(), nullable=False),
        sa.Column("checkpoint_hash", sa.Text(), nullable=False),
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_alias_moves_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    op.create_index("ix_alias_moves_alias", "alias_moves", ["owner", "alias", "at_s"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("checkpoint_hash", sa.Text(), nullable=False),
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("moved_s", sa.Double(), nullable=False),
        sa.Column("moved_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_aliases_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("owner", "alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("checkpoint_hash", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("used_s", sa.Double(), nullable=True),
        sa.CheckConstraint("verdict IN ('approved', 'refused')", name=op.f("ck_approvals_verdict")),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_approvals_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
    )
    op.create_index("ix_approvals_stage", "approvals", ["lifecycle_id", "stage", "at_s"], unique=False)


def _stages() -> None:
    op.create_table(
        "lifecycle_stages",
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_since_s", sa.Double(), nullable=False),
        sa.Column("hold", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("gpu_h_before", sa.Double(), nullable=False),
        sa.Column("init_hash", sa.Text(), nullable=False),
        sa.Column("init_path", sa.Text(), nullable=False),
        sa.Column("candidate_hash", sa.Text(), nullable=False),
        sa.Column("candidate_path", sa.Text(), nullable=False),
        sa.Column("candidate_step", sa.BigInteger(), nullable=True),
        sa.Column("candidate_run_id", sa.Text(), nullable=True),
        sa.Column("verdict", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("wish", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("inherited", sa.Boolean(), nullable=False),
        sa.Column("began_s", sa.Double(), nullable=True),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "hold IN ('', 'approval', 'refused', 'failed', 'budget', 'tainted')", name=op.f("ck_lifecycle_stages_hold")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'preparing', 'training', 'evaluating', 'releasing', 'held', 'passed', 'failed', "
            "'cancelled')",
            name=op.f("ck_lifecycle_stages_state"),
        ),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_lifecycle_stages_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("lifecycle_id", "name", name=op.f("pk_lifecycle_stages")),
    )


def _states() -> None:
    op.create_table(
        "lifecycle_states",
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("desired", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.CheckConstraint("desired IN ('run', 'pause', 'cancel')", name=op.f("ck_lifecycle_states_desired")),
        sa.CheckConstraint(
            "status IN ('active', 'paused', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_lifecycle_states_status"),
        ),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_lifecycle_states_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["lifecycles.id"],
            name=op.f("fk_lifecycle_states_parent_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("lifecycle_id", name=op.f("pk_lifecycle_states")),
    )
    op.create_index("ix_lifecycle_states_name", "lifecycle_states", ["name", "created_s"], unique=False)
    op.create_table(
        "stage_runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("lifecycle_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("no", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("init_path", sa.Text(), nullable=False),
        sa.Column("init_hash", sa.Text(), nullable=False),
        sa.Column("continues_id", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.CheckConstraint("role IN ('prepare', 'train', 'evaluate', 'release')", name=op.f("ck_stage_runs_role")),
        sa.ForeignKeyConstraint(
            ["continues_id"],
            ["runs.id"],
            name=op.f("fk_stage_runs_continues_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_stage_runs_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_stage_runs_run_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_stage_runs")),
        sa.UniqueConstraint(
            "lifecycle_id", "stage", "role", "item", "no", name=op.f("uq_stage_runs_lifecycle_id_stage_role_item_no")
        ),
    )
    op.create_index("ix_stage_runs_init", "stage_runs", ["init_hash"], unique=False)


def _columns() -> None:
    op.add_column("checkpoints", sa.Column("hash", sa.Text(), nullable=True))
    op.create_index("ix_checkpoints_hash", "checkpoints", ["hash"], unique=False)
    op.add_column("events", sa.Column("lifecycle_id", sa.Text(), nullable=True))
    op.create_index("ix_events_lifecycle", "events", ["lifecycle_id", "at_s"], unique=False)


def _rewrite_plans(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    plans = sa.table("lifecycles", sa.column("id", sa.Text()), sa.column("spec", sa.JSON(none_as_null=True)))
    connection = op.get_bind()
    for row in connection.execute(sa.select(plans.c.id, plans.c.spec)).all():
        connection.execute(sa.update(plans).where(plans.c.id == row.id).values(spec=change(row.spec)))


def _body_of(plan: dict[str, Any]) -> dict[str, Any]:
    stages = [{**one, "job": one["job"].get("spec", one["job"])} for one in plan["spec"]["stages"]]
    return {**plan, "spec": {"stages": stages}}


def _whole_job(plan: dict[str, Any]) -> dict[str, Any]:
    """The first stage alone: no more was known before."""
    first = plan["spec"]["stages"][0]
    job = {"apiVersion": "trimtab/v1", "kind": "Job", "metadata": plan["metadata"], "spec": first["job"]}
    return {**plan, "spec": {"stages": [{"name": first["name"], "job": job}]}}
