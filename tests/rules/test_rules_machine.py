"""The life of an incident: the table as OPERATE has it, and what must hold after any history of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.rules import incident_machine as machine
from controlplane.rules.incident_machine import (
    TABLE,
    Event,
    IllegalTransition,
    Key,
    Members,
    Standing,
    State,
    Told,
    apply,
    due,
    key_of,
    on_fault,
    parents,
)

# from, event, to, told: read off the page, not off the code
PAGE = {
    ("none", "finding"): ("open", "settled"),
    ("open", "ack"): ("acked", "edit"),
    ("acked", "ack_ends"): ("open", "yes"),
    ("acked", "severity_rises"): ("open", "yes"),
    ("open", "severity_rises"): ("open", "yes"),
    ("open", "members_clear"): ("resolved", "yes"),
    ("acked", "members_clear"): ("resolved", "yes"),
    ("open", "resolve"): ("resolved", "yes"),
    ("acked", "resolve"): ("resolved", "yes"),
    ("open", "parent_opens"): ("merged", "in parent"),
    ("acked", "parent_opens"): ("merged", "in parent"),
    ("resolved", "finding"): ("open", "edit"),
    ("resolved", "quiet"): ("closed", "no"),
}


def test_the_table_is_the_page() -> None:
    assert {(row.source, row.event): (row.target, row.told) for row in TABLE} == PAGE
    assert len(TABLE) == len(PAGE)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_what_the_table_lacks_is_refused(state: State, event: Event) -> None:
    standing = Standing(state=state, seq=4)
    if (state.value, event.value) in PAGE:
        after, told = apply(standing, event, now=1.0, owner="ada")
        assert (after.state, told, after.seq) == (*PAGE[state.value, event.value], 5)
        return
    with pytest.raises(IllegalTransition):
        apply(standing, event, now=1.0)


class Life(RuleBasedStateMachine):
    """Any history of faults, clears, people, parents and time."""

    @initialize()
    def begin(self) -> None:
        self.now, self.hold_s = 1000.0, 120.0
        self.standing, told = apply(Standing(), Event.FINDING, now=self.now)
        assert told is Told.SETTLED
        self.firing, self.cleared_s = 1, None
        self.told: list[int] = [self.standing.seq]

    def step(self, event: Event, owner: str | None = None) -> None:
        before = self.standing
        expected = PAGE.get((before.state.value, event.value))
        if expected is None:
            with pytest.raises(IllegalTransition):
                apply(before, event, now=self.now, owner=owner)
            return
        self.standing, told = apply(before, event, now=self.now, owner=owner)
        assert (self.standing.state, told) == expected
        assert self.standing.seq == before.seq + 1
        if told in (Told.SETTLED, Told.YES, Told.EDIT):
            self.told.append(self.standing.seq)
        if before.state is State.RESOLVED and event is Event.FINDING:
            assert self.standing.reopened == before.reopened + 1
        else:
            assert self.standing.reopened == before.reopened

    @rule()
    def fault(self) -> None:
        event = on_fault(self.standing.state, self.firing)
        if event is not None:
            assert self.standing.state is State.RESOLVED and self.firing == 0
            self.step(event)
        self.firing += 1

    @precondition(lambda self: self.firing)
    @rule()
    def clear(self) -> None:
        self.firing -= 1
        self.cleared_s = self.now

    @rule(seconds=st.sampled_from([0.5, 30.0, 119.0, 121.0, 899.0, 901.0, 4 * 3600.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        event = due(self.standing, Members(self.firing, self.cleared_s), hold_s=self.hold_s, now=self.now)
        if event is not None:
            assert (self.standing.state.value, event.value) in PAGE
            self.step(event)

    @rule(event=st.sampled_from([Event.ACK, Event.RESOLVE, Event.SEVERITY_RISES]))
    def person_or_severity(self, event: Event) -> None:
        self.step(event, owner="ada")

    @precondition(lambda self: self.standing.seq > 6)
    @rule()
    def parent(self) -> None:
        self.step(Event.PARENT_OPENS)

    @invariant()
    def holds(self) -> None:
        standing = self.standing
        assert self.told == sorted(set(self.told)), "messages are numbered upwards, each once"
        assert (standing.ack_until_s is not None) == (standing.state is State.ACKED)
        assert (standing.resolved_s is not None) == (standing.state in (State.RESOLVED, State.CLOSED))
        assert (standing.closed_s is not None) == (standing.state in machine.TERMINAL)
        if standing.state is State.OPEN:
            assert standing.owner is None
        if standing.state in machine.TERMINAL:
            assert due(standing, Members(0, 0.0), hold_s=0, now=self.now + 1e9) is None
            assert not any(machine.may(standing.state, event) for event in Event), "terminal is terminal"

    @invariant()
    def a_firing_incident_never_resolves_by_time(self) -> None:
        event = due(self.standing, Members(1, self.cleared_s), hold_s=self.hold_s, now=self.now + 1e6)
        assert event in (None, Event.ACK_ENDS)


TestLife = Life.TestCase


def test_the_hold_counts_from_the_last_clear() -> None:
    standing = Standing(state=State.OPEN)
    assert due(standing, Members(0, 100.0), hold_s=120, now=219.9) is None
    assert due(standing, Members(0, 100.0), hold_s=120, now=220.0) is Event.MEMBERS_CLEAR


def test_quiet_counts_from_the_later_of_resolution_and_clear() -> None:
    standing = Standing(state=State.RESOLVED, resolved_s=100.0)
    assert due(standing, Members(0, 500.0), hold_s=120, now=1399.0) is None
    assert due(standing, Members(0, 500.0), hold_s=120, now=1400.0) is Event.QUIET
    assert due(standing, Members(2, 500.0), hold_s=120, now=1e9) is None


def test_keys_and_what_is_above_them() -> None:
    gpu = key_of("hbm-uncorrectable", "node-1", "run-1", "gpu3")
    assert str(gpu) == "hbm-uncorrectable/node-1/gpu3"
    assert list(parents(gpu)) == [Key("hbm-uncorrectable", "", "fleet"), Key("", "node-1", "node")]
    run = key_of("hang", "node-1", "run-1", "run")
    assert str(run) == "hang/run-1/run" and list(parents(run)) == [Key("hang", "", "fleet")]
    node = key_of("no-telemetry", "node-1", "", "node")
    assert list(parents(node)) == [Key("no-telemetry", "", "fleet")]
    fleet = key_of("no-telemetry", "node-1", "", "fleet")
    assert str(fleet) == "no-telemetry/fleet" and list(parents(fleet)) == []


@pytest.mark.parametrize(
    ("opened", "nodes", "storm"), [(8, 4, False), (9, 4, True), (20, 2000, False), (21, 2000, True)]
)
def test_a_storm_is_more_than_eight_or_one_percent(opened: int, nodes: int, storm: bool) -> None:
    assert machine.is_storm(opened, nodes) is storm


def test_the_settle_time_grows_above_five_a_second() -> None:
    assert [machine.settle_s(count) for count in (1, 5, 6)] == [2.0, 2.0, 10.0]


def test_severities_are_ordered() -> None:
    assert machine.rises("warning", "critical") and not machine.rises("error", "error")
    assert not machine.rises("critical", "error")
