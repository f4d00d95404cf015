"""Tables of people and of telling them: incidents, deliveries, access, audit, and who leads."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, CheckConstraint, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from controlplane.store.base import (
    DELIVERY_STATES,
    INCIDENT_OPEN,
    INCIDENT_STATES,
    Row,
    one_of,
    points_to,
    unique_while,
)


class Incident(Row):
    """What people handle: one rule root on one entity, from the first finding to the quiet after it."""

    __tablename__ = "incidents"
    __table_args__ = (
        one_of("state", INCIDENT_STATES),
        unique_while("one_open_incident_a_key", ("key",), "state", INCIDENT_OPEN),
        Index("ix_incidents_state", "state", "opened_s"),
        Index("ix_incidents_run", "run_id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    key: Mapped[str]
    rule: Mapped[str]
    severity: Mapped[str]
    action: Mapped[str]
    entity: Mapped[str]
    node: Mapped[str | None]
    gpu: Mapped[int | None] = mapped_column(Integer)
    run_id: Mapped[str | None]
    state: Mapped[str] = mapped_column(default="open")
    title: Mapped[str]
    opened_s: Mapped[float]
    updated_s: Mapped[float]
    acked_s: Mapped[float | None]
    ack_until_s: Mapped[float | None]
    owner: Mapped[str | None]
    resolved_s: Mapped[float | None]
    closed_s: Mapped[float | None]
    reopened: Mapped[int] = mapped_column(Integer, default=0)
    parent_id: Mapped[str | None] = mapped_column(points_to("incidents.id"))
    seq: Mapped[int] = mapped_column(Integer, default=0)
    quiet_until_s: Mapped[float | None]  # nobody is told before: a silence, or flapping
    resolution: Mapped[str] = mapped_column(default="")


class Delivery(Row):
    """A message to be told to a channel, written in the transaction of the transition that it tells.

    It is of an incident or of a lifecycle; `seq` counts the tellings of that one."""

    __tablename__ = "deliveries"
    __table_args__ = (
        one_of("state", DELIVERY_STATES),
        CheckConstraint("(incident_id IS NULL) <> (lifecycle_id IS NULL)", name="about"),
        UniqueConstraint("incident_id", "seq", "channel"),
        UniqueConstraint("lifecycle_id", "seq", "channel"),
        Index("ix_deliveries_due", "state", "due_s"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    incident_id: Mapped[str | None] = mapped_column(points_to("incidents.id"))
    lifecycle_id: Mapped[str | None] = mapped_column(points_to("lifecycle_states.lifecycle_id"))
    seq: Mapped[int] = mapped_column(Integer)
    channel: Mapped[str]
    state: Mapped[str] = mapped_column(default="ready")
    body: Mapped[dict[str, Any]]
    due_s: Mapped[float]
    tries: Mapped[int] = mapped_column(Integer, default=0)
    claimed_s: Mapped[float | None]
    told_s: Mapped[float | None]
    last_error: Mapped[str] = mapped_column(default="")


class Channel(Row):
    """Where messages go. Secrets in `config` leave the store only towards the sender."""

    __tablename__ = "channels"
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    enabled: Mapped[bool] = mapped_column(default=True)


class Token(Row):
    """A bearer token, known by its hash only. Sessions are tokens of kind login, one-time links of kind link."""

    __tablename__ = "tokens"
    __table_args__ = (Index("ix_tokens_kind", "kind", "created_s"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    role: Mapped[str | None]
    sha256: Mapped[str] = mapped_column(unique=True)
    subject: Mapped[str]
    node: Mapped[str | None]
    run_id: Mapped[str | None]
    attempt_no: Mapped[int | None] = mapped_column(Integer)
    epoch: Mapped[int | None]
    created_s: Mapped[float]
    created_by: Mapped[str]
    expires_s: Mapped[float | None]
    revoked_s: Mapped[float | None]
    last_used_s: Mapped[float | None]


class AuditEntry(Row):
    """Who did what to which object, and how it went. Only ever added to."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_at", "at_s"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    at_s: Mapped[float]
    actor: Mapped[str]
    verb: Mapped[str]
    object: Mapped[str]
    request_id: Mapped[str] = mapped_column(default="")
    outcome: Mapped[str]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class IdempotencyKey(Row):
    """The answer once given to a request, to be given again."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("ix_idempotency_at", "at_s"),)
    key: Mapped[str] = mapped_column(primary_key=True)
    actor: Mapped[str] = mapped_column(primary_key=True)
    at_s: Mapped[float]
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any]] = mapped_column(JSON(none_as_null=True))


class Key(Row):
    """A key of the control plane's own. It never leaves the server."""

    __tablename__ = "keys"
    name: Mapped[str] = mapped_column(primary_key=True)
    secret: Mapped[bytes]
    made_s: Mapped[float]


class Lease(Row):
    """Who may act, under a growing epoch."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    boot_id: Mapped[str]
    pid: Mapped[int]
    epoch: Mapped[int]
    renewed_s: Mapped[float]
    ttl_s: Mapped[float]
