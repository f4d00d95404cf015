"""Tables of the controller: runs, attempts, decisions, checkpoints and the timeline."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from controlplane.store.base import (
    ATTEMPT_LIVE,
    ATTEMPT_STATES,
    CHECKPOINT_STATES,
    DECISION_MODES,
    DECISION_OPEN,
    DECISION_STATES,
    RUN_DESIRED,
    RUN_STATUSES,
    Row,
    one_of,
    points_to,
    unique_while,
)


class Lifecycle(Row):
    """A named plan of stages, as it was when runs were made from it."""

    __tablename__ = "lifecycles"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    created_s: Mapped[float]
    created_by: Mapped[str]


class Run(Row):
    """One stage being trained: what is wanted, where it stands."""

    __tablename__ = "runs"
    __table_args__ = (
        one_of("desired", RUN_DESIRED),
        one_of("status", RUN_STATUSES),
        Index("ix_runs_status", "status", "created_s"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    lifecycle_id: Mapped[str | None] = mapped_column(points_to("lifecycles.id"))
    stage: Mapped[str]
    desired: Mapped[str] = mapped_column(default="run")
    status: Mapped[str] = mapped_column(default="queued")
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    write_epoch: Mapped[int] = mapped_column(default=0)
    created_s: Mapped[float]
    created_by: Mapped[str]
    started_s: Mapped[float | None]
    ended_s: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    backend: Mapped[str] = mapped_column(default="local")
    queue_since_s: Mapped[float | None]
    uid: Mapped[str] = mapped_column(default="")


class Attempt(Row):
    """One numbered try of a run, immutable in what it was asked to do."""

    __tablename__ = "attempts"
    __table_args__ = (
        one_of("state", ATTEMPT_STATES),
        UniqueConstraint("run_id", "no"),
        unique_while("one_live_attempt_a_run", ("run_id",), "state", ATTEMPT_LIVE),
        unique_while("one_planned_attempt_a_run", ("run_id",), "state", ("planned",)),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(points_to("runs.id"))
    no: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(default="planned")
    state_since_s: Mapped[float]
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    epoch: Mapped[int]
    nodes: Mapped[list[str]] = mapped_column(default=list)
    excluded_nodes: Mapped[list[str]] = mapped_column(default=list)
    resume_checkpoint_id: Mapped[str | None] = mapped_column(points_to("checkpoints.id"))
    resume_step: Mapped[int | None]
    decision_id: Mapped[str | None] = mapped_column(points_to("decisions.id"))
    backend_uid: Mapped[str] = mapped_column(default="")
    created_s: Mapped[float]
    submitted_s: Mapped[float | None]
    running_s: Mapped[float | None]
    first_step: Mapped[int | None]
    first_step_s: Mapped[float | None]
    last_step: Mapped[int | None]
    ended_s: Mapped[float | None]
    end: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    end_class: Mapped[str] = mapped_column(default="")


class Decision(Row):
    """What the controller chose to do, why, and whether it came true."""

    __tablename__ = "decisions"
    __table_args__ = (
        one_of("mode", DECISION_MODES),
        one_of("state", DECISION_STATES),
        Index("ix_decisions_run", "run_id", "created_s"),
        unique_while("one_open_decision_an_attempt", ("run_id", "attempt_no"), "state", DECISION_OPEN),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str | None] = mapped_column(points_to("runs.id"))
    attempt_no: Mapped[int | None] = mapped_column(Integer)
    action: Mapped[str]
    mode: Mapped[str]
    state: Mapped[str] = mapped_column(default="proposed")
    reason: Mapped[str]
    excluded_nodes: Mapped[list[str]] = mapped_column(default=list)
    checkpoint_id: Mapped[str | None] = mapped_column(points_to("checkpoints.id"))
    evidence: Mapped[list[Any]] = mapped_column(default=list)
    failure_class: Mapped[str] = mapped_column(default="")
    fingerprint: Mapped[str] = mapped_column(default="")
    entity: Mapped[str] = mapped_column(default="")
    progress: Mapped[str] = mapped_column(default="")
    rule: Mapped[str] = mapped_column(default="")
    policy_version: Mapped[str] = mapped_column(default="")
    budgets_before: Mapped[dict[str, Any]] = mapped_column(default=dict)
    budgets_after: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_s: Mapped[float]
    executed_s: Mapped[float | None]
    verified_s: Mapped[float | None]
    verification: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    incident_id: Mapped[str | None] = mapped_column(points_to("incidents.id"))


class LastWord(Row):
    """What a failed member of an attempt said last; `log` is compressed, `place` 0 failed first."""

    __tablename__ = "last_words"
    __table_args__ = (Index("ix_last_words_kept", "kept_s"),)
    run_id: Mapped[str] = mapped_column(points_to("runs.id"), primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    member: Mapped[int] = mapped_column(Integer, primary_key=True)
    place: Mapped[int] = mapped_column(Integer)
    node: Mapped[str]
    exit_code: Mapped[int | None] = mapped_column(Integer)
    said: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    log: Mapped[bytes]
    missing: Mapped[str] = mapped_column(default="")
    kept_s: Mapped[float]


class Checkpoint(Row):
    """A step directory with what is known of it."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        one_of("state", CHECKPOINT_STATES),
        Index("ix_checkpoints_run", "run_id", "step"),
        Index("ix_checkpoints_hash", "hash"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(points_to("runs.id"))
    attempt_no: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int]
    step: Mapped[int]
    path: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(default="writing")
    state_at_s: Mapped[float | None]
    written_at_s: Mapped[float | None]
    bytes: Mapped[int] = mapped_column(default=0)
    bias_checksum: Mapped[str] = mapped_column(default="")
    parent: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    seen_s: Mapped[float]
    hash: Mapped[str | None]  # of its manifest, once that could be read


class Event(Row):
    """A line of the timeline. Only ever added to."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_at", "at_s"),
        Index("ix_events_run", "run_id", "at_s"),
        Index("ix_events_node", "node", "at_s"),
        Index("ix_events_incident", "incident_id", "at_s"),
        Index("ix_events_lifecycle", "lifecycle_id", "at_s"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    at_s: Mapped[float]
    kind: Mapped[str]
    run_id: Mapped[str | None]
    attempt_no: Mapped[int | None] = mapped_column(Integer)
    node: Mapped[str | None]
    incident_id: Mapped[str | None]
    decision_id: Mapped[str | None]
    sentence: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    lifecycle_id: Mapped[str | None]
