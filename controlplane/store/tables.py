"""Every table, as typed row classes: the one door to them, by area.

What is stored, and what may never be true, stands in tables_fleet, tables_training, tables_runs, tables_lifecycles and
tables_people; how it is read and written stands in the store's other modules.

Times are Unix seconds by the server's clock unless a column's comment says otherwise. JSON columns hold plain dicts and
lists: assign a new value, a change in place is not seen. Foreign keys are checked at the commit, so the order of writes
inside one transaction is free. A default is applied when the row is written, not when the object is made.
"""

from __future__ import annotations

from controlplane.store.base import Row
from controlplane.store.tables_fleet import (
    Boot,
    Drill,
    Fault,
    KernelLog,
    Node,
    TelemetryChunk,
    TelemetryLatest,
)
from controlplane.store.tables_lifecycles import (
    Alias,
    AliasMove,
    Approval,
    LifecycleStage,
    LifecycleState,
    StageRun,
)
from controlplane.store.tables_people import (
    AuditEntry,
    Channel,
    Delivery,
    IdempotencyKey,
    Incident,
    Key,
    Lease,
    Token,
)
from controlplane.store.tables_runs import Attempt, Checkpoint, Decision, Event, LastWord, Lifecycle, Run
from controlplane.store.tables_training import ExpertChunk, ExpertLayer, ExpertPart, Heartbeat, StepChunk

metadata = Row.metadata

__all__ = [
    "Alias",
    "AliasMove",
    "Approval",
    "Attempt",
    "AuditEntry",
    "Boot",
    "Channel",
    "Checkpoint",
    "Decision",
    "Delivery",
    "Drill",
    "Event",
    "ExpertChunk",
    "ExpertLayer",
    "ExpertPart",
    "Fault",
    "Heartbeat",
    "IdempotencyKey",
    "Incident",
    "KernelLog",
    "Key",
    "LastWord",
    "Lease",
    "Lifecycle",
    "LifecycleStage",
    "LifecycleState",
    "Node",
    "Row",
    "Run",
    "StageRun",
    "StepChunk",
    "TelemetryChunk",
    "TelemetryLatest",
    "Token",
    "metadata",
]
