"""Faults and findings become incidents; time and people move them on. One check is one function, one write at its end.

`check_once` is level-triggered: called twice it does nothing twice, called late it catches up. The verbs are what a
person may do to an incident; each is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.rules import incident_machine as machine
from controlplane.rules.book import RuleBook
from controlplane.rules.findings import Judgement
from controlplane.rules.incident_machine import Event, IllegalTransition, Members, State
from controlplane.services.casebook import Casebook
from controlplane.services.findings import Watch, tellings
from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.services.transitions import Desk, label
from controlplane.store import faults, incidents, leases, nodes, watch
from controlplane.store.engine import Session, Sessions, Store
from controlplane.store.tables import Incident

LEASE = "control"
MAX_SILENCE_MINUTES = 7 * 24 * 60


_TAKES_OUT = ("restart", "rma")


class IncidentNotFound(LookupError):
    """There is no incident of this number."""


class IncidentRefused(ValueError):
    """The incident is in a state in which this cannot be done; the message says which."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check did: incident numbers."""

    opened: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    faults: int = 0

    def __bool__(self) -> bool:
        return bool(self.opened or self.moved or self.merged or self.faults)


def check_once(store: Store, rules: Watch, lease_epoch: int, now: float) -> Checked:
    """Runs the server's rules, turns what is new into incidents, and does what time makes due.

    Reads first and takes the write lock only if there is something to write. LeaseLost if another server leads.
    """
    with store.read() as session:
        judgement = rules.judge(session, now)
        if not _work_waits(session, rules, judgement, now):
            return Checked()
    with store.write() as session:
        leases.guard(session, LEASE, lease_epoch)
        firing = watch.firing_of_rules(session, rules.book.rules)
        faults.record(session, tellings(judgement, firing, now), now=now)
        desk = Desk(session, now)
        casebook = Casebook(desk, rules.book, nodes=len(nodes.listed(session)))
        waiting = incidents.unlinked_faults(session)
        for fault in waiting:
            casebook.place(fault)
        casebook.count_storms()
        moved = _time_moves(desk, casebook, rules.book)
        return Checked(tuple(casebook.opened), moved, tuple(casebook.merged), len(waiting))


def _work_waits(session: Session, rules: Watch, judgement: Judgement, now: float) -> bool:
    if incidents.unlinked_faults(session, limit=1):
        return True
    if tellings(judgement, watch.firing_of_rules(session, rules.book.rules), now):
        return True
    rows = incidents.unclosed(session)
    counted = incidents.members(session, [row.id for row in rows])
    return any(
        _silence_ended(row, now) or _due(row, counted.get(row.id, Members(0)), rules.book, now) is not None
        for row in rows
    )


def _silence_ended(incident: Incident, now: float) -> bool:
    return incident.quiet_until_s is not None and incident.quiet_until_s <= now


def _due(incident: Incident, members: Members, book: RuleBook, now: float) -> Event | None:
    standing = machine.Standing(
        state=State(incident.state), ack_until_s=incident.ack_until_s, resolved_s=incident.resolved_s
    )
    return machine.due(standing, members, hold_s=book.hold_s(incident.rule), now=now)


def _latched(session: Session, incident: Incident) -> bool:
    """Whether an incident that took its node out of service waits for the node: it is over when that is well again, or
    when a person says so, and not when the fault has fallen silent."""
    if incident.action not in _TAKES_OUT or not incident.node:
        return False
    node = nodes.get(session, incident.node)
    return node is not None and node.state in OUT_OF_SERVICE


def _time_moves(desk: Desk, casebook: Casebook, book: RuleBook) -> tuple[int, ...]:
    moved = []
    for case in list(casebook.cases.values()):
        incident = case.incident
        event = _due(incident, case.members, book, desk.now)
        match event:
            case Event.MEMBERS_CLEAR if _latched(desk.session, incident):
                event = None
            case Event.MEMBERS_CLEAR:
                incident.resolution = f"{incidents.BY_ITSELF} for {book.hold_s(incident.rule):.0f} s"
                desk.move(incident, event, f"{label(incident.number)} resolved: {incident.resolution}", level="ok")
            case Event.ACK_ENDS:
                desk.move(incident, event, f"{label(incident.number)} is nobody's again: 4 h have passed", level="warn")
            case Event.QUIET:
                desk.move(incident, event, f"{label(incident.number)} closed after 15 quiet minutes")
        if event is not None:
            moved.append(incident.number)
        if _silence_ended(incident, desk.now):
            desk.end_silence(incident)
    return tuple(moved)


# --- what people do --------------------------------------------------------------------------------------------------


def ack(store: Sessions, number: int, *, actor: str, now: float) -> None:
    """Takes an incident: for 4 h it is `actor`'s. IncidentNotFound, IncidentRefused."""

    def take(desk: Desk, incident: Incident) -> None:
        if incident.state == State.ACKED:
            raise IllegalTransition(f"{label(number)} is {incident.owner}'s already")
        desk.move(incident, Event.ACK, f"{actor} took {label(number)}", owner=actor)

    _change(store, number, now, take)


def resolve(store: Sessions, number: int, *, actor: str, reason: str, now: float) -> None:
    """Ends an incident by hand; while its cause fires it stays quiet. IncidentNotFound, IncidentRefused."""

    def end(desk: Desk, incident: Incident) -> None:
        incident.resolution = reason
        desk.move(incident, Event.RESOLVE, f"{actor} resolved {label(number)}: {reason}", level="ok")

    _change(store, number, now, end)


def silence(store: Sessions, number: int, *, actor: str, minutes: float, reason: str, now: float) -> None:
    """Nobody is told of this incident's key for some minutes, across flaps too. Its state does not change.

    ValueError unless 0 < minutes ≤ a week. IncidentNotFound, IncidentRefused for one that is over for good.
    """
    if not 0 < minutes <= MAX_SILENCE_MINUTES:
        raise ValueError(f"minutes must be above 0 and at most {MAX_SILENCE_MINUTES}")

    def hush(desk: Desk, incident: Incident) -> None:
        if incident.state in machine.TERMINAL:
            raise IllegalTransition(f"an incident that is {incident.state} has nothing to silence")
        sentence = f"{actor} silenced {label(number)} for {minutes:g} minutes: {reason}"
        desk.silence(incident, now + 60 * minutes, sentence)

    _change(store, number, now, hush)


def _change(store: Sessions, number: int, now: float, change: Callable[[Desk, Incident], None]) -> None:
    with store.write() as session:
        incident = incidents.by_number(session, number, lock=True)
        if incident is None:
            raise IncidentNotFound(f"there is no incident {number}")
        try:
            change(Desk(session, now), incident)
        except IllegalTransition as error:
            raise IncidentRefused(str(error)) from error
