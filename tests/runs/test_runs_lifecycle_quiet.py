"""Lifecycles that wait cost next to nothing: who is looked at, what wakes one, and that runs never wait for them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from controlplane.cli.serve import wire_loops
from controlplane.loops import Leadership
from controlplane.services import lifecycles as service
from controlplane.services.ingest import Ingest
from controlplane.services.lifecycles_conductor import QUIET_S
from controlplane.services.live import Live
from controlplane.services.pulses import Pulses
from controlplane.store import leases, lifecycle_signs, lifecycles
from jobs.lifecycle import parse_lifecycle
from tests.runs.conducting import Conducting, gate, plan

APPROVED = {"name": "a", "gate": gate(approval=True)}


def looked(walk: Conducting, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lifecycles that are looked at from now on."""
    found: list[str] = []
    move = walk.conductor.move

    def seen(lifecycle_id: str, lease_epoch: int, now: float) -> list[str]:
        found.append(lifecycle_id)
        return move(lifecycle_id, lease_epoch, now)

    monkeypatch.setattr(walk.conductor, "move", seen)
    return found


def hold(walk: Conducting, count: int) -> None:
    """Lifecycles whose first stage is held, made in the store."""
    parsed = parse_lifecycle(plan(APPROVED, {"name": "b"}, name="held"))
    with walk.store.write() as session:
        for number in range(count):
            now = walk.clock.now()
            found = service.submit(session, parsed, where=lambda _spec: "memory", actor="ada", now=now)
            stage = found.stages[0]
            stage.state, stage.hold, stage.candidate_hash = "held", "approval", f"{number:064x}"


def test_one_that_is_held_is_looked_at_when_there_is_news_or_after_a_while(
    walk: Conducting, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = walk.begin(APPROVED)
    walk.walk(made)
    walk.tick()
    seen = looked(walk, monkeypatch)
    for _ in range(5):
        walk.tick()
    assert seen == []
    walk.tick(QUIET_S)
    walk.tick()
    assert seen == [made]
    walk.say(made, "a", "approved")
    walk.tick()
    assert walk.state(made).status == "succeeded"


def test_what_waits_costs_the_same_whether_few_or_many_do(walk: Conducting) -> None:
    counts: list[int] = []
    for more in (1, 20):
        hold(walk, more)
        walk.conductor.reconcile_once(walk.epoch, walk.clock.now())
        asked: list[str] = []
        with walk.store.read() as session:
            engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", count := lambda *given, told=asked: told.append(given[2]))
        walk.conductor.reconcile_once(walk.epoch, walk.clock.now())
        event.remove(engine, "before_cursor_execute", count)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_the_old_ones_are_looked_at_a_few_at_a_time(walk: Conducting, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(walk, 31)
    walk.conductor.reconcile_once(walk.epoch, walk.clock.now())
    seen = looked(walk, monkeypatch)
    walk.clock.advance(QUIET_S)
    for _ in range(16):
        walk.conductor.reconcile_once(walk.epoch, walk.clock.now())
    assert len(seen) == len(set(seen)) == 31
    walk.clock.advance(QUIET_S)
    walk.conductor.reconcile_once(walk.epoch, walk.clock.now())
    assert seen[31:] == seen[:2]


def test_taint_and_a_wish_are_news(walk: Conducting) -> None:
    made = walk.begin(APPROVED)
    walk.walk(made)

    def sign() -> Any:
        with walk.store.read() as session:
            return lifecycle_signs.signs(session)[made]

    before = sign()
    with walk.store.write() as session:
        found = lifecycles.locked(session, made)
        assert found is not None
        found.stages[0].wish = {"actor": "bob"}
    wished = sign()
    walk.taint(walk.held(made).candidate_hash)
    assert len({before, wished, sign()}) == 3


def test_taint_that_cannot_be_spread_holds_no_lifecycle_up(walk: Conducting, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_session: object) -> None:
        raise ValueError("no such checkpoint")

    monkeypatch.setattr(lifecycles, "made_from_tainted", broken)
    made = walk.begin({"name": "a"})
    walk.tick()
    assert walk.stages(made)["a"].state == "training"


def test_runs_are_minded_before_lifecycles_and_whatever_becomes_of_those(
    walk: Conducting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: object) -> None:
        raise RuntimeError("the conductor is broken")

    monkeypatch.setattr(walk.conductor, "reconcile_once", broken)
    store, clock = walk.store, walk.clock
    leadership = Leadership(store, leases.this_process("a"), clock)
    clock.advance(10.0)
    leadership.campaign_once()
    walk.greet()
    run_id = walk.submit()
    backends = {"memory": walk.backend}
    ingest = Ingest(store, Live(store, clock), clock)
    given = (store, leadership, walk.watch, walk.controller, backends, {}, ingest, clock, Pulses(backends.values()))
    loops = wire_loops(*given, conductor=walk.conductor)  # type: ignore[arg-type]  # the backend is one of the kind
    loops["runs"].once()
    assert loops["runs"].state.failures == 1
    assert [one.no for one in walk.attempts(run_id)] == [1]
