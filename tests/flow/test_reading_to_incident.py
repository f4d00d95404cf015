"""The first walk, in the order of ARCHITECTURE.md: a simulated register becomes an incident and a message."""

from __future__ import annotations

from pathlib import Path

from agents.node.agent import Agent, Paths
from agents.node.outbox import Outbox
from agents.node.sources.simulated import SimulatedSource
from agents.rules.load import load_rules
from agents.wire import Drill, decode
from controlplane.clock import ManualClock
from controlplane.notify.address import UrlPolicy
from controlplane.rules import book
from controlplane.services import deliveries, incidents, views_incidents
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import incidents as incident_rows
from controlplane.store import leases
from controlplane.store.engine import Store


def test_a_register_becomes_an_incident_and_a_message(sqlite_store: Store, tmp_path: Path) -> None:
    clock = ManualClock()
    live = Live(sqlite_store, clock)
    ingest = Ingest(sqlite_store, live, clock)
    ingest.start()
    rules = Watch(book.load(), since_s=clock.now())
    with sqlite_store.write() as session:
        epoch = leases.acquire(session, "control", leases.this_process("test"), now=clock.now(), ttl_s=60)
    assert epoch is not None
    policy = UrlPolicy(allow_loopback=True)
    deliveries.put_channel(sqlite_store, policy, "ops", kind="webhook", url="http://127.0.0.1:9/")

    # read: a drill changes a register; the agent's rules find the difference
    source = SimulatedSource("node-a", clock.now())
    outbox = Outbox(tmp_path / "spool")
    agent = Agent("node-a", "boot", source, load_rules(), outbox, Paths(tmp_path / "runtime", tmp_path / "spool"))
    for second in range(6):
        if second == 4:
            assert agent.drill(Drill("d", "hbm-uncorrectable", 3)) == ""
        agent.sample_once(clock.advance(1.0), clock.monotonic())

        # send: a batch lies on disk, is read back as it was, and leaves when it is acknowledged; faults go first
        told = []
        while (taken := outbox.take(0)) is not None:
            batch = decode(taken[1])
            told.append([fault.rule for fault in batch.faults])

            # ingest: the reply comes after the commit
            reply = ingest.submit(batch, clock.now(), behind=outbox.waiting[0] - 1).result(timeout=30)
            assert reply.acknowledged == batch.sequence
            outbox.done(taken[0])
        assert told == ([["hbm-uncorrectable"], []] if second == 4 else [[]])
    assert outbox.waiting == (0, 0)

    # check: a fault in the store becomes an incident that waits for a decision
    checked = incidents.check_once(sqlite_store, rules, epoch, clock.now())
    assert checked.opened == (1,)
    with sqlite_store.read() as session:
        (waiting,) = incident_rows.actionable(session, rules.book)
    assert (waiting.node, waiting.gpu, waiting.action, waiting.data_corrupting) == ("node-a", 3, "restart", True)
    assert waiting.onset_s - waiting.last_clean_s == 1.0

    # tell: the message was written in the same transaction as the incident
    told = views_incidents.view(sqlite_store, rules.book, 1, clock.now())
    assert told is not None
    assert [(one["channel"], one["state"]) for one in told["deliveries"]] == [("ops", "ready")]
    assert "GPU 3" in told["sentence"]["lead"]
    ingest.stop()
