"""The tables of the spine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_at", "audit", ["at_s"], unique=False)
    op.create_table(
        "boots",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("left_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("node", "boot_id", name=op.f("pk_boots")),
    )
    op.create_table(
        "channels",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_channels")),
    )
    op.create_table(
        "drills",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("gpu", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("delivered_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drills")),
    )
    op.create_index("ix_drills_node", "drills", ["node", "delivered_s"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("attempt_no", sa.Integer(), nullable=True),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("incident_id", sa.Text(), nullable=True),
        sa.Column("decision_id", sa.Text(), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_at", "events", ["at_s"], unique=False)
    op.create_index("ix_events_incident", "events", ["incident_id", "at_s"], unique=False)
    op.create_index("ix_events_node", "events", ["node", "at_s"], unique=False)
    op.create_index("ix_events_run", "events", ["run_id", "at_s"], unique=False)
    op.create_table(
        "expert_chunks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("experts", sa.Integer(), nullable=False),
        sa.Column("top_k", sa.Integer(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.Column("stats", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_expert_chunks")),
    )
    op.create_index("ix_expert_chunks_steps", "expert_chunks", ["run_id", "attempt_no", "last_step"], unique=False)
    op.create_table(
        "expert_parts",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "attempt_no", "step", "node", name=op.f("pk_expert_parts")),
    )
    op.create_index("ix_expert_parts_received", "expert_parts", ["received_s"], unique=False)
    op.create_table(
        "heartbeats",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("first_step", sa.BigInteger(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("resumed_from", sa.Text(), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("told_monotonic_s", sa.Double(), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "attempt_no", "rank", name=op.f("pk_heartbeats")),
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "actor", name=op.f("pk_idempotency")),
    )
    op.create_index("ix_idempotency_at", "idempotency", ["at_s"], unique=False)
    op.create_table(
        "incidents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("gpu", sa.Integer(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("opened_s", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("acked_s", sa.Double(), nullable=True),
        sa.Column("ack_until_s", sa.Double(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("resolved_s", sa.Double(), nullable=True),
        sa.Column("closed_s", sa.Double(), nullable=True),
        sa.Column("reopened", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("quiet_until_s", sa.Double(), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('open', 'acked', 'resolved', 'merged', 'closed')", name=op.f("ck_incidents_state")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["incidents.id"], name=op.f("fk_incidents_parent_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
        sa.UniqueConstraint("number", name=op.f("uq_incidents_number")),
    )
    op.create_index("ix_incidents_run", "incidents", ["run_id"], unique=False)
    op.create_index("ix_incidents_state", "incidents", ["state", "opened_s"], unique=False)
    op.create_index(
        "one_open_incident_a_key",
        "incidents",
        ["key"],
        unique=True,
        sqlite_where=sa.text("state IN ('open', 'acked', 'resolved')"),
        postgresql_where=sa.text("state IN ('open', 'acked', 'resolved')"),
    )
    op.create_table(
        "kernel_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("pci_address", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kernel_log")),
    )
    op.create_index("ix_kernel_log_node", "kernel_log", ["node", "at_s"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("renewed_s", sa.Double(), nullable=False),
        sa.Column("ttl_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "lifecycles",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lifecycles")),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("facts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("first_seen_s", sa.Double(), nullable=False),
        sa.Column("last_seen_s", sa.Double(), nullable=False),
        sa.Column("sent_s", sa.Double(), nullable=False),
        sa.Column("sent_monotonic_s", sa.Double(), nullable=False),
        sa.Column("clock_offset_s", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cordoned", sa.Boolean(), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_since_s", sa.Double(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('healthy', 'suspect', 'quarantined', 'drained', 'remediating', 'validating', 'probation', "
            "'retired')",
            name=op.f("ck_nodes_state"),
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_nodes")),
    )
    op.create_table(
        "step_chunks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step_chunks")),
    )
    op.create_index("ix_step_chunks_steps", "step_chunks", ["run_id", "attempt_no", "last_step"], unique=False)
    op.create_table(
        "telemetry_chunks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("first_s", sa.Double(), nullable=False),
        sa.Column("last_s", sa.Double(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('gpu', 'nic')", name=op.f("ck_telemetry_chunks_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_telemetry_chunks")),
    )
    op.create_index("ix_telemetry_chunks_merge", "telemetry_chunks", ["level", "last_s"], unique=False)
    op.create_index("ix_telemetry_chunks_series", "telemetry_chunks", ["node", "kind", "last_s"], unique=False)
    op.create_table(
        "telemetry_latest",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("kind IN ('gpu', 'nic')", name=op.f("ck_telemetry_latest_kind")),
        sa.PrimaryKeyConstraint("node", "kind", name=op.f("pk_telemetry_latest")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("attempt_no", sa.Integer(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=True),
        sa.Column("revoked_s", sa.Double(), nullable=True),
        sa.Column("last_used_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("sha256", name=op.f("uq_tokens_sha256")),
    )
    op.create_index("ix_tokens_kind", "tokens", ["kind", "created_s"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("incident_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("due_s", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("claimed_s", sa.Double(), nullable=True),
        sa.Column("told_s", sa.Double(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'telling', 'told', 'dead')", name=op.f("ck_deliveries_state")),
        sa.ForeignKeyConstraint(
            ["incident_id"],
            ["incidents.id"],
            name=op.f("fk_deliveries_incident_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("incident_id", "seq", "channel", name=op.f("uq_deliveries_incident_id_seq_channel")),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["state", "due_s"], unique=False)
    op.create_table(
        "expert_layers",
        sa.Column("chunk_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("bias", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["chunk_id"],
            ["expert_chunks.id"],
            name=op.f("fk_expert_layers_chunk_id"),
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("chunk_id", "layer", name=op.f("pk_expert_layers")),
    )
    op.create_table(
        "faults",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("onset_s", sa.Double(), nullable=False),
        sa.Column("last_clean_s", sa.Double(), nullable=False),
        sa.Column("observed_s", sa.Double(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("clock_offset_s", sa.Double(), nullable=False),
        sa.Column("cleared_s", sa.Double(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("incident_id", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('firing', 'clear')", name=op.f("ck_faults_state")),
        sa.ForeignKeyConstraint(
            ["incident_id"], ["incidents.id"], name=op.f("fk_faults_incident_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_faults")),
    )
    op.create_index("ix_faults_incident", "faults", ["incident_id"], unique=False)
    op.create_index("ix_faults_node", "faults", ["node", "onset_s"], unique=False)
    op.create_index("ix_faults_rule", "faults", ["rule", "received_s"], unique=False)
    op.create_index("ix_faults_state", "faults", ["state", "node"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("lifecycle_id", sa.Text(), nullable=True),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("desired", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("spec_hash", sa.Text(), nullable=False),
        sa.Column("write_epoch", sa.BigInteger(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("started_s", sa.Double(), nullable=True),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("queue_since_s", sa.Double(), nullable=True),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.CheckConstraint("desired IN ('run', 'pause', 'cancel')", name=op.f("ck_runs_desired")),
        sa.CheckConstraint(
            "status IN ('draft', 'waiting_gate', 'queued', 'active', 'paused', 'needs_human', 'succeeded', "
            "'failed', 'cancelled')",
            name=op.f("ck_runs_status"),
        ),
        sa.ForeignKeyConstraint(
            ["lifecycle_id"],
            ["lifecycles.id"],
            name=op.f("fk_runs_lifecycle_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_status", "runs", ["status", "created_s"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_at_s", sa.Double(), nullable=True),
        sa.Column("written_at_s", sa.Double(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("bias_checksum", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seen_s", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "state IN ('writing', 'complete', 'validated', 'tainted')", name=op.f("ck_checkpoints_state")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("path", name=op.f("uq_checkpoints_path")),
    )
    op.create_index("ix_checkpoints_run", "checkpoints", ["run_id", "step"], unique=False)
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("attempt_no", sa.Integer(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("excluded_nodes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=True),
        sa.Column("evidence", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("failure_class", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.Column("budgets_before", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("budgets_after", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("executed_s", sa.Double(), nullable=True),
        sa.Column("verified_s", sa.Double(), nullable=True),
        sa.Column("verification", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("incident_id", sa.Text(), nullable=True),
        sa.CheckConstraint("mode IN ('observe', 'advise', 'act')", name=op.f("ck_decisions_mode")),
        sa.CheckConstraint(
            "state IN ('proposed', 'approved', 'executing', 'verified', 'failed', 'superseded', 'expired')",
            name=op.f("ck_decisions_state"),
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name=op.f("fk_decisions_checkpoint_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["incident_id"],
            ["incidents.id"],
            name=op.f("fk_decisions_incident_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_decisions_run_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index("ix_decisions_run", "decisions", ["run_id", "created_s"], unique=False)
    op.create_index(
        "one_open_decision_an_attempt",
        "decisions",
        ["run_id", "attempt_no"],
        unique=True,
        sqlite_where=sa.text("state IN ('proposed', 'approved', 'executing')"),
        postgresql_where=sa.text("state IN ('proposed', 'approved', 'executing')"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("no", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_since_s", sa.Double(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("spec_hash", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("nodes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("excluded_nodes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("resume_checkpoint_id", sa.Text(), nullable=True),
        sa.Column("resume_step", sa.BigInteger(), nullable=True),
        sa.Column("decision_id", sa.Text(), nullable=True),
        sa.Column("backend_uid", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("submitted_s", sa.Double(), nullable=True),
        sa.Column("running_s", sa.Double(), nullable=True),
        sa.Column("first_step", sa.BigInteger(), nullable=True),
        sa.Column("first_step_s", sa.Double(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.Column("end", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("end_class", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('planned', 'submitting', 'pending', 'starting', 'init', 'training', 'suspect', 'draining', "
            "'stopping', 'succeeded', 'failed', 'preempted', 'stopped', 'superseded', 'abandoned')",
            name=op.f("ck_attempts_state"),
        ),
        sa.ForeignKeyConstraint(
            ["decision_id"],
            ["decisions.id"],
            name=op.f("fk_attempts_decision_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["resume_checkpoint_id"],
            ["checkpoints.id"],
            name=op.f("fk_attempts_resume_checkpoint_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_attempts_run_id"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("name", name=op.f("uq_attempts_name")),
        sa.UniqueConstraint("run_id", "no", name=op.f("uq_attempts_run_id_no")),
    )
    op.create_index(
        "one_live_attempt_a_run",
        "attempts",
        ["run_id"],
        unique=True,
        sqlite_where=sa.text(
            "state IN ('submitting', 'pending', 'starting', 'init', 'training', 'suspect', 'draining', 'stopping')"
        ),
        postgresql_where=sa.text(
            "state IN ('submitting', 'pending', 'starting', 'init', 'training', 'suspect', 'draining', 'stopping')"
        ),
    )
    op.create_index(
        "one_planned_attempt_a_run",
        "attempts",
        ["run_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('planned')"),
        postgresql_where=sa.text("state IN ('planned')"),
    )


def downgrade() -> None:
    op.drop_index(
        "one_planned_attempt_a_run",
        table_name="attempts",
        sqlite_where=sa.text("state IN ('planned')"),
        postgresql_where=sa.text("state IN ('planned')"),
    )
    op.drop_index(
        "one_live_attempt_a_run",
        table_name="attempts",
        sqlite_where=sa.text(
            "state IN ('submitting', 'pending', 'starting', 'init', 'training', 'suspect', 'draining', 'stopping')"
        ),
        postgresql_where=sa.text(
            "state IN ('submitting', 'pending', 'starting', 'init', 'training', 'suspect', 'draining', 'stopping')"
        ),
    )
    op.drop_table("attempts")
    op.drop_index(
        "one_open_decision_an_attempt",
        table_name="decisions",
        sqlite_where=sa.text("state IN ('proposed', 'approved', 'executing')"),
        postgresql_where=sa.text("state IN ('proposed', 'approved', 'executing')"),
    )
    op.drop_index("ix_decisions_run", table_name="decisions")
    op.drop_table("decisions")
    op.drop_index("ix_checkpoints_run", table_name="checkpoints")
    op.drop_table("checkpoints")
    op.drop_index("ix_runs_status", table_name="runs")
    op.drop_table("runs")
    op.drop_index("ix_faults_state", table_name="faults")
    op.drop_index("ix_faults_rule", table_name="faults")
    op.drop_index("ix_faults_node", table_name="faults")
    op.drop_index("ix_faults_incident", table_name="faults")
    op.drop_table("faults")
    op.drop_table("expert_layers")
    op.drop_index("ix_deliveries_due", table_name="deliveries")
    op.drop_table("deliveries")
    op.drop_index("ix_tokens_kind", table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("telemetry_latest")
    op.drop_index("ix_telemetry_chunks_series", table_name="telemetry_chunks")
    op.drop_index("ix_telemetry_chunks_merge", table_name="telemetry_chunks")
    op.drop_table("telemetry_chunks")
    op.drop_index("ix_step_chunks_steps", table_name="step_chunks")
    op.drop_table("step_chunks")
    op.drop_table("nodes")
    op.drop_table("lifecycles")
    op.drop_table("leases")
    op.drop_index("ix_kernel_log_node", table_name="kernel_log")
    op.drop_table("kernel_log")
    op.drop_index(
        "one_open_incident_a_key",
        table_name="incidents",
        sqlite_where=sa.text("state IN ('open', 'acked', 'resolved')"),
        postgresql_where=sa.text("state IN ('open', 'acked', 'resolved')"),
    )
    op.drop_index("ix_incidents_state", table_name="incidents")
    op.drop_index("ix_incidents_run", table_name="incidents")
    op.drop_table("incidents")
    op.drop_index("ix_idempotency_at", table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_table("heartbeats")
    op.drop_index("ix_expert_parts_received", table_name="expert_parts")
    op.drop_table("expert_parts")
    op.drop_index("ix_expert_chunks_steps", table_name="expert_chunks")
    op.drop_table("expert_chunks")
    op.drop_index("ix_events_run", table_name="events")
    op.drop_index("ix_events_node", table_name="events")
    op.drop_index("ix_events_incident", table_name="events")
    op.drop_index("ix_events_at", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_drills_node", table_name="drills")
    op.drop_table("drills")
    op.drop_table("channels")
    op.drop_table("boots")
    op.drop_index("ix_audit_at", table_name="audit")
    op.drop_table("audit")
