"""Places new faults: into the incident of their key, into an open one above it, or into a new one; and gathers storms.

It works on the unclosed incidents, read once, within one transaction of `services.incidents`. An incident speaks with
the voice of its gravest member: rule, severity, action and title follow it, the key never changes. A silence is for
what was known when it was set: a graver fault, or one of another root, is told in spite of it, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.rules import incident_machine as machine
from controlplane.rules.book import RuleBook
from controlplane.rules.findings import FLEET, NODE, RUN, gravest, strongest
from controlplane.rules.incident_machine import Event, Key, Members, State
from controlplane.services.transitions import Desk, label, labels
from controlplane.store import deliveries, events, faults, incidents, watch
from controlplane.store.tables import Fault, Incident

_ABOVE = frozenset({FLEET, NODE, RUN})


@dataclass(slots=True)
class Case:
    """An incident that is not closed, with its members counted."""

    incident: Incident
    members: Members

    @property
    def firing(self) -> bool:
        """Whether the incident itself is open or acked."""
        return self.incident.state in machine.FIRING

    @property
    def root(self) -> str:
        return self.incident.key.partition("/")[0]


class Casebook:
    """The unclosed incidents of one transaction. `opened`, `joined`, `merged` list what was done, by number."""

    def __init__(self, desk: Desk, book: RuleBook, *, nodes: int) -> None:
        self._desk, self._session, self._now = desk, desk.session, desk.now
        self._book, self._nodes = book, nodes
        rows = incidents.unclosed(self._session, lock=True)
        counted = incidents.members(self._session, [row.id for row in rows])
        self.cases = {row.key: Case(row, counted.get(row.id, Members(0))) for row in rows}
        self._recent = incidents.opened_since(self._session, self._now - machine.STORM_WINDOW_S)
        self._number = incidents.last_number(self._session)
        self._offsets = watch.clock_offsets(self._session)
        attempts = watch.live_attempts(self._session)
        self._runs = {node: (attempt.run_id, attempt.no) for attempt in attempts for node in attempt.nodes}
        self._run_names = {attempt.run_id: attempt.run_name for attempt in attempts}
        self._grown: set[str] = set()
        self._silenced: dict[str, Incident] = {}
        self.opened: list[int] = []
        self.merged: list[int] = []

    def place(self, fault: Fault) -> Incident:
        """Links a fault to its incident, which opens or reopens at once if it must."""
        if not fault.run_id and fault.node in self._runs:
            fault.run_id, fault.attempt_no = self._runs[fault.node]
        key = machine.key_of(self._book.root(fault.rule), fault.node, fault.run_id, fault.entity)
        case = self._above(key) or self.cases.get(str(key))
        if case is None:
            case = self._open(key, fault)
        else:
            self._join(case, fault)
        fault.incident_id = case.incident.id
        firing = case.members.firing + (fault.state == "firing")
        cleared = [at_s for at_s in (case.members.last_cleared_s, fault.cleared_s) if at_s is not None]
        case.members = Members(firing, max(cleared, default=None))
        self._note_fault(fault, case.incident)
        if case.incident.number in self.opened:
            self._gather(case)
        if case.incident.entity == FLEET and fault.entity != FLEET:
            self._grown.add(case.incident.key)
        return case.incident

    def count_storms(self) -> None:
        """Brings the numbers in storms' titles, and in what is not told of them yet, up to date; for the end."""
        for case in (self.cases[key] for key in self._grown if key in self.cases):
            title = f"{self._book.title(case.root)} in {case.members.firing} places"
            if case.members.firing and title != case.incident.title:
                case.incident.title = title
                self._desk.retell(case.incident)

    def _above(self, key: Key) -> Case | None:
        for parent in machine.parents(key):
            for case in self.cases.values():
                if case.firing and _is(case, parent):
                    return case
        return None

    def _open(self, key: Key, fault: Fault) -> Case:
        incident = self._add(
            key,
            rule=fault.rule,
            severity=fault.severity,
            action=fault.action,
            node=fault.node or None,
            gpu=incidents.gpu_of(fault.entity),
            run_id=fault.run_id or None,
            title=self._title(fault),
        )
        below: list[Case] = []
        if key.entity == NODE:
            below = [one for one in self.cases.values() if one.firing and one.incident.node == fault.node]
            below = [one for one in below if one.incident.entity not in _ABOVE]
        elif key.entity == FLEET:
            below = [one for one in self.cases.values() if one.firing and one.root == key.root]
        return self._opened(incident, f"Rule {fault.rule} matched: {label(incident.number)} opened", below)

    def _add(self, key: Key, **values: object) -> Incident:
        self._number += 1
        former = incidents.silenced(self._session, str(key), now=self._now)
        if former is not None:
            self._silenced[str(key)] = former
        return incidents.add(
            self._session,
            number=self._number,
            key=str(key),
            entity=key.entity,
            state=State.NONE.value,
            opened_s=self._now,
            updated_s=self._now,
            seq=0,
            reopened=0,
            quiet_until_s=None if former is None else former.quiet_until_s,
            resolution="",
            **values,
        )

    def _opened(self, incident: Incident, sentence: str, below: Sequence[Case]) -> Case:
        """Opens it, and merges into it what is open below."""
        loud = self._opens_loud(incident, below)
        for child in (one.incident for one in below):
            if machine.rises(incident.severity, child.severity):
                incident.severity, incident.rule = child.severity, child.rule
            incident.action = strongest((incident.action, child.action))
        self._recent.append((incident.key, incident.entity, self._now))
        busy = sum(at_s > self._now - 1 for _, _, at_s in self._recent)
        self._desk.move(incident, Event.FINDING, sentence, settle_s=machine.settle_s(busy), loud=loud)
        case = self.cases[incident.key] = Case(incident, Members(0))
        self.opened.append(incident.number)
        if below:
            self._merge(case, below)
        return case

    def _join(self, case: Case, fault: Fault) -> None:
        incident = case.incident
        graver = machine.rises(incident.severity, fault.severity)
        event = machine.on_fault(State(incident.state), case.members.firing, graver=graver)
        loud = self._joins_loud(incident, fault)
        if graver or event is not None:
            incident.severity, incident.rule, incident.title = fault.severity, fault.rule, self._title(fault)
        incident.action = fault.action if event is not None else strongest((incident.action, fault.action))
        if incident.entity == RUN:
            incident.node = incident.node or fault.node or None
        if event is not None:
            sentence = f"Rule {fault.rule} matched again: {label(incident.number)} reopened"
            self._desk.move(incident, event, sentence, loud=loud)
            self._calm(incident)
        elif graver and machine.may(State(incident.state), Event.SEVERITY_RISES):
            self._desk.move(incident, Event.SEVERITY_RISES, fault.sentence, loud=loud)
        elif loud and case.firing:
            self._desk.speak_up(incident, fault.sentence)

    def _joins_loud(self, incident: Incident, fault: Fault) -> bool:
        """Whether a silenced incident had no fault so grave before, or none of this root."""
        if not self._desk.silenced(incident):
            return False
        before = faults.of_incident(self._session, incident.id)
        roots = {self._book.root(one.rule) for one in before} | {incident.key.partition("/")[0]}
        worst = gravest(one.severity for one in before)
        return self._book.root(fault.rule) not in roots or machine.rises(worst, fault.severity)

    def _opens_loud(self, incident: Incident, below: Sequence[Case]) -> bool:
        """Whether an incident that opens into a silence of its key is graver, or takes over what nobody silenced."""
        former = self._silenced.get(incident.key)
        if former is None:
            return False
        heard = [one for one in below if not self._desk.silenced(one.incident)]
        severities = [incident.severity, *(one.incident.severity for one in heard)]
        root = incident.key.partition("/")[0]
        return machine.rises(former.severity, gravest(severities)) or any(one.root != root for one in heard)

    def _calm(self, incident: Incident) -> None:
        """An incident that comes back too often is told once in half an hour from now on, not each time."""
        since = self._now - machine.FLAP_WINDOW_S
        if incidents.reopenings(self._session, incident.id, since_s=since) >= machine.FLAP_REOPENS:
            incident.quiet_until_s = max(incident.quiet_until_s or 0.0, self._now + machine.FLAP_QUIET_S)

    def _gather(self, case: Case) -> None:
        """Makes one incident of the fleet out of too many of one root within a minute."""
        if case.incident.entity in (FLEET, RUN):
            return
        root = case.root
        keys = [key for key, entity, _ in self._recent if key.partition("/")[0] == root and entity not in (FLEET, RUN)]
        fleet = Key(root, "", FLEET)
        if not machine.is_storm(len(keys), self._nodes):
            return
        sentence = f"{len(keys)} incidents of {root} within a minute are one"
        below = [one for one in self.cases.values() if one.root == root and one.firing]
        former = self.cases.get(str(fleet))
        if former is not None:  # resolved: an open one would have taken this fault
            self._desk.move(former.incident, Event.FINDING, sentence)
            self._merge(former, below)
            return
        title = f"{self._book.title(root)} in {len(keys)} places"
        incident = self._add(fleet, rule=root, severity="warning", action="alert", title=title)
        self._opened(incident, sentence, below)

    def _merge(self, parent: Case, children: Sequence[Case]) -> None:
        for case in children:
            child = case.incident
            sentence = f"{label(child.number)} goes on in {label(parent.incident.number)}"
            self._desk.move(child, Event.PARENT_OPENS, sentence)
            child.parent_id = parent.incident.id
            incidents.hand_over(self._session, child.id, parent.incident.id, now=self._now)
            cleared = [one.members.last_cleared_s for one in (parent, case) if one.members.last_cleared_s is not None]
            parent.members = Members(parent.members.firing + case.members.firing, max(cleared, default=None))
            del self.cases[child.key]
            self.merged.append(child.number)
        deliveries.withdraw(self._session, [case.incident.id for case in children])
        names = labels([case.incident for case in children])
        self._desk.note(parent.incident, "incident_merges", f"{label(parent.incident.number)} takes over {names}")

    def _title(self, fault: Fault) -> str:
        return f"{self._book.title(fault.rule)} {self._place(fault)}".rstrip()

    def _place(self, fault: Fault) -> str:
        if fault.entity == RUN:
            return f"in {self._run_names.get(fault.run_id, fault.run_id)}"
        if fault.entity == FLEET or not fault.node:
            return ""
        if fault.entity == NODE:
            return f"from {fault.node}"
        kind, index = fault.entity.rstrip("0123456789"), fault.entity.lstrip("abcdefghijklmnopqrstuvwxyz-_")
        name = {"gpu": "GPU", "nic": "NIC", "rank": "rank"}.get(kind, kind)
        return f"on {name} {index} of {fault.node}"

    def _note_fault(self, fault: Fault, incident: Incident) -> None:
        offset = 0.0 if self._book.is_own(fault.rule) else self._offsets.get(fault.node, 0.0)
        events.add(
            self._session,
            at_s=min(self._now, fault.onset_s + offset),
            kind="fault",
            sentence=_sentence(fault.sentence),
            run_id=fault.run_id or None,
            attempt_no=fault.attempt_no or None,
            node=fault.node or None,
            incident_id=incident.id,
            data={
                "lane": "run" if fault.entity == RUN else "hardware",
                "level": "warn" if fault.severity == "warning" else "fault",
                "detail": _detail(fault),
                "link": {"kind": "incident", "id": str(incident.number)},
            },
        )


def _is(case: Case, key: Key) -> bool:
    """Whether a case is what a key of `machine.parents` names; a key without root stands for any."""
    if key.root:
        return case.incident.key == str(key)
    return case.incident.entity == key.entity and case.incident.node == key.where


def _detail(fault: Fault) -> str:
    """What was measured, in a few words."""
    metrics, baseline = fault.evidence.get("metrics"), fault.evidence.get("baseline")
    if metrics and fault.value is not None and isinstance(baseline, int | float):
        return f"{', '.join(metrics)}: {baseline:g} before, {fault.value:g} at the fault"
    return f"rule {fault.rule}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
