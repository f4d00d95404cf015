"""Tables of machines and of what they send: nodes, telemetry, faults. No run, no person."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from controlplane.store.base import FAULT_STATES, NODE_STATES, TELEMETRY_KINDS, Row, RowNumber, one_of, points_to


class Node(Row):
    """A machine: who it is, the last batch taken from it, and its session with the controller."""

    __tablename__ = "nodes"
    __table_args__ = (one_of("state", NODE_STATES),)
    name: Mapped[str] = mapped_column(primary_key=True)
    boot_id: Mapped[str] = mapped_column(default="")
    last_sequence: Mapped[int] = mapped_column(default=-1)
    source: Mapped[str] = mapped_column(default="")
    simulated: Mapped[bool] = mapped_column(default=False)
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    users: Mapped[list[Any]] = mapped_column(default=list)  # who holds its GPUs open
    agent_version: Mapped[str] = mapped_column(default="")
    first_seen_s: Mapped[float]
    last_seen_s: Mapped[float]
    sent_s: Mapped[float] = mapped_column(default=0.0)  # agent's clock, when it made the last batch taken in order
    sent_monotonic_s: Mapped[float] = mapped_column(default=0.0)  # the same moment by the node's monotonic clock
    clock_offset_s: Mapped[float] = mapped_column(default=0.0)  # server's clock minus the agent's
    state: Mapped[str] = mapped_column(default="healthy")
    cordoned: Mapped[bool] = mapped_column(default=False)
    state_reason: Mapped[str] = mapped_column(default="")
    state_since_s: Mapped[float]
    session_id: Mapped[str] = mapped_column(default="")


class Boot(Row):
    """The high-water mark of a boot that a node has left: a batch of it that comes again is still known."""

    __tablename__ = "boots"
    node: Mapped[str] = mapped_column(primary_key=True)
    boot_id: Mapped[str] = mapped_column(primary_key=True)
    last_sequence: Mapped[int]
    left_s: Mapped[float]


class TelemetryChunk(Row):
    """Samples of a node's GPUs, NICs or itself over a stretch of time; level 0 as sent, 1 a minute, 2 five minutes."""

    __tablename__ = "telemetry_chunks"
    __table_args__ = (
        one_of("kind", TELEMETRY_KINDS),
        Index("ix_telemetry_chunks_series", "node", "kind", "last_s"),
        Index("ix_telemetry_chunks_merge", "level", "last_s"),
    )
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    node: Mapped[str]
    kind: Mapped[str]
    level: Mapped[int] = mapped_column(Integer, default=0)
    first_s: Mapped[float]  # agent's clock
    last_s: Mapped[float]  # agent's clock
    samples: Mapped[int] = mapped_column(Integer)
    codec: Mapped[str]
    blob: Mapped[bytes]


class TelemetryLatest(Row):
    """The newest sample of a node's GPUs, NICs or of the host."""

    __tablename__ = "telemetry_latest"
    __table_args__ = (one_of("kind", TELEMETRY_KINDS),)
    node: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    at_s: Mapped[float]  # agent's clock
    received_s: Mapped[float]
    codec: Mapped[str]
    blob: Mapped[bytes]


class KernelLog(Row):
    """Lines of the nodes' kernel logs, for the node's and the incident's page."""

    __tablename__ = "kernel_log"
    __table_args__ = (Index("ix_kernel_log_node", "node", "at_s"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    node: Mapped[str]
    at_s: Mapped[float]  # agent's clock
    received_s: Mapped[float]
    priority: Mapped[int] = mapped_column(Integer)
    text: Mapped[str]
    pci_address: Mapped[str | None]


class Fault(Row):
    """What a node saw. The id is the agent's and the same for each telling, so a repeat changes nothing."""

    __tablename__ = "faults"
    __table_args__ = (
        one_of("state", FAULT_STATES),
        Index("ix_faults_state", "state", "node"),
        Index("ix_faults_incident", "incident_id"),
        Index("ix_faults_node", "node", "onset_s"),
        Index("ix_faults_rule", "rule", "received_s"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    rule: Mapped[str]
    severity: Mapped[str]
    action: Mapped[str]
    node: Mapped[str]
    entity: Mapped[str]
    state: Mapped[str]
    onset_s: Mapped[float]  # agent's clock
    last_clean_s: Mapped[float]  # agent's clock
    observed_s: Mapped[float]  # agent's clock
    received_s: Mapped[float]
    clock_offset_s: Mapped[float] = mapped_column(default=0.0)  # server's clock minus the agent's, at that receipt
    cleared_s: Mapped[float | None]  # when the server learned that it is over
    value: Mapped[float | None]  # unknown if the rule judged no number
    threshold: Mapped[float | None]
    sentence: Mapped[str]
    evidence: Mapped[dict[str, Any]] = mapped_column(default=dict)
    run_id: Mapped[str] = mapped_column(default="")
    attempt_no: Mapped[int] = mapped_column(Integer, default=0)
    rank: Mapped[int] = mapped_column(Integer, default=-1)
    incident_id: Mapped[str | None] = mapped_column(points_to("incidents.id"))


class Drill(Row):
    """A fault asked for on a simulated node; handed to its agent once."""

    __tablename__ = "drills"
    __table_args__ = (Index("ix_drills_node", "node", "delivered_s"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str]
    kind: Mapped[str]
    gpu: Mapped[int] = mapped_column(Integer)
    created_s: Mapped[float]
    created_by: Mapped[str]
    delivered_s: Mapped[float | None]
