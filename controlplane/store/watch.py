"""What the control plane's rules look at, read in one go: nodes, live attempts, their ranks, findings that still fire.

Reading only; it judges nothing. Times are brought to the server's clock here (agent's time + the node's clock offset).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.store import heartbeats, nodes
from controlplane.store.base import ATTEMPT_LIVE
from controlplane.store.tables import Attempt, Checkpoint, Fault, Heartbeat, Node, Run
from jobs.contract import ContractError
from jobs.contract import Heartbeat as Beat

_ENDING = ("draining", "stopping")


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that has nodes and has not ended."""

    run_id: str
    run_name: str
    no: int
    state: str
    nodes: tuple[str, ...]

    @property
    def ending(self) -> bool:
        """Whether it is being stopped: its silence is meant."""
        return self.state in _ENDING


@dataclass(frozen=True, slots=True)
class RankBeat:
    """A rank's last heartbeat: how long it had been silent at `told_s`, up to when its node's word reaches.

    The silence is by the node's own clock, `told_s` by the server's.
    """

    attempt: LiveAttempt
    beat: Beat
    silent_s: float
    told_s: float


def live_attempts(session: Session) -> list[LiveAttempt]:
    """Every live attempt, by run."""
    rows = session.execute(
        select(Attempt.run_id, Run.name, Attempt.no, Attempt.state, Attempt.nodes)
        .join(Run, Run.id == Attempt.run_id)
        .where(Attempt.state.in_(ATTEMPT_LIVE))
        .order_by(Attempt.run_id, Attempt.no)
    )
    return [LiveAttempt(run_id, name, no, state, tuple(nodes)) for run_id, name, no, state, nodes in rows]


def clock_offsets(session: Session) -> dict[str, float]:
    """Each node's clock offset: server's clock − agent's, in seconds."""
    return {row.name: row.clock_offset_s for row in session.execute(select(Node.name, Node.clock_offset_s))}


def rank_beats(session: Session, attempts: Collection[LiveAttempt]) -> list[RankBeat]:
    """The last heartbeats of these attempts; one that cannot be read or whose node is unknown is left out.

    So is what was told in the place of one: a job is never called hung because it does not write heartbeats.
    """
    wanted = {(attempt.run_id, attempt.no): attempt for attempt in attempts}
    if not wanted:
        return []
    query = select(Heartbeat).where(Heartbeat.run_id.in_({run_id for run_id, _ in wanted}))
    rows = list(session.scalars(query.order_by(Heartbeat.run_id, Heartbeat.rank)))
    words = nodes.last_words(session, {row.node for row in rows})
    found = []
    for row in rows:
        attempt, word = wanted.get((row.run_id, row.attempt_no)), words.get(row.node)
        if attempt is None or word is None or heartbeats.told(row) is not None:
            continue
        try:
            beat = Beat(**row.body)
        except (TypeError, ContractError):
            continue
        found.append(RankBeat(attempt, beat, heartbeats.silent_s(row, word), word.told_s))
    return found


def longest_checkpoints(session: Session, run_ids: Collection[str]) -> dict[str, float]:
    """How long each run's slowest checkpoint took from its state to its manifest, in seconds."""
    took = func.max(Checkpoint.written_at_s - Checkpoint.state_at_s)
    query = select(Checkpoint.run_id, took).where(Checkpoint.run_id.in_(run_ids)).group_by(Checkpoint.run_id)
    return {run_id: seconds for run_id, seconds in session.execute(query) if seconds is not None}


def firing_of_rules(session: Session, rules: Collection[str]) -> list[Fault]:
    """The faults of these rules that fire."""
    query = select(Fault).where(Fault.state == "firing", Fault.rule.in_(list(rules))).order_by(Fault.onset_s, Fault.id)
    return list(session.scalars(query))
