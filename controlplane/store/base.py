"""What all tables share: the base class, the words a state may be, the kinds of constraint, and writing many rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeEngine

NODE_STATES = (
    "healthy",
    "suspect",
    "quarantined",
    "drained",
    "remediating",
    "validating",
    "probation",
    "retired",
)
RUN_DESIRED = ("run", "pause", "cancel")
RUN_STATUSES = (
    "draft",
    "waiting_gate",
    "queued",
    "active",
    "paused",
    "needs_human",
    "succeeded",
    "failed",
    "cancelled",
)
# planned -> live -> ended; a planned attempt leaves that state only when the one before it is fenced
ATTEMPT_LIVE = ("submitting", "pending", "starting", "init", "training", "suspect", "draining", "stopping")
ATTEMPT_ENDED = ("succeeded", "failed", "preempted", "stopped", "superseded", "abandoned")
ATTEMPT_STATES = ("planned", *ATTEMPT_LIVE, *ATTEMPT_ENDED)
DECISION_MODES = ("observe", "advise", "act")
DECISION_OPEN = ("proposed", "approved", "executing")
DECISION_STATES = (*DECISION_OPEN, "verified", "failed", "superseded", "expired")
CHECKPOINT_STATES = ("writing", "complete", "validated", "tainted")
LIFECYCLE_STATUSES = ("active", "paused", "succeeded", "failed", "cancelled")
STAGE_STATES = (
    "waiting",
    "preparing",
    "training",
    "evaluating",
    "releasing",
    "held",
    "passed",
    "failed",
    "cancelled",
)
# why a held stage waits for a person: for approval, after a refused requirement, a failed run, a spent budget, a taint
STAGE_HOLDS = ("", "approval", "refused", "failed", "budget", "tainted")
RUN_ROLES = ("prepare", "train", "evaluate", "release")
APPROVAL_VERDICTS = ("approved", "refused")
FAULT_STATES = ("firing", "clear")
INCIDENT_OPEN = ("open", "acked", "resolved")
INCIDENT_STATES = (*INCIDENT_OPEN, "merged", "closed")
DELIVERY_STATES = ("ready", "telling", "told", "dead")
TELEMETRY_KINDS = ("gpu", "nic", "host")

# SQLite numbers rows by itself only in a column of exactly INTEGER; its integers have 64 bits anyway
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


def _in(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    """The column holds one of `values`."""
    return CheckConstraint(_in(column, values), name=column)


def unique_while(name: str, columns: tuple[str, ...], state: str, values: Iterable[str]) -> Index:
    """At most one row a key while `state` is one of `values`: a partial unique index on both databases."""
    where = text(_in(state, values))
    return Index(name, *columns, unique=True, sqlite_where=where, postgresql_where=where)


def points_to(column: str, *, on_delete: str | None = None) -> ForeignKey:
    """A foreign key that is checked at the commit."""
    return ForeignKey(column, ondelete=on_delete, deferrable=True, initially="DEFERRED")


class Row(DeclarativeBase):
    """The base of every row class."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, TypeEngine[Any]]] = {
        str: Text(),
        int: BigInteger(),
        float: Double(),
        bytes: LargeBinary(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


@cache
def _upsert(table: type[Row], dialect: str) -> Any:
    into = cast(Table, table.__table__)
    made: Any = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(into)
    key = [column.name for column in table.__table__.primary_key]
    new = {column.name: made.excluded[column.name] for column in table.__table__.columns if column.name not in key}
    return made.on_conflict_do_update(index_elements=key, set_=new)


@cache
def _insert(table: type[Row]) -> Any:
    return insert(cast(Table, table.__table__))


def upsert(session: Session, table: type[Row], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes many whole rows, past the unit of work; one that is there under the same primary key is replaced."""
    if rows:
        session.connection().execute(_upsert(table, session.get_bind().dialect.name), rows)


def insert_many(session: Session, table: type[Row], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes many new rows, past the unit of work. A default of the table holds for a column that no row has."""
    if rows:
        session.connection().execute(_insert(table), rows)
