"""Tables of lifecycles that are executed: where each stands, its stages, what a run is for, approvals, aliases.

The plan itself is a row of `lifecycles`; a job that was submitted by itself has one too and no state here: its run says
where it stands. Checkpoints are named by their hash, in every table.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from controlplane.store.base import (
    APPROVAL_VERDICTS,
    LIFECYCLE_STATUSES,
    RUN_DESIRED,
    RUN_ROLES,
    STAGE_HOLDS,
    STAGE_STATES,
    Row,
    one_of,
    points_to,
)


class LifecycleState(Row):
    """What is wanted of a lifecycle and where it stands. `source` is its text as it was given; `seq` counts what was
    told of it."""

    __tablename__ = "lifecycle_states"
    __table_args__ = (
        one_of("status", LIFECYCLE_STATUSES),
        one_of("desired", RUN_DESIRED),
        Index("ix_lifecycle_states_name", "name", "created_s"),
    )
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"), primary_key=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="active")
    desired: Mapped[str] = mapped_column(default="run")
    reason: Mapped[str] = mapped_column(default="")
    source: Mapped[str] = mapped_column(default="")
    parent_id: Mapped[str | None] = mapped_column(points_to("lifecycles.id"))
    created_s: Mapped[float]
    ended_s: Mapped[float | None]
    seq: Mapped[int] = mapped_column(Integer, default=0)


class LifecycleStage(Row):
    """One stage of a lifecycle. `init_*`: the checkpoint that it starts from; `candidate_*`: the one that it made, or
    looked at; `gpu_h_before`: GPU-hours that no longer count since a person let it go on; `unread`: which run's disk
    cannot be read, since when and why, while the stage waits for that."""

    __tablename__ = "lifecycle_stages"
    __table_args__ = (one_of("state", STAGE_STATES), one_of("hold", STAGE_HOLDS))
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(default="waiting")
    state_since_s: Mapped[float]
    hold: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")
    round: Mapped[int] = mapped_column(Integer, default=1)
    retries: Mapped[int] = mapped_column(Integer, default=0)
    gpu_h_before: Mapped[float] = mapped_column(default=0.0)
    init_hash: Mapped[str] = mapped_column(default="")
    init_path: Mapped[str] = mapped_column(default="")
    candidate_hash: Mapped[str] = mapped_column(default="")
    candidate_path: Mapped[str] = mapped_column(default="")
    candidate_step: Mapped[int | None]
    candidate_run_id: Mapped[str | None]
    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    wish: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    inherited: Mapped[bool] = mapped_column(default=False)
    unread: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    began_s: Mapped[float | None]
    ended_s: Mapped[float | None]


class StageRun(Row):
    """What a run is for: the how-manieth of a stage's role, on which checkpoint; `continues_id` is the failed run from
    whose checkpoint it goes on, `result` what it found out (jobs.results), read when it had succeeded; the GPU-hours
    of a run that has ended are kept here once nothing of it can come any more."""

    __tablename__ = "stage_runs"
    __table_args__ = (
        one_of("role", RUN_ROLES),
        UniqueConstraint("lifecycle_id", "stage", "role", "item", "no"),
        Index("ix_stage_runs_init", "init_hash"),
    )
    run_id: Mapped[str] = mapped_column(points_to("runs.id"), primary_key=True)
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"))
    stage: Mapped[str]
    role: Mapped[str]
    item: Mapped[str] = mapped_column(default="")
    no: Mapped[int] = mapped_column(Integer)
    round: Mapped[int] = mapped_column(Integer)
    init_path: Mapped[str] = mapped_column(default="")
    init_hash: Mapped[str] = mapped_column(default="")
    continues_id: Mapped[str | None] = mapped_column(points_to("runs.id"))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    used_gpu_h: Mapped[float | None]
    productive_gpu_h: Mapped[float | None]
    queued_gpu_h: Mapped[float | None]


class Approval(Row):
    """A person's word on one checkpoint of one stage: used once, or void when what it was said of was done again."""

    __tablename__ = "approvals"
    __table_args__ = (
        one_of("verdict", APPROVAL_VERDICTS),
        Index("ix_approvals_stage", "lifecycle_id", "stage", "at_s"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"))
    stage: Mapped[str]
    checkpoint_hash: Mapped[str]
    verdict: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    at_s: Mapped[float]
    used_s: Mapped[float | None]
    voided_s: Mapped[float | None]

    @property
    def open(self) -> bool:
        """Whether it still waits to be carried out."""
        return self.used_s is None and self.voided_s is None


class Alias(Row):
    """A name of a checkpoint among the lifecycles of a name."""

    __tablename__ = "aliases"
    owner: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    checkpoint_hash: Mapped[str]
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"))
    stage: Mapped[str] = mapped_column(default="")
    moved_s: Mapped[float]
    moved_by: Mapped[str]


class AliasMove(Row):
    """Where an alias has pointed. Only ever added to."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_alias", "owner", "alias", "at_s"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    alias: Mapped[str]
    before_hash: Mapped[str] = mapped_column(default="")
    checkpoint_hash: Mapped[str]
    lifecycle_id: Mapped[str] = mapped_column(points_to("lifecycles.id"))
    stage: Mapped[str] = mapped_column(default="")
    actor: Mapped[str]
    at_s: Mapped[float]
