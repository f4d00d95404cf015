"""The one door through which an incident changes its state: row, timeline and messages, in the caller's transaction.

Which changes there are stands in controlplane.rules.incident_machine; when they are due, in services.incidents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from controlplane.rules.incident_machine import SETTLE_S, Event, Standing, State, Told, apply
from controlplane.store import deliveries, events
from controlplane.store.engine import Session
from controlplane.store.tables import Incident

_TYPES: Mapping[Event, str] = {
    Event.FINDING: "incident.opened",
    Event.ACK: "incident.acknowledged",
    Event.ACK_ENDS: "incident.unowned",
    Event.SEVERITY_RISES: "incident.worsened",
    Event.MEMBERS_CLEAR: "incident.resolved",
    Event.RESOLVE: "incident.resolved",
}
STILL = "incident.still_open"
"""Told once when a silence ends and the incident is not over."""


class Desk:
    """Moves incidents within one transaction at one moment, and tells the enabled channels."""

    def __init__(self, session: Session, now: float) -> None:
        self.session, self.now = session, now
        self._channels = [channel.name for channel in deliveries.channels(session, enabled=True)]

    def move(
        self,
        incident: Incident,
        event: Event,
        sentence: str,
        *,
        owner: str | None = None,
        level: str = "info",
        settle_s: float = SETTLE_S,
        loud: bool = False,
    ) -> Told:
        """Applies an event of the table; IllegalTransition if it has no such row, and then nothing has changed.

        sentence: the timeline's line and, where it is told, the message's. loud: told in spite of a silence.
        """
        reopens = incident.state == State.RESOLVED and event is Event.FINDING
        after, told = apply(_standing(incident), event, now=self.now, owner=owner)
        incident.state, incident.seq, incident.reopened = after.state.value, after.seq, after.reopened
        incident.owner, incident.acked_s, incident.ack_until_s = after.owner, after.acked_s, after.ack_until_s
        incident.resolved_s, incident.closed_s = after.resolved_s, after.closed_s
        incident.updated_s = self.now
        kind = "incident.reopened" if reopens else _TYPES.get(event, f"incident.{after.state.value}")
        self.note(incident, kind.replace(".", "_"), sentence, level=level)
        if told in (Told.SETTLED, Told.YES, Told.EDIT):
            self._tell(incident, kind, sentence, told, settle_s if told is Told.SETTLED else 0.0, loud=loud)
        return told

    def note(self, incident: Incident, kind: str, sentence: str, *, level: str = "info", detail: str = "") -> None:
        """A line of the timeline, in the lane of rules."""
        link = {"kind": "incident", "id": str(incident.number)}
        events.add(
            self.session,
            at_s=self.now,
            kind=kind,
            sentence=sentence,
            run_id=incident.run_id,
            node=incident.node,
            incident_id=incident.id,
            data={"lane": "rule", "level": level, "detail": detail, "link": link},
        )

    def silence(self, incident: Incident, until_s: float, sentence: str) -> None:
        """Nobody is told of the incident's key before `until_s`; what waits to be told is withdrawn."""
        incident.quiet_until_s, incident.updated_s = until_s, self.now
        deliveries.withdraw(self.session, [incident.id])
        self.note(incident, "incident_silenced", sentence)

    def silenced(self, incident: Incident) -> bool:
        """Whether a silence holds for it now."""
        return incident.quiet_until_s is not None and incident.quiet_until_s > self.now

    def speak_up(self, incident: Incident, sentence: str) -> None:
        """Tells in spite of a silence what it was not set for; the silence goes on."""
        incident.seq += 1
        incident.updated_s = self.now
        self._tell(incident, _TYPES[Event.SEVERITY_RISES], sentence, Told.YES, 0.0, loud=True)

    def end_silence(self, incident: Incident) -> None:
        """Tells once what is not over, or what somebody believes not to be over."""
        incident.quiet_until_s = None
        incident.seq += 1
        if incident.state in (State.OPEN, State.ACKED):
            self._tell(incident, STILL, f"The silence has ended: {_lower(incident.title)} goes on.", Told.YES, 0.0)
        elif incident.state == State.RESOLVED and deliveries.told(self.session, incident.id):
            self._tell(incident, "incident.resolved", f"{incident.title}: over.", Told.EDIT, 0.0)

    def retell(self, incident: Incident) -> None:
        """What was not tried to tell yet says what the incident is now."""
        for waiting in deliveries.untried(self.session, incident.id):
            told = waiting.body
            waiting.body = {**told, "data": {**told["data"], "title": incident.title, "severity": incident.severity}}

    def _tell(
        self, incident: Incident, kind: str, sentence: str, told: Told, wait_s: float, *, loud: bool = False
    ) -> None:
        if self.silenced(incident) and not loud:
            return
        body = message(incident, kind, sentence, self.now, edit=told is Told.EDIT)
        for channel in self._channels:
            deliveries.add(
                self.session,
                incident_id=incident.id,
                seq=incident.seq,
                channel=channel,
                body=body,
                due_s=self.now + wait_s,
                now=self.now,
            )


def message(incident: Incident, kind: str, sentence: str, now: float, *, edit: bool = False) -> dict[str, Any]:
    """A message's body in the shape that Standard Webhooks proposes: type, timestamp, data."""
    return {
        "type": kind,
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "number": incident.number,
            "label": label(incident.number),
            "seq": incident.seq,
            "edit": edit,
            "state": incident.state,
            "severity": incident.severity,
            "action": incident.action,
            "rule": incident.rule,
            "title": incident.title,
            "sentence": sentence,
            "node": incident.node,
            "gpu": incident.gpu,
            "entity": incident.entity,
            "run": incident.run_id,
            "owner": incident.owner,
            "reopened": incident.reopened,
            "opened_s": incident.opened_s,
            "resolved_s": incident.resolved_s,
        },
    }


def label(number: int) -> str:
    """How people call an incident: INC-0412."""
    return f"INC-{number:04d}"


def labels(incidents: Sequence[Incident], most: int = 6) -> str:
    """INC-0001, INC-0002 and 7 more"""
    named = ", ".join(label(incident.number) for incident in incidents[:most])
    return f"{named} and {len(incidents) - most} more" if len(incidents) > most else named


def _lower(title: str) -> str:
    """A title inside a sentence; an abbreviation at its start stays."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _standing(incident: Incident) -> Standing:
    return Standing(
        state=State(incident.state),
        seq=incident.seq,
        reopened=incident.reopened,
        owner=incident.owner,
        acked_s=incident.acked_s,
        ack_until_s=incident.ack_until_s,
        resolved_s=incident.resolved_s,
        closed_s=incident.closed_s,
    )
