"""A leading server at a clock that tests move: nodes that send, faults that arrive, checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.readings import Fault, fault_id
from controlplane.clock import ManualClock
from controlplane.rules import book as rule_book
from controlplane.services import incidents as service
from controlplane.services.findings import Watch
from controlplane.store import deliveries, faults, heartbeats, incidents, leases, runs
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Decision, Incident, Node, Run
from jobs.contract import Heartbeat
from jobs.spec import load_template

BOOK = rule_book.load()


class Server:
    """A leading server with nodes, one channel and a clock."""

    def __init__(self, store: Store, node_count: int = 4) -> None:
        self.store, self.clock = store, ManualClock()
        self.rules = Watch(BOOK, since_s=self.clock.now())
        self.names = [f"node-{index}" for index in range(node_count)]
        with store.write() as session:
            epoch = leases.acquire(session, service.LEASE, leases.this_process("a"), now=self.clock.now(), ttl_s=9)
            assert epoch is not None
            deliveries.put_channel(session, "ops", kind="webhook", config={"url": "http://127.0.0.1:1/"})
        self.epoch = epoch
        self.greet()

    def greet(self, skew_s: float = 0.0, *silent: str) -> None:
        """Every node but the silent ones sends a batch."""
        now = self.clock.now()
        with self.store.write() as session:
            for name in self.names:
                if name not in silent:
                    session.merge(
                        Node(
                            name=name,
                            simulated=True,
                            first_seen_s=now,
                            last_seen_s=now,
                            sent_s=now - skew_s,
                            sent_monotonic_s=self.clock.monotonic(),
                            clock_offset_s=skew_s,
                            state_since_s=now,
                        )
                    )

    def check(self) -> service.Checked:
        return service.check_once(self.store, self.rules, self.epoch, self.clock.now())

    def send(self, *found: Fault) -> None:
        with self.store.write() as session:
            faults.record(session, found, now=self.clock.now())

    def later(self, seconds: float) -> service.Checked:
        """Time passes while every node goes on sending, then a check."""
        self.clock.advance(seconds)
        self.greet()
        return self.check()

    def incidents(self) -> list[Incident]:
        with self.store.read() as session:
            return list(reversed(incidents.listed(session)))

    def only(self) -> Incident:
        (found,) = self.incidents()
        return found

    def told(self, number: int) -> list[tuple[int, str, float]]:
        """(seq, type, seconds until due) of an incident's messages."""
        with self.store.read() as session:
            incident = incidents.by_number(session, number)
            assert incident is not None
            rows = deliveries.of_incident(session, incident.id)
            return [(row.seq, row.body["type"], row.due_s - self.clock.now()) for row in rows]

    def messages(self, number: int) -> list[dict[str, Any]]:
        """The bodies of an incident's messages."""
        with self.store.read() as session:
            incident = incidents.by_number(session, number)
            assert incident is not None
            return [row.body for row in deliveries.of_incident(session, incident.id)]


def fault(server: Server, node: str = "node-1", entity: str = "gpu3", **changes: object) -> Fault:
    onset = server.clock.now() - 1.0
    made = Fault(
        id="",
        rule="hbm-uncorrectable",
        severity="critical",
        action="restart",
        node=node,
        entity=entity,
        state="firing",
        onset_s=onset,
        last_clean_s=onset - 1.0,
        observed_s=onset,
        value=1893.0,
        threshold=1.0,
        sentence=f"{entity} of {node} reported 1893 uncorrectable HBM errors",
        evidence={"metrics": ["ecc_hbm_uncorrectable_total"], "baseline": 0},
    )
    made = replace(made, **changes)  # type: ignore[arg-type]  # a test's shorthand
    return replace(made, id=fault_id(made.node, "boot", made.rule, made.entity, made.onset_s))


def cleared(one: Fault, now: float) -> Fault:
    return replace(one, state="clear", observed_s=now)


def start_run(server: Server, *, run_id: str = "run-1", names: tuple[str, ...] = ("node-0", "node-1")) -> None:
    """A run whose attempt 1 trains on these nodes."""
    now, spec = server.clock.now(), load_template("toy").to_dict()
    with server.store.write() as session:
        session.add(
            Run(
                id=run_id,
                name="zaya-toy",
                stage="pretrain",
                status="active",
                spec=spec,
                spec_hash="h",
                created_s=now,
                created_by="ada",
                write_epoch=1,
            )
        )
    add_attempt(server, 1, names, run_id=run_id, running_s=now, first_step_s=now, first_step=1)


def add_attempt(server: Server, no: int, names: tuple[str, ...], *, run_id: str = "run-1", **values: object) -> None:
    """A live attempt of a run."""
    now = server.clock.now()
    with server.store.write() as session:
        session.add(
            Attempt(
                id=f"{run_id}-{no}",
                run_id=run_id,
                no=no,
                name=f"{run_id}-a{no}",
                state=values.pop("state", "training"),
                state_since_s=now,
                spec={},
                spec_hash="h",
                epoch=no,
                nodes=list(names),
                created_s=now,
                **values,
            )
        )


def change_attempt(server: Server, no: int, **values: object) -> None:
    """Sets columns of an attempt of run-1."""
    with server.store.write() as session:
        for name, value in values.items():
            setattr(runs.attempt_of(session, "run-1", no), name, value)


def beat(server: Server, rank: int, node: str, **changes: object) -> None:
    """A heartbeat of run-1, attempt 1, from now unless it says otherwise."""
    now = server.clock.now()
    made = Heartbeat(
        run_id="run-1",
        attempt_no=1,
        epoch=1,
        rank=rank,
        world=2,
        node=node,
        pid=1,
        phase="train",
        step=40,
        first_step=1,
        last_step=40,
        resumed_from=None,
        at_s=now,
        phase_since_s=now,
        step_seconds_median=0.5,
    )
    with server.store.write() as session:
        told = replace(made, **changes)  # type: ignore[arg-type]  # a test's shorthand
        heartbeats.put(session, [told], now=now, stamps=[heartbeats.Stamp("", server.clock.monotonic())])


def decide(server: Server, incident: int, fault_ids: tuple[str, ...] | None = None, **changes: object) -> None:
    """The controller's decision on an incident, attached to it (to these faults of it)."""
    now = server.clock.now()
    values: dict[str, object] = {
        "run_id": "run-1",
        "attempt_no": 1,
        "action": "restart_exclude",
        "mode": "act",
        "state": "executing",
        "reason": "Restart without node-1.",
        "excluded_nodes": ["node-1"],
        **changes,
    }
    with server.store.write() as session:
        session.add(Decision(id="decision-1", created_s=now, **values))
        session.flush()
        found = incidents.by_number(session, incident)
        assert found is not None
        incidents.attach_decision(session, found.id, "decision-1", now=now, fault_ids=fault_ids)
