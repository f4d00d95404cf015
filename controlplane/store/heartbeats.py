"""The last heartbeat of each rank, as ingest decoded it, and how long a rank has been silent since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from controlplane.store.base import upsert
from controlplane.store.nodes import LastWord
from controlplane.store.tables import Heartbeat
from jobs import contract

TOLD = "told"
"""the key of a heartbeat's body under which stands what was told in the place of one"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The batch that brought a heartbeat: its boot, and when it was made by its node's monotonic clock.

    An agent sends a heartbeat with the first batch that it makes after the file has changed, so this is when it was
    new, whatever the wall clock that the trainer read.
    """

    boot_id: str = ""
    monotonic_s: float = 0.0


def put(
    session: Session, beats: Sequence[contract.Heartbeat], *, now: float, stamps: Sequence[Stamp] | None = None
) -> None:
    """Replaces each rank's heartbeat; of several from one rank the last counts. `now`: the server's receipt."""
    newest: dict[tuple[str, int, int], tuple[contract.Heartbeat, Stamp]] = {}
    for beat, stamp in zip(beats, stamps or [Stamp()] * len(beats), strict=True):
        newest[beat.run_id, beat.attempt_no, beat.rank] = beat, stamp
    upsert(
        session,
        Heartbeat,
        [
            {
                "run_id": beat.run_id,
                "attempt_no": beat.attempt_no,
                "rank": beat.rank,
                "node": beat.node,
                "phase": beat.phase,
                "step": beat.step,
                "first_step": beat.first_step,
                "last_step": beat.last_step,
                "resumed_from": beat.resumed_from,
                "at_s": beat.at_s,
                "received_s": now,
                "boot_id": stamp.boot_id,
                "told_monotonic_s": stamp.monotonic_s,
                "body": asdict(beat),
            }
            for beat, stamp in newest.values()
        ],
    )


def put_told(session: Session, beat: contract.Heartbeat, told: dict[str, Any], *, now: float) -> None:
    """What a job that writes no heartbeats has told otherwise, in the place of its rank 0; `told` says by which way.

    It is no sign of life: such a job speaks when it likes, so nothing follows from its silence.
    """
    put(session, [beat], now=now)
    row = session.get(Heartbeat, (beat.run_id, beat.attempt_no, beat.rank), populate_existing=True)
    if row is not None:
        row.body = {**row.body, TOLD: told}


def told(row: Heartbeat) -> dict[str, Any] | None:
    """What a job told that writes no heartbeats; None of a rank's own heartbeat."""
    found = row.body.get(TOLD)
    return found if isinstance(found, dict) else None


def of_attempt(session: Session, run_id: str, attempt_no: int) -> list[Heartbeat]:
    """An attempt's heartbeats, by rank."""
    query = select(Heartbeat).where(Heartbeat.run_id == run_id, Heartbeat.attempt_no == attempt_no)
    return list(session.scalars(query.order_by(Heartbeat.rank)))


def silent_s(beat: Heartbeat, word: LastWord) -> float:
    """How long a rank had said nothing when its node last spoke, in seconds, by that node's own clocks.

    What was not heard since does not count. A heartbeat of another boot is one that the agent no longer finds: only
    the wall clock spans two boots.
    """
    if beat.boot_id == word.boot_id:
        return max(0.0, word.sent_monotonic_s - beat.told_monotonic_s)
    return max(0.0, word.sent_s - beat.at_s)
