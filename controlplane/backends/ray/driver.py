"""The Ray job of an attempt: places its members, one a node, starts them, and says in its output what becomes of them.

It runs on the cluster (`python -m controlplane.backends.ray.driver`, the plan in its environment) and decides nothing:
a gang ends with its first failure, a member that is gone is not started again. Told to stop (SIGTERM, by Ray's Jobs
API) it lets the members save and ends after the last of them. When it dies, Ray ends its actors, and with them their
members.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from controlplane.backends.base import AttemptPlan
from controlplane.backends.ray.member import Member
from controlplane.backends.ray.words import GROUP, NAMESPACE, PLAN, node_name, read_plan, said

LOOK_S = 0.2
ASK_AGAIN_S = 2.0
"""between two times that a member is asked to end; its keeper passes the first on and no other"""
SLOTS = 4
"""threads of a member's actor: one waits, the others take words"""
NODE_ID = "ray.io/node-id"
_told: list[int] = []


def _stop(number: int, _frame: FrameType | None) -> None:
    _told.append(number)


def _say(kind: str, **what: Any) -> None:
    print(said(kind, **what), flush=True)


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's, untyped
    return found


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def bundle(plan: AttemptPlan) -> dict[str, float]:
    """What a member holds of its node: its GPUs, and a core where it wants none."""
    return {"GPU": float(plan.gpus_per_node)} if plan.gpus_per_node else {"CPU": 1.0}


def selectors(plan: AttemptPlan, nodes: dict[str, str]) -> list[dict[str, str]]:
    """Where each member may be: on its named node, or anywhere but on the excluded ones. `nodes`: id by name."""
    if plan.nodes:
        return [{NODE_ID: nodes[name]} for name in plan.nodes]
    barred = sorted(nodes[name] for name in plan.excluded if name in nodes)
    one = {NODE_ID: f"!in({','.join(barred)})"} if barred else {}
    return [dict(one) for _ in range(plan.node_count)]


class Gang:
    """The members of one attempt."""

    def __init__(self, plan: AttemptPlan, runtime_path: str) -> None:
        self.plan, self.runtime_path = plan, runtime_path
        self.size = len(plan.nodes) or plan.node_count
        self.failed = 0
        self._actors: list[Any] = []
        self._meet = ("", 0)
        self._over: set[int] = set()
        self._asked_s: float | None = None

    def run(self) -> int:
        """Runs to the end: 0 if every member was done, else the code of the first that was not."""
        known = {node_name(one["NodeName"], one["Labels"]): one["NodeID"] for one in _nodes() if one["Alive"]}
        absent = [name for name in self.plan.nodes if name not in known]
        if absent:
            _say("refused", reason=f"the Ray cluster has no node {', '.join(absent)}")
            return 1
        chosen = selectors(self.plan, known)
        group = placement_group(
            [bundle(self.plan)] * self.size,
            strategy="STRICT_SPREAD",
            name=GROUP + self.plan.name,
            bundle_label_selector=chosen if any(chosen) else None,
        )
        while not group.wait(LOOK_S):
            if _told:
                return 1
        names = {id_: name for name, id_ in known.items()}
        places = placement_group_table(group)["bundles_to_node_id"]
        nodes = [names.get(places[index], places[index]) for index in range(self.size)]
        for index, node in enumerate(nodes):  # before anything is started: whoever reads this knows of all that may run
            _say("placed", index=index, node=node, node_id=places[index])
        return self._keep(group, nodes)

    def _keep(self, group: PlacementGroup, nodes: list[str]) -> int:
        held = bundle(self.plan)
        for index, node in enumerate(nodes):
            actor = ray.remote(Member).options(
                name=f"{self.plan.name}.{index}",
                num_cpus=held.get("CPU", 0.0),
                num_gpus=held.get("GPU", 0.0),
                max_restarts=0,
                max_concurrency=SLOTS,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            self._actors.append(actor.remote(self.plan.name, index, node))
        waits = self._asking("place", 0)
        while waits:
            ready, _ = ray.wait(list(waits), timeout=LOOK_S)
            for one in ready:
                step, index = waits.pop(one)
                waits |= self._next(step, index, one)
            if _told or self._asked_s is not None:
                self._ask()
        return self.failed

    def _next(self, step: str, index: int, ready: Any) -> dict[Any, tuple[str, int]]:
        """What follows an answer of a member; what is to be waited for then."""
        try:
            answer = ray.get(ready)
        except ray.exceptions.ActorUnavailableError:
            time.sleep(LOOK_S)  # its node may come back; Ray says so when it counts it as dead
            return self._asking(step, index)
        except ray.exceptions.RayError as error:
            return self._failed(step, index, error)
        if step == "place":
            self._meet = answer
            if _told:
                return self._none_begins("it was told to stop before it began")
            return {one: what for index in range(self.size) for one, what in self._asking("begin", index).items()}
        if step == "begin":
            _say("started", index=index)
            if self._asked_s is not None:
                self._actors[index].terminate.remote()
            return self._asking("wait", index)
        self._ended(index, answer)
        return {}

    def _failed(self, step: str, index: int, error: Exception) -> dict[Any, tuple[str, int]]:
        if step == "place":
            return self._none_begins(f"the members had no place to meet: {_line(error)}")
        if step == "begin" and isinstance(error, ray.exceptions.RayTaskError):
            self._ended(index, {"code": 126, "termination": None, "reason": f"it could not begin: {error.cause}"})
        else:
            _say("lost", index=index, reason=_line(error))
            self._over.add(index)
            self._fail(1)
        return {}

    def _none_begins(self, reason: str) -> dict[Any, tuple[str, int]]:
        for index in range(self.size):
            self._ended(index, {"code": 1, "termination": None, "reason": reason})
        return {}

    def _ended(self, index: int, end: dict[str, Any]) -> None:
        _say("ended", index=index, end=end)
        self._over.add(index)
        if end["code"]:
            self._fail(int(end["code"]))

    def _asking(self, step: str, index: int) -> dict[Any, tuple[str, int]]:
        """A member's call of this step, to be waited for. Asked twice, each does what it did and no more."""
        actor = self._actors[index]
        if step == "begin":
            given = list(self.plan.command), self._environment(index), self.runtime_path
            return {actor.begin.remote(*given): (step, index)}
        return {(actor.place if step == "place" else actor.wait).remote(): (step, index)}

    def _environment(self, index: int) -> dict[str, str]:
        address, port = self._meet
        return {
            **self.plan.environment,
            "PET_NNODES": str(self.size),
            "PET_NPROC_PER_NODE": str(self.plan.ranks_per_node),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": address,
            "PET_MASTER_PORT": str(port),
            "PET_MAX_RESTARTS": "0",
            "PET_RDZV_ID": self.plan.name,
            "JOB_COMPLETION_INDEX": str(index),
            "PYTHONUNBUFFERED": "1",
            "TRIMTAB_ATTEMPT_NAME": self.plan.name,
        }

    def _fail(self, code: int) -> None:
        self.failed = self.failed or code
        self._ask()

    def _ask(self) -> None:
        """Asks every member that goes on to save and end, again and again: a call is lost where the network fails."""
        now = time.monotonic()
        if self._asked_s is not None and now - self._asked_s < ASK_AGAIN_S:
            return
        self._asked_s = now
        for index, actor in enumerate(self._actors):
            if index not in self._over:
                actor.terminate.remote()


def main() -> int:
    """The attempt, from its plan to its members' end."""
    plan, runtime_path = read_plan(os.environ[PLAN])
    signal.signal(signal.SIGTERM, _stop)
    _say("began")  # output without this word is lost, not empty
    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)  # Ray has put its own in place
    try:
        return Gang(plan, runtime_path).run()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
