"""A controller at the helm of a scripted cluster, at a clock that tests move; checkpoints are real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controlplane.backends.memory import MemoryBackend
from controlplane.clock import ManualClock
from controlplane.rules import book as rule_book
from controlplane.services import incidents as incident_service
from controlplane.services import runs as service
from controlplane.services.findings import Watch
from controlplane.services.plans import Places
from controlplane.services.reconcile import LEASE, Controller
from controlplane.store import faults, heartbeats, leases, runs
from controlplane.store.base import ATTEMPT_LIVE
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Checkpoint, Decision, Event, Node, Run
from jobs.contract import Heartbeat, Manifest, ManifestFile, sha256_of, step_directory, write_manifest
from jobs.spec import load_template, parse_job
from tests.incidents.serving import fault

BOOK = rule_book.load()
GPUS = {"gpus": [{"index": index} for index in range(8)]}


class Pilot:
    """Four nodes, a backend in memory, one controller that leads."""

    def __init__(self, store: Store, folder: Path, node_count: int = 4) -> None:
        self.store, self.clock = store, ManualClock()
        self.names = [f"node-{index}" for index in range(node_count)]
        self.behind_s, self.strict = 0.0, False
        self.backend = MemoryBackend(self.names)
        self.places = Places(folder / "runs", "http://127.0.0.1:1")
        self.watch = Watch(BOOK, since_s=self.clock.now())
        self.greet()
        self.lead()

    def lead(self, holder: str = "a") -> None:
        """A fresh controller, as after a restart of the server: a new epoch, nothing remembered."""
        with self.store.write() as session:
            epoch = leases.acquire(session, LEASE, leases.this_process(holder), now=self.clock.now(), ttl_s=9)
        assert epoch is not None
        self.epoch = epoch
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        return Controller(self.store, {"memory": self.backend}, BOOK, self.places)

    def greet(self) -> None:
        """Every node is heard; their clocks are `behind_s` seconds behind the server's."""
        now = self.clock.now()
        with self.store.write() as session:
            for name in self.names:
                found = session.get(Node, name)
                if found is None:
                    found = Node(name=name, facts=GPUS, simulated=True, first_seen_s=now, state_since_s=now)
                    session.add(found)
                found.last_seen_s, found.clock_offset_s = now, self.behind_s
                found.sent_s, found.sent_monotonic_s = now - self.behind_s, self.clock.monotonic()

    def submit(self, *, name: str = "trial", nodes: int = 2, steps: int = 100, **faults_policy: Any) -> str:
        """A run of the toy template's shape."""
        spec = load_template("toy").to_dict()
        spec["metadata"]["name"] = name
        spec["spec"]["resources"]["nodes"] = nodes
        spec["spec"]["train"]["steps"] = steps
        spec["spec"]["contractLevel"] = faults_policy.pop("level", 2)
        spec["spec"]["faults"].update(faults_policy)
        with self.store.write() as session:
            made = service.submit(session, parse_job(spec), backend="memory", actor="ada", now=self.clock.now())
            return made.id

    def round(self, seconds: float = 0.0) -> list[str]:
        """Time passes, nodes are heard, the controller makes a round."""
        self.clock.advance(seconds)
        self.greet()
        if self.strict:  # what the round would log of a run, a test wants to see
            with self.store.read() as session:
                ids = [one.id for one in runs.unfinished(session)]
            fleet = self.controller._look_around(self.clock.now())
            self.controller._taint_ended(fleet, self.epoch, self.clock.now())
            return [line for run_id in ids for line in self.controller.move(run_id, self.epoch, self.clock.now())]
        return self.controller.reconcile_once(self.epoch, self.clock.now())

    def run(self, run_id: str) -> Run:
        with self.store.read() as session:
            found = runs.get(session, run_id)
        assert found is not None
        return found

    def attempts(self, run_id: str) -> list[Attempt]:
        with self.store.read() as session:
            return runs.attempts(session, run_id)

    def last(self, run_id: str) -> Attempt:
        return self.attempts(run_id)[-1]

    def live(self, run_id: str) -> list[Attempt]:
        return [one for one in self.attempts(run_id) if one.state in ATTEMPT_LIVE]

    def decisions(self, run_id: str) -> list[Decision]:
        with self.store.read() as session:
            return runs.decisions(session, run_id)

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        with self.store.read() as session:
            return runs.checkpoints(session, run_id)

    def node(self, name: str) -> Node:
        with self.store.read() as session:
            found = session.get(Node, name)
        assert found is not None
        return found

    def events(self, run_id: str, *kinds: str) -> list[Event]:
        with self.store.read() as session:
            return runs.events_of_kind(session, run_id, kinds)

    def beat(self, run_id: str, first: int | None, last: int | None, *, no: int | None = None) -> None:
        """Every rank of an attempt says what it has done."""
        attempt = self.last(run_id) if no is None else self.attempts(run_id)[no - 1]
        now = self.clock.now()
        beats = [
            Heartbeat(
                run_id=run_id,
                attempt_no=attempt.no,
                epoch=attempt.epoch,
                rank=rank,
                world=len(attempt.nodes),
                node=node,
                pid=100 + rank,
                phase="train",
                step=last,
                first_step=first,
                last_step=last,
                resumed_from=None,
                at_s=now,
                phase_since_s=now,
                step_seconds_median=0.5,
            )
            for rank, node in enumerate(attempt.nodes)
        ]
        with self.store.write() as session:
            stamp = heartbeats.Stamp(monotonic_s=self.clock.monotonic())
            heartbeats.put(session, beats, now=now, stamps=[stamp] * len(beats))

    def train(self, run_id: str, first: int, last: int) -> Attempt:
        """The newest attempt starts, and trains from `first` to `last`."""
        self.backend.run(self.last(run_id).name)
        self.beat(run_id, first, last)
        self.round(1.0)
        return self.last(run_id)

    def started(self, *, last: int = 20, **spec: Any) -> str:
        """A run whose first attempt trains."""
        run_id = self.submit(**spec)
        self.round()
        self.train(run_id, 1, last)
        return run_id

    def save(self, run_id: str, step: int, *, no: int | None = None, epoch: int | None = None, at: float = 0.0) -> Path:
        """A whole checkpoint of an attempt, its state of `at` seconds from now."""
        attempt = self.last(run_id) if no is None else self.attempts(run_id)[no - 1]
        directory = step_directory(self.places.attempt(run_id, attempt.no), step)
        directory.mkdir(parents=True)
        at -= self.behind_s
        part = directory / "model.bin"
        part.write_bytes(f"{run_id} {attempt.no} {step}".encode())
        now = self.clock.now()
        manifest = Manifest(
            run_id=run_id,
            attempt_no=attempt.no,
            epoch=attempt.epoch if epoch is None else epoch,
            stage="pretrain",
            step=step,
            world_size=2,
            files=(ManifestFile("model.bin", part.stat().st_size, sha256_of(part)),),
            data_position=step * 1024,
            bias_checksum="b",
            state_at_s=now + at,
            written_at_s=now + at,
        )
        write_manifest(directory, manifest)
        return directory

    def hit(self, node: str = "node-1", **changes: Any) -> None:
        """An agent reports a fault (an uncorrectable memory error) and the server makes an incident of it."""
        onset = self.clock.now() - 1 - self.behind_s
        changes = {"onset_s": onset, "last_clean_s": onset - 1, "observed_s": onset, **changes}
        with self.store.write() as session:
            faults.record(session, [fault(self, node, **changes)], now=self.clock.now())  # type: ignore[arg-type]  # it needs a clock only
        incident_service.check_once(self.store, self.watch, self.epoch, self.clock.now())

    def end(self, run_id: str, state: Any, **termination: Any) -> None:
        """The newest attempt ends by itself, its first launcher saying this."""
        told = {0: {"at_s": self.clock.now(), "first_rank": 0, **termination}} if termination else None
        self.backend.end(self.last(run_id).name, state, told)

    def finish(self, run_id: str) -> None:
        """The newest attempt does what is left to do, and ends well."""
        attempt, steps = self.last(run_id), self.run(run_id).spec["spec"]["train"]["steps"]
        self.beat(run_id, attempt.first_step or (attempt.resume_step or 0) + 1, steps)
        self.end(run_id, "succeeded")

    def submissions(self) -> list[str]:
        return [name for call, name in self.backend.calls if call == "submit"]
