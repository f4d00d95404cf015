"""Attempts on a Ray cluster that is there already: a Ray job each, whose driver places one member a node.

The control plane speaks HTTP to the cluster's dashboard and keeps no copy of anything; what an attempt did stands in
Ray's record of its job and in its driver's output. The submission id is the attempt's name, so a submission whose
answer was lost is found again. A stop with time to save is the Jobs API's own; to kill at once takes a second job
(`killer.py`), since that API knows SIGTERM only. A head that does not answer is no evidence of anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane.backends.base import (
    AttemptPlan,
    BackendUnavailable,
    Forecast,
    Handle,
    NodeCapacity,
    NodeChange,
    NodeForecast,
    NodeStatus,
    Observation,
    Quarantine,
    StopMode,
    SubmitConflict,
)
from controlplane.backends.ray import look
from controlplane.backends.ray.cluster import OVER, RayCluster, RayNode
from controlplane.backends.ray.look import Told
from controlplane.backends.ray.words import (
    ENDED,
    KILL,
    KILLER,
    PLAN,
    STOP_MARGIN_S,
    heard,
    last_line,
    log_name,
    plan_text,
)

Json = dict[str, Any]
GONE_S = 90.0
"""from Ray's word that a node is dead until nothing runs there: its raylet looks for the head for 60 s"""
LINES_AT_MOST = 10_000
TAILS_AT_MOST = 64
"""members whose output is asked for their end in one look"""
REMEMBERED_AT_MOST = 256
RUN_DRIVER, RUN_KILLER = (f"exec python -m controlplane.backends.ray.{name}" for name in ("driver", "killer"))
CLEARED: Json = {"code": 137, "termination": None, "reason": "it was killed, its keeper before it"}
# nothing is installed and nothing uploaded on the way: every node has this package
_QUIET = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


class RayBackend:
    """`runtime_path`: where agents of the cluster's nodes look for heartbeats, unless a node's raylet names its own."""

    name = "ray"
    pins_nodes = True
    keeps_logs = False

    def __init__(
        self, cluster: RayCluster, *, runtime_path: str = "/run/trimtab", gone_s: Callable[[], float] = lambda: GONE_S
    ) -> None:
        self._cluster, self._runtime_path, self._gone_s = cluster, runtime_path, gone_s
        self._ends: dict[str, dict[int, Json]] = {}

    def start(self) -> None:
        """Needs no copy of anything."""

    def stop_watching(self) -> None:
        """Has none."""

    # --- submit ---

    def submit(self, plan: AttemptPlan) -> Handle:
        """One call; one that was taken before, by this or an earlier try, is adopted if it is this attempt's."""
        made = self._cluster.submit(self._body(plan))
        job = self._cluster.job(plan.name)
        if job is None:
            raise BackendUnavailable(f"Ray took {plan.name} and does not know it")
        told = job.get("metadata") or {}
        if (told.get(look.RUN), told.get(look.ATTEMPT), told.get(look.SPEC)) != (
            plan.run_uid,
            str(plan.attempt_no),
            plan.spec_hash,
        ):
            raise SubmitConflict(f"a Ray job {plan.name} exists and is not this attempt")
        return Handle(plan.name, look.uid(job), not made)

    def _body(self, plan: AttemptPlan) -> Json:
        variables = {
            **_QUIET,
            PLAN: plan_text(plan, self._runtime_path),
            # read by the job's supervisor, which gets these variables too; without it Ray kills after 3 s
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(plan.grace_s) + STOP_MARGIN_S),
        }
        return {
            "submission_id": plan.name,
            "entrypoint": RUN_DRIVER,
            "runtime_env": {"env_vars": variables},
            "metadata": {
                look.RUN: plan.run_uid,
                look.ATTEMPT: str(plan.attempt_no),
                look.SPEC: plan.spec_hash,
                look.SIZE: str(len(plan.nodes) or plan.node_count),
            },
        }

    def forecast(self, plan: AttemptPlan, /) -> Forecast:
        """The submission as it would be sent, and what every node has."""
        body = self._body(plan)
        try:
            alive = self._cluster.nodes().alive()
        except BackendUnavailable as error:
            return Forecast((body,), unasked=(str(error),))
        unknown = [name for name in plan.nodes if name not in alive]
        refusals = (f"the Ray cluster has no node {', '.join(unknown)}",) if unknown else ()
        nodes = tuple(_forecast(one, plan) for one in alive.values() if one.gpus)
        return Forecast((body,), refusals, nodes=nodes)

    # --- observe ---

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        return {name: self._look(name, now) for name in names}

    def _look(self, name: str, now: float) -> Observation:
        try:
            job = self._cluster.job(name)
            if job is None:
                self._ends.pop(name, None)
                return Observation(name, "absent", now)
            said = self._told(name, job)
            unseen = look.unseen(said, job)
            ends = self._looked_for(name, job, said, unseen) if unseen else {}
            nodes = self._cluster.nodes().by_id() if set(unseen) - set(ends) else {}
        except BackendUnavailable as error:
            return Observation(name, "unknown", now, reason=str(error))
        return look.judged(name, job, said, ends, nodes, now)

    def _told(self, name: str, job: Mapping[str, Any]) -> Told:
        if job.get("status") == "PENDING":
            return Told({})
        return look.told(heard(self._cluster.output(name)))

    def _looked_for(self, name: str, job: Mapping[str, Any], said: Told, unseen: Sequence[int]) -> dict[int, Json]:
        """How members ended of which the driver heard nothing, by index.

        It stands below their own output, or a killer says that it left nothing of them.
        """
        found = self._ends.setdefault(name, {})
        if len(self._ends) > REMEMBERED_AT_MOST:
            del self._ends[next(iter(self._ends))]
        for index in [one for one in unseen if one not in found][:TAILS_AT_MOST]:
            try:
                output = self._cluster.tail(said.parts[index].node_id, log_name(name, index), 1)
            except BackendUnavailable:
                continue  # a node that is gone keeps its files to itself
            end = last_line(output)
            if end is not None:
                found[index] = end
        open_ = [one for one in unseen if one not in found]
        cleared = self._cleared(job) if open_ else set()
        found |= {one: CLEARED for one in open_ if said.parts[one].node_id in cleared}
        return found

    # --- stop, fence ---

    def stop(self, name: str, *, mode: StopMode) -> None:
        """`terminate`: the driver is told, and tells the members. `kill`: another job kills the members."""
        job = self._cluster.job(name)
        if job is None:
            return
        if mode == "terminate":
            self._cluster.stop_job(name)
            return
        said = self._told(name, job)
        if job.get("status") in OVER:
            done = self._none_left(name, job, said) or not said.parts  # there is nobody whom a killer could find
        else:
            # nothing has begun, or all of it has ended: there is nobody who could save
            done = all(part.end is not None for part in said.parts.values())
            if done:
                self._cluster.stop_job(name)
        if not done:
            self._kill(job, name, [part.node_id for _, part in sorted(said.parts.items())])

    def _kill(self, job: Mapping[str, Any], name: str, nodes: Sequence[str]) -> None:
        """One killer at a time; one that is over and has not done it is followed by another."""
        asked = {"name": name, "nodes": list(nodes)}
        body = {
            "submission_id": name + KILLER,
            "entrypoint": RUN_KILLER,
            "runtime_env": {"env_vars": {**_QUIET, KILL: json.dumps(asked)}},
            "metadata": {"trimtab-kills": name, look.AFTER: look.uid(job) if job.get("status") in OVER else ""},
        }
        if self._cluster.submit(body):
            return
        before = self._cluster.job(name + KILLER)
        if before is not None and before.get("status") in OVER:
            self._cluster.forget_job(name + KILLER)
            self._cluster.submit(body)

    def fenced(self, name: str) -> bool:
        """Whether the driver is over, and each member has ended or is on a node that Ray gave up long ago.

        Of a job that Ray does not know: whether its head is older than what a raylet outlives an earlier head by.
        """
        job = self._cluster.job(name)
        if job is None:
            return self._cluster.nodes().head_age_s() >= self._gone_s()
        return job.get("status") in OVER and self._none_left(name, job, self._told(name, job))

    def _none_left(self, name: str, job: Mapping[str, Any], said: Told) -> bool:
        """Whether nothing of an attempt whose driver is over can write any more."""
        if look.unheard(said, job):
            return look.long_over(job, self._cluster.nodes().head_s, self._gone_s())
        unended = [index for index, part in said.parts.items() if part.end is None]
        if not unended:
            return True
        ends = self._looked_for(name, job, said, unended)
        lacking = [said.parts[index].node_id for index in unended if index not in ends]
        if not lacking:
            return True
        nodes = self._cluster.nodes()
        known = nodes.by_id()
        return all(look.given_up(known.get(one), nodes.head_s, self._gone_s()) for one in lacking)

    def _cleared(self, job: Mapping[str, Any]) -> set[str]:
        """Ids of the nodes on which a killer found nothing of the attempt any more.

        Of one that was sent after the driver had ended: before that a member may be placed and begin behind its back.
        """
        name = f"{job.get('submission_id')}{KILLER}"
        killer = self._cluster.job(name)
        if killer is None or (killer.get("metadata") or {}).get(look.AFTER) != look.uid(job):
            return set()
        words = heard(self._cluster.output(name))
        return {str(word.get("node_id")) for word in words if word["kind"] == "cleared"}

    # --- nodes ---

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        """Free is a node without a placement group that holds GPUs, ours or anybody's."""
        alive, held = self._cluster.nodes().alive(), self._cluster.held()
        return [NodeCapacity(name, alive[name].id not in held) for name in nodes if name in alive]

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        del wanted  # Ray can only drain a node for good: placement leaves such nodes out
        return []

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        del leases  # Ray tells of no node when it was heard last
        found = self._cluster.nodes()
        latest = {one.name: one for one in sorted(found.all, key=lambda one: (one.alive, one.began_s))}
        return {name: _status(latest[name]) for name in nodes if name in latest}

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        """The end of a member's output, without its keeper's last line. BackendUnavailable if its node is gone."""
        job = self._cluster.job(name)
        part = self._told(name, job).parts.get(index) if job is not None else None
        if part is None:
            return b""
        output = self._cluster.tail(part.node_id, log_name(name, index), LINES_AT_MOST)
        text, mark, _ = output.rpartition(b"\n" + ENDED.encode())
        return (text if mark else output)[-limit:]


def _status(node: RayNode) -> NodeStatus:
    told = ({"type": "Ray", "status": "DEAD", "message": node.message},) if not node.alive else ()
    return NodeStatus(node.name, ready=node.alive, schedulable=node.alive, conditions=told)


def _forecast(node: RayNode, plan: AttemptPlan) -> NodeForecast:
    lacking = node.gpus < plan.gpus_per_node
    refusal = f"has {node.gpus:.0f} GPUs of the {plan.gpus_per_node} asked for" if lacking else ""
    if node.name in plan.excluded:
        refusal = "is excluded"
    return NodeForecast(node.name, int(node.gpus), refusal)
