"""A silent node becomes suspect by its kubelet's lease, never by silence alone, and healthy again once heard."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.services import incidents as incident_service
from controlplane.services import suspicion
from controlplane.services.findings import Watch
from controlplane.services.pulses import Pulses
from controlplane.store import events, nodes
from controlplane.store.engine import Store
from tests.runs.piloting import BOOK, Pilot


class Server(Pilot):
    """Four nodes on a scripted cluster with kubelets, looked after as `trimtab serve` does."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store, folder)
        self.pulses = Pulses([self.backend])
        self.watch = Watch(BOOK, since_s=self.clock.now() - 60, pulses=self.pulses.stopped)
        self.mute: set[str] = set()

    def passes(self, seconds: float) -> list[str]:
        """Time passes second by second; the changes of suspicion."""
        found = []
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.names, everyone = [name for name in self.names if name not in self.mute], self.names
            self.greet()
            self.names = everyone
            self.pulses.look(self.store, self.clock.now())
            incident_service.check_once(self.store, self.watch, self.epoch, self.clock.now())
            found += suspicion.suspect_once(self.store, self.epoch, self.clock.now())
        return found

    def state(self, name: str) -> str:
        return self.node(name).state


@pytest.fixture
def server(sqlite_store: Store, tmp_path: Path) -> Server:
    return Server(sqlite_store, tmp_path)


def test_agent_and_kubelet_silent_is_suspect_within_twenty_seconds(server: Server) -> None:
    server.mute, server.backend.dead = {"node-2"}, {"node-2"}
    assert server.passes(20) == ["node-2"] and server.state("node-2") == "suspect"
    with server.store.read() as session:
        (line,) = [one for one in events.listed(session, node="node-2") if one.kind == "node_suspect"]
        reason = nodes.get(session, "node-2").state_reason  # type: ignore[union-attr]  # it is there
    assert line.incident_id is not None and "its kubelet has not renewed its lease for" in reason
    server.mute, server.backend.dead = set(), set()
    assert server.passes(5) == ["node-2"] and server.state("node-2") == "healthy"


def test_an_agent_alone_that_is_silent_is_looked_at_and_no_more(server: Server) -> None:
    server.mute = {"node-2"}
    assert server.passes(60) == [] and server.state("node-2") == "healthy"


def test_a_kubelet_alone_that_is_silent_is_no_suspicion(server: Server) -> None:
    server.backend.dead = {"node-2"}
    assert server.passes(60) == []


def test_what_cannot_be_asked_accuses_nobody(server: Server) -> None:
    server.mute, server.backend.dead, server.backend.reachable = {"node-2"}, {"node-2"}, False
    assert server.passes(60) == []


def test_leases_that_are_all_old_are_the_api_servers_affair(server: Server) -> None:
    server.mute, server.backend.dead = {"node-2"}, set(server.names)
    assert server.passes(60) == []


def test_a_run_that_trains_on_elsewhere_speaks_for_its_silent_node(server: Server) -> None:
    run_id = server.started()
    server.mute = server.backend.dead = {server.last(run_id).nodes[1]}
    step, changes = 20, list[str]()
    for _ in range(30):
        step += 2
        server.beat(run_id, 1, step)
        changes += server.passes(1)
    assert changes == []
    assert server.passes(12) == [server.last(run_id).nodes[1]], "now it stands still as well"
