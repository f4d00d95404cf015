"""Whose devices are: the run, attempt, rank and pod on each GPU and on the port beside it. Pure.

Three witnesses, the nearest first: the ring of a living trainer names run and rank, and the trainer's process; the
compute driver names the processes on each GPU; the kubelet, or else the process's control group, names the pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agents.probe.ring import RingMeta
from agents.readings import GpuUser, NodeFacts
from agents.rules.evaluate import Attribution


def named(users: Sequence[GpuUser], ranks: Sequence[RingMeta]) -> tuple[GpuUser, ...]:
    """The users with the run and rank of those that are trainers: a process knows itself by its inner number."""
    by_pid = {meta.pid: meta for meta in reversed(ranks)}
    found = []
    for user in users:
        meta = by_pid.get(user.inner_pid) or by_pid.get(user.pid)
        found.append(user if meta is None else replace(user, run_id=meta.run_id, rank=meta.rank))
    return tuple(found)


def attribution(
    ranks: Sequence[RingMeta], users: Sequence[GpuUser], facts: NodeFacts, ages: Mapping[int, float]
) -> Attribution:
    """Who is on the node: the lowest rank of its newest attempt; and by device who is on it, where that is known.

    `ages` are the ranks' heartbeat ages in seconds. Eight ranks for eight GPUs whose processes cannot be told apart are
    taken in order, as launchers place them.
    """
    if not ranks:
        pods = {user.gpu: user.pod for user in users if user.pod}
        return Attribution(by_entity={f"gpu{gpu}": Attribution(pod=pod) for gpu, pod in pods.items()})
    attempt = [meta for meta in ranks if (meta.run_id, meta.attempt_no) == (ranks[0].run_id, ranks[0].attempt_no)]
    first = attempt[0]
    on = {user.gpu: user for user in users if user.run_id == first.run_id}
    whole = Attribution(
        run_id=first.run_id,
        attempt_no=first.attempt_no,
        rank=first.rank,
        pod=next((user.pod for user in users if user.pod), ""),
        heartbeat_age_s=min(ages.values(), default=None),
    )
    in_order = len(attempt) == len(facts.gpus)
    by_entity: dict[str, Attribution] = {}
    for gpu in facts.gpus:
        user = on.get(gpu.index)
        rank = user.rank if user is not None else attempt[gpu.index].rank if in_order else first.rank
        pod = user.pod if user is not None and user.pod else whole.pod
        age_s = ages.get(rank, whole.heartbeat_age_s)
        mine = by_entity[f"gpu{gpu.index}"] = replace(whole, rank=rank, pod=pod, heartbeat_age_s=age_s)
        port = next((nic.index for nic in facts.nics if nic.name == gpu.nic), None)
        if port is not None:
            by_entity[f"nic{port}"] = mine
    return replace(whole, by_entity=by_entity)
