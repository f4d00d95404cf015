"""Tables of what training sends: expert counts, steps, heartbeats. Written by ingest, read by pages and rules."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from controlplane.store.base import Row, RowNumber, points_to


class ExpertPart(Row):
    """One node's share of a step's expert counts, kept until the other nodes' shares arrived and are summed."""

    __tablename__ = "expert_parts"
    __table_args__ = (Index("ix_expert_parts_received", "received_s"),)
    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    received_s: Mapped[float]
    blob: Mapped[bytes]


class ExpertChunk(Row):
    """Counts, biases and statistics of a stretch of steps: whole in `blob` as they came, by layer once merged."""

    __tablename__ = "expert_chunks"
    __table_args__ = (Index("ix_expert_chunks_steps", "run_id", "attempt_no", "last_step"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    run_id: Mapped[str]
    attempt_no: Mapped[int] = mapped_column(Integer)
    level: Mapped[int] = mapped_column(Integer, default=0)
    first_step: Mapped[int]
    last_step: Mapped[int]
    steps: Mapped[int] = mapped_column(Integer)
    layers: Mapped[int] = mapped_column(Integer)
    slots: Mapped[int] = mapped_column(Integer)
    experts: Mapped[int] = mapped_column(Integer)
    top_k: Mapped[int] = mapped_column(Integer)
    codec: Mapped[str]
    blob: Mapped[bytes]
    stats: Mapped[bytes]


class ExpertLayer(Row):
    """Counts and biases of one layer of a merged chunk, so that one layer is read without the others."""

    __tablename__ = "expert_layers"
    chunk_id: Mapped[int] = mapped_column(points_to("expert_chunks.id", on_delete="CASCADE"), primary_key=True)
    layer: Mapped[int] = mapped_column(Integer, primary_key=True)
    counts: Mapped[bytes]
    bias: Mapped[bytes]


class StepChunk(Row):
    """Loss, speed and position of a stretch of steps, each rank's own record."""

    __tablename__ = "step_chunks"
    __table_args__ = (Index("ix_step_chunks_steps", "run_id", "attempt_no", "last_step"),)
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    run_id: Mapped[str]
    attempt_no: Mapped[int] = mapped_column(Integer)
    level: Mapped[int] = mapped_column(Integer, default=0)
    first_step: Mapped[int]
    last_step: Mapped[int]
    records: Mapped[int] = mapped_column(Integer)
    codec: Mapped[str]
    blob: Mapped[bytes]


class Heartbeat(Row):
    """The last heartbeat of a rank of an attempt, decoded; `body` is the whole document."""

    __tablename__ = "heartbeats"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, primary_key=True)
    node: Mapped[str]
    phase: Mapped[str]
    step: Mapped[int | None]
    first_step: Mapped[int | None]
    last_step: Mapped[int | None]
    resumed_from: Mapped[str | None]
    at_s: Mapped[float]  # agent's clock
    received_s: Mapped[float]
    boot_id: Mapped[str] = mapped_column(default="")  # of the batch that brought it
    told_monotonic_s: Mapped[float] = mapped_column(default=0.0)  # when that was made, by its node's monotonic clock
    body: Mapped[dict[str, Any]] = mapped_column(default=dict)
