"""Who may act: a database row with a growing epoch. It decides nothing about what the holder does with it.

A holder renews; when it stops, another takes over after `ttl_s` under the next epoch. All who ask for one lease must
mean the same time by `now`: `shared_now` gives it. Each write of the holder calls
`guard` in its own transaction, so that a holder that was paused past its lease cannot change anything afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from controlplane.store.tables import Lease


class LeaseLost(RuntimeError):
    """The lease belongs to another holder, or to nobody: nothing may be written in its name."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that asks for a lease. `boot_id` tells apart machines, their boots and process-id namespaces."""

    name: str
    boot_id: str
    pid: int


def this_process(name: str) -> Holder:
    """The calling process as a holder; two containers of one machine differ by their process-id namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    known = boot.exists() and namespace.exists()
    return Holder(name, f"{boot.read_text().strip()}/{namespace.readlink()}" if known else "", os.getpid())


def process_alive(pid: int) -> bool:
    """Whether a process of this machine has the id. Another user's process counts as alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def shared_now(session: Session, now: float) -> float:
    """The time by which a lease is judged, Unix seconds: the database's own on PostgreSQL, which several hosts share,
    each with a clock of its own; `now` on SQLite, whose file and clock are one host's.

    Asked before the lease's row is locked, so waiting for the lock makes it early, and a lease end early, never late.
    """
    if session.get_bind().dialect.name != "postgresql":
        return now
    return float(session.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())


def _held(session: Session, name: str) -> Lease | None:
    return session.scalars(select(Lease).where(Lease.name == name).with_for_update()).one_or_none()


def _first(session: Session, name: str, holder: Holder, *, now: float, ttl_s: float) -> int | None:
    """Makes the row; None if another process made it in the same moment."""
    try:
        with session.begin_nested():
            session.add(
                Lease(
                    name=name,
                    holder=holder.name,
                    boot_id=holder.boot_id,
                    pid=holder.pid,
                    epoch=1,
                    renewed_s=now,
                    ttl_s=ttl_s,
                )
            )
    except IntegrityError:
        return None
    return 1


def acquire(
    session: Session,
    name: str,
    holder: Holder,
    *,
    now: float,
    ttl_s: float,
    alive: Callable[[int], bool] = process_alive,
) -> int | None:
    """Takes the lease if it is free, run out, or held by a dead process of this very boot.

    Returns the new epoch, above every earlier one, or None while somebody else holds it. A holder that asks again
    (a restart under the same name and pid included) gets a new epoch too: its former writes are fenced.
    """
    lease = _held(session, name)
    if lease is None:
        return _first(session, name, holder, now=now, ttl_s=ttl_s)
    same_boot = holder.boot_id != "" and lease.boot_id == holder.boot_id
    free = (
        now >= lease.renewed_s + lease.ttl_s
        or (lease.holder, lease.boot_id, lease.pid) == (holder.name, holder.boot_id, holder.pid)
        or (same_boot and not alive(lease.pid))
    )
    if not free:
        return None
    lease.holder, lease.boot_id, lease.pid = holder.name, holder.boot_id, holder.pid
    lease.epoch += 1
    lease.renewed_s, lease.ttl_s = now, ttl_s
    session.flush()
    return lease.epoch


def renew(session: Session, name: str, epoch: int, *, now: float) -> None:
    """Extends the lease to now + ttl. LeaseLost if another epoch has begun."""
    lease = _held(session, name)
    if lease is None or lease.epoch != epoch:
        raise LeaseLost(_lost(name, epoch, lease))
    lease.renewed_s = now
    session.flush()


def guard(session: Session, name: str, epoch: int) -> None:
    """Ties the caller's transaction to its epoch: LeaseLost, and so no write, once another epoch has begun.

    The row stays locked until the transaction ends: nobody can take the lease between the guard and the commit.
    """
    lease = _held(session, name)
    if lease is None or lease.epoch != epoch:
        raise LeaseLost(_lost(name, epoch, lease))


def release(session: Session, name: str, epoch: int, *, now: float) -> None:
    """Gives the lease back at once, at a clean stop. Not an error if it is already another's."""
    lease = _held(session, name)
    if lease is not None and lease.epoch == epoch:
        lease.renewed_s = now - lease.ttl_s
        session.flush()


def read(session: Session, name: str) -> Lease | None:
    """The lease as it stands, for status pages."""
    return session.get(Lease, name)


def _lost(name: str, epoch: int, lease: Lease | None) -> str:
    if lease is None:
        return f"lease {name}: epoch {epoch} is over, nobody holds it"
    return f"lease {name}: epoch {epoch} is over, {lease.holder} holds epoch {lease.epoch}"
