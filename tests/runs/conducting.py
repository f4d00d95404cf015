"""A pilot who also conducts: lifecycles on the scripted cluster, their runs doing what a script says, files and all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.runs.lifecycle_view import PlanView
from controlplane.services import lifecycles as service
from controlplane.services import lifecycles_look, views_lifecycles
from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.reconcile import Controller
from controlplane.store import events, lifecycles
from controlplane.store.engine import Store
from controlplane.store.lifecycles import OfStage
from controlplane.store.tables import Event, LifecycleStage, LifecycleState
from jobs.contract import Result, checkpoint_hash, write_result
from jobs.lifecycle import parse_lifecycle
from tests.runs.piloting import Pilot

Json = dict[str, Any]
JOB: Json = {"command": ["python", "train.py"], "train": {"steps": 10, "checkpointEvery": 5}}
LOSS = 2.0


def plan(*stages: Json, name: str = "walk", **defaults: Any) -> Json:
    """A lifecycle of these stages, each with a small job of its own where it names none."""
    return {
        "apiVersion": "trimtab/v1",
        "kind": "Lifecycle",
        "metadata": {"name": name},
        "spec": {
            "defaults": {"resources": {"nodes": 1, "gpusPerNode": 8}, **defaults},
            "stages": [{"job": JOB, **stage} for stage in stages],
        },
    }


def gate(*require: str, approval: bool = False) -> Json:
    """A gate with an evaluation of its own where it requires anything."""
    return {"evaluation": JOB, "require": list(require), "approval": approval} if require else {"approval": approval}


class Conducting(Pilot):
    """Five nodes, a controller and a conductor that lead together. `metrics` is what evaluations find, by stage."""

    def __init__(self, store: Store, folder: Path, node_count: int = 5) -> None:
        self.metrics: dict[str, Mapping[str, float]] = {}
        self.says: dict[str, str] = {}
        """by stage, the hash that its evaluations claim to be of, if it is another one"""
        super().__init__(store, folder, node_count)

    def new_controller(self) -> Controller:
        controller = super().new_controller()
        self.conductor = Conductor(self.store, self.places, controller, lambda _spec: "memory")
        return controller

    def begin(self, *stages: Json, **more: Any) -> str:
        """Submits a lifecycle; returns its id."""
        parsed = parse_lifecycle(plan(*stages, **more))
        with self.store.write() as session:
            made = service.submit(session, parsed, where=lambda _spec: "memory", actor="ada", now=self.clock.now())
            return made.id

    def tick(self, seconds: float = 1.0) -> list[str]:
        """Time passes, both make a round."""
        self.clock.advance(seconds)
        self.greet()
        moves = self.conductor.reconcile_once(self.epoch, self.clock.now())
        return moves + self.round()

    # --- what the runs do ---

    def works(self, lifecycle_id: str) -> list[OfStage]:
        with self.store.read() as session:
            return lifecycles.runs_of(session, lifecycle_id)

    def newest(self, lifecycle_id: str, stage: str, role: str = "train") -> OfStage:
        return [one for one in self.works(lifecycle_id) if (one.work.stage, one.work.role) == (stage, role)][-1]

    def work(self, run_id: str) -> None:
        """The run's attempt does what its role asks for, once, and ends well."""
        attempt = self.last(run_id)
        running = self.backend.attempts.get(attempt.name)
        if running is None or running.state not in ("pending", "running"):
            return
        self.backend.run(attempt.name)
        environment = running.plan.environment
        role, stage = environment["TRIMTAB_ROLE"], environment["TRIMTAB_STAGE"]
        steps = int(json.loads(environment["TRIMTAB_TRAIN_JSON"])["steps"])
        folder = self.places.attempt(run_id, attempt.no)
        if role == "train":
            first = (attempt.resume_step or 0) + 1
            self.beat(run_id, first, steps)
            if not (folder / f"step-{steps:08d}").exists():
                self.save(run_id, steps)
        elif role == "prepare":
            (Path(environment["TRIMTAB_PREPARED_DIR"]) / "data.jsonl").write_text("{}\n")
        else:
            metrics = self.metrics.get(stage, {"loss": LOSS, "loads": 1.0})
            write_result(folder, Result(metrics, self.says.get(stage, environment["TRIMTAB_INIT_HASH"])))
        self.backend.end(attempt.name, "succeeded")

    def work_all(self, lifecycle_id: str) -> None:
        """Every run that has an attempt does its work."""
        for one in self.works(lifecycle_id):
            if self.attempts(one.run.id):
                self.work(one.run.id)

    def walk(self, lifecycle_id: str, *, until: str = "", rounds: int = 40) -> str:
        """Rounds in which all runs do their work, until a stage is held (or one of the states `until` is reached)."""
        for _ in range(rounds):
            self.tick()
            states = {one.state for one in self.stages(lifecycle_id).values()}
            if self.state(lifecycle_id).status != "active" or (until or "held") in states:
                break
            self.work_all(lifecycle_id)
        return self.state(lifecycle_id).status

    # --- what is seen ---

    def state(self, lifecycle_id: str) -> LifecycleState:
        with self.store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
        assert found is not None
        return found.state

    def stages(self, lifecycle_id: str) -> dict[str, LifecycleStage]:
        with self.store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
        assert found is not None
        return {one.name: one for one in found.stages}

    def held(self, lifecycle_id: str) -> LifecycleStage:
        """The one stage that is held."""
        (found,) = [one for one in self.stages(lifecycle_id).values() if one.state == "held"]
        return found

    def story(self, lifecycle_id: str) -> list[str]:
        """The sentences of the timeline."""
        with self.store.read() as session:
            return [one["sentence"] for one in views_lifecycles.timeline(session, lifecycle_id)]

    def look(self, lifecycle_id: str) -> PlanView:
        with self.store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
            assert found is not None
            return lifecycles_look.view_of(session, found, parse_lifecycle(found.plan.spec), self.clock.now())

    def shown(self, lifecycle_id: str) -> Json:
        with self.store.read() as session:
            found = lifecycles.get(session, lifecycle_id)
            assert found is not None
            return views_lifecycles.view(session, found, self.clock.now())

    def told(self, lifecycle_id: str, *kinds: str) -> list[Event]:
        with self.store.read() as session:
            return [one for one in events.listed(session, lifecycle_id=lifecycle_id) if one.kind in kinds]

    # --- what a person does ---

    def say(self, lifecycle_id: str, stage: str, verdict: str, hash_: str = "", reason: str = "") -> None:
        asked = hash_ or self.stages(lifecycle_id)[stage].candidate_hash
        with self.store.write() as session:
            service.say(
                *(session, lifecycle_id, stage),
                verdict=verdict,
                checkpoint_hash=asked,
                reason=reason,
                actor="bob",
                now=self.clock.now(),
            )

    def retry(self, lifecycle_id: str, stage: str, **how: bool) -> None:
        with self.store.write() as session:
            service.retry(session, lifecycle_id, stage, actor="bob", now=self.clock.now(), **how)

    def ask(self, lifecycle_id: str, verb: str) -> None:
        with self.store.write() as session:
            getattr(service, verb)(session, lifecycle_id, actor="bob", now=self.clock.now())

    def clone(self, lifecycle_id: str, begin: str, *stages: Json) -> str:
        """A clone, of these stages if any are named."""
        with self.store.write() as session:
            made = service.clone(
                *(session, lifecycle_id),
                begin=begin,
                plan=parse_lifecycle(plan(*stages)) if stages else None,
                where=lambda _spec: "memory",
                actor="bob",
                now=self.clock.now(),
            )
            return made.id

    def promote(self, lifecycle_id: str, alias: str, hash_: str) -> Mapping[str, Any]:
        with self.store.write() as session:
            return service.promote(session, lifecycle_id, alias, hash_, actor="bob", now=self.clock.now())

    def taint(self, hash_: str) -> None:
        """A checkpoint turns out to be spoilt, as after a fault that is told late."""
        with self.store.write() as session:
            row = lifecycles.checkpoint(session, hash_)
            assert row is not None
            row.state, row.reason = "tainted", "its state was computed on a sick node"

    def hash_of(self, lifecycle_id: str, stage: str, step: int = 10) -> str:
        run_id = self.newest(lifecycle_id, stage).run.id
        return checkpoint_hash(self.places.attempt(run_id, self.last(run_id).no) / f"step-{step:08d}")
