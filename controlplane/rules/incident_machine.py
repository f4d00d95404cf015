"""The life of an incident as a table, and the pure questions around it. It knows no database and tells nobody.

One row a transition, rendered into ARCHITECTURE.md by `as_markdown`. A service asks which events are due (`due`),
applies them (`apply`) and stores what comes out; whether a transition is told is the row's last column, suppression is
asked by the service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from controlplane.rules.findings import SEVERITIES

SETTLE_S = 2.0
SETTLE_BUSY_S = 10.0
BUSY_PER_S = 5
ACK_S = 4 * 3600.0
REOPEN_S = 15 * 60.0
STORM_WINDOW_S = 60.0
STORM_LEAST = 8
STORM_PART = 0.01
FLAP_REOPENS = 3
FLAP_WINDOW_S = 3600.0
FLAP_QUIET_S = 30 * 60.0


class State(StrEnum):
    """Where an incident stands; NONE is before it exists."""

    NONE = "none"
    OPEN = "open"
    ACKED = "acked"
    RESOLVED = "resolved"
    MERGED = "merged"
    CLOSED = "closed"


class Event(StrEnum):
    """What may happen to an incident."""

    FINDING = "finding"  # a fault of its key that is not yet among its members, while no member fires
    ACK = "ack"
    ACK_ENDS = "ack_ends"
    SEVERITY_RISES = "severity_rises"
    MEMBERS_CLEAR = "members_clear"
    RESOLVE = "resolve"
    PARENT_OPENS = "parent_opens"
    QUIET = "quiet"


class Told(StrEnum):
    """What a transition tells: after a settle time, at once, as an edit of what was told, in the parent, nothing."""

    SETTLED = "settled"
    YES = "yes"
    EDIT = "edit"
    IN_PARENT = "in parent"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table."""

    source: State
    event: Event
    target: State
    told: Told


TABLE: tuple[Transition, ...] = (
    Transition(State.NONE, Event.FINDING, State.OPEN, Told.SETTLED),
    Transition(State.OPEN, Event.ACK, State.ACKED, Told.EDIT),
    Transition(State.ACKED, Event.ACK_ENDS, State.OPEN, Told.YES),
    Transition(State.ACKED, Event.SEVERITY_RISES, State.OPEN, Told.YES),
    # nobody is on it yet, and what was told sounded milder than it is
    Transition(State.OPEN, Event.SEVERITY_RISES, State.OPEN, Told.YES),
    Transition(State.OPEN, Event.MEMBERS_CLEAR, State.RESOLVED, Told.YES),
    Transition(State.ACKED, Event.MEMBERS_CLEAR, State.RESOLVED, Told.YES),
    Transition(State.OPEN, Event.RESOLVE, State.RESOLVED, Told.YES),
    Transition(State.ACKED, Event.RESOLVE, State.RESOLVED, Told.YES),
    Transition(State.OPEN, Event.PARENT_OPENS, State.MERGED, Told.IN_PARENT),
    Transition(State.ACKED, Event.PARENT_OPENS, State.MERGED, Told.IN_PARENT),
    Transition(State.RESOLVED, Event.FINDING, State.OPEN, Told.EDIT),
    Transition(State.RESOLVED, Event.QUIET, State.CLOSED, Told.NO),
)
_VERBS = {Event.ACK: "be taken", Event.RESOLVE: "be resolved"}
TERMINAL = frozenset({State.MERGED, State.CLOSED})
FIRING = frozenset({State.OPEN, State.ACKED})
_ROWS = {(row.source, row.event): row for row in TABLE}


def as_markdown() -> str:
    """The table as Markdown rows, in its own order; what has no row is terminal."""
    rows = ["| from | event | to | told |", "|---|---|---|---|"]
    for row in TABLE:
        source = "–" if row.source is State.NONE else row.source
        rows.append(f"| {source} | {row.event.replace('_', ' ')} | {row.target} | {row.told} |")
    return "\n".join([*rows, *(f"| {state} | – (terminal) | | |" for state in State if state in TERMINAL)])


class IllegalTransition(ValueError):
    """The table has no row for this event in this state."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The part of an incident that transitions look at and change. Times by the server's clock."""

    state: State = State.NONE
    seq: int = 0
    reopened: int = 0
    owner: str | None = None
    acked_s: float | None = None
    ack_until_s: float | None = None
    resolved_s: float | None = None
    closed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """An incident's faults: how many fire, and when the last of the others cleared."""

    firing: int
    last_cleared_s: float | None = None


def may(state: State, event: Event) -> bool:
    """Whether the table has a row."""
    return (state, event) in _ROWS


def apply(standing: Standing, event: Event, *, now: float, owner: str | None = None) -> tuple[Standing, Told]:
    """The standing after `event`, and what of it is told. IllegalTransition if the table has no such row.

    Each transition grows `seq` by one: messages of an incident are ordered by it.
    """
    row = _ROWS.get((standing.state, event))
    if row is None:
        raise IllegalTransition(f"an incident that is {standing.state} cannot {_VERBS.get(event, f'have {event}')}")
    after = replace(standing, state=row.target, seq=standing.seq + 1)
    match row.target:
        case State.ACKED:
            after = replace(after, owner=owner, acked_s=now, ack_until_s=now + ACK_S)
        case State.OPEN:
            reopened = standing.reopened + (standing.state is State.RESOLVED)
            after = replace(after, reopened=reopened, owner=None, acked_s=None, ack_until_s=None, resolved_s=None)
        case State.RESOLVED:
            after = replace(after, ack_until_s=None, resolved_s=now)
        case State.CLOSED | State.MERGED:
            after = replace(after, ack_until_s=None, closed_s=now)
    return after, row.told


def due(standing: Standing, members: Members, *, hold_s: float, now: float) -> Event | None:
    """The event that time alone brings: an ack that ends, members clear for `hold_s`, 15 quiet minutes; or None.

    What a person resolved while it fires stays resolved until it clears, and is quiet only from then on.
    """
    if standing.state in FIRING:
        if members.firing == 0 and (members.last_cleared_s is None or now >= members.last_cleared_s + hold_s):
            return Event.MEMBERS_CLEAR
        if standing.ack_until_s is not None and now >= standing.ack_until_s:
            return Event.ACK_ENDS
    if standing.state is State.RESOLVED and members.firing == 0:
        quiet_since = max(standing.resolved_s or 0.0, members.last_cleared_s or 0.0)
        if now >= quiet_since + REOPEN_S:
            return Event.QUIET
    return None


def on_fault(state: State, firing_before: int, *, graver: bool = False) -> Event | None:
    """What a new fault of the key does to an incident: opens, reopens, or nothing.

    A resolved incident whose other members never stopped firing was resolved by a person "until clear": a further
    fault joins it in silence, unless it is graver than what that person saw.
    """
    if state is State.RESOLVED and firing_before and not graver:
        return None
    return Event.FINDING if may(state, Event.FINDING) else None


def rises(before: str, after: str) -> bool:
    """Whether `after` is the graver of two severities."""
    return SEVERITIES.index(after) > SEVERITIES.index(before)


def settle_s(opened_last_second: int) -> float:
    """How long a new incident waits before it is told, so that a parent may open first; `opened_last_second` has it."""
    return SETTLE_BUSY_S if opened_last_second > BUSY_PER_S else SETTLE_S


def is_storm(opened_in_window: int, nodes: int) -> bool:
    """Whether so many new incidents of one root in STORM_WINDOW_S are one thing: more than max(8, 1 % of the nodes)."""
    return opened_in_window > max(STORM_LEAST, STORM_PART * nodes)


@dataclass(frozen=True, slots=True)
class Key:
    """What an incident is about: a rule root on an entity. `where` is a node, a run, or "" for the fleet."""

    root: str
    where: str
    entity: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.root, self.where, self.entity) if part)


def key_of(root: str, node: str, run_id: str, entity: str) -> Key:
    """The key of a fault: on a run, on the fleet, or on something of a node (gpu3, nic0, rank1, the node itself)."""
    if entity == "run":
        return Key(root, run_id, entity)
    return Key(root, "" if entity == "fleet" else node, entity)


def parents(key: Key) -> Iterable[Key]:
    """The entities above a key, the highest first: the fleet under the same root, then the node under any root ("").

    fleet ⊃ node ⊃ GPU, NIC, rank. A run is not part of a node, nor the other way round.
    """
    if key.entity != "fleet":
        yield Key(key.root, "", "fleet")
    if key.entity not in ("fleet", "run", "node"):
        yield Key("", key.where, "node")
