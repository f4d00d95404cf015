"""A Ray cluster as its dashboard tells it: jobs, nodes, placement groups, and what members have written.

The Jobs API (/api/jobs) starts and stops; the state API (/api/v0) is read. Both are Ray 2.60's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from controlplane.backends.base import BackendUnavailable, SubmitConflict
from controlplane.backends.ray.http import Answer, RayHttp
from controlplane.backends.ray.words import GROUP, node_name

Json = dict[str, Any]
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
LISTED_AT_MOST = 10_000
"""rows of one answer of the state API, its own limit"""


@dataclass(frozen=True, slots=True)
class RayNode:
    """A raylet. One that starts again on the same machine is another node."""

    id: str
    name: str
    alive: bool
    is_head: bool
    gpus: float
    began_s: float
    """Unix seconds of the head's clock"""
    ended_s: float
    """likewise; 0 while it is alive"""
    message: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes that Ray remembers, and the head's clock when it said so."""

    all: tuple[RayNode, ...]
    head_s: float

    def alive(self) -> dict[str, RayNode]:
        """The living ones by name; of two of one name the younger."""
        return {one.name: one for one in sorted(self.all, key=lambda one: one.began_s) if one.alive}

    def by_id(self) -> dict[str, RayNode]:
        return {one.id: one for one in self.all}

    def head_age_s(self) -> float:
        """For how long this Ray's head has been there; 0 if that cannot be told."""
        began = [one.began_s for one in self.all if one.is_head and one.alive]
        return self.head_s - max(began) if began and self.head_s else 0.0


class RayCluster:
    """`address` is the dashboard's URL. `may_write` is asked before each call that changes something."""

    def __init__(self, address: str, http: RayHttp, may_write: Callable[[], bool] = lambda: True) -> None:
        self.address, self._http, self._may_write = address.rstrip("/"), http, may_write

    # --- jobs ---

    def job(self, name: str) -> Json | None:
        """A job's record; None if Ray knows none of this name."""
        found = self._call("GET", f"/api/jobs/{quote(name)}")
        return None if found.status == 404 else _object(self._ok(found, f"the job {name}"), f"the job {name}")

    def submit(self, body: Json) -> bool:
        """Submits a job; False if one of this name is there. SubmitConflict for what Ray would never take."""
        found = self._call("POST", "/api/jobs/", body)
        if found.status != 200 and b"already exists" in found.body:  # 500 in Ray 2.60: its head wraps its agent's 400
            return False
        if found.status == 400:
            raise SubmitConflict(f"Ray does not take {body['submission_id']}: {found.words}")
        self._ok(found, f"the submission of {body['submission_id']}")
        return True

    def stop_job(self, name: str) -> bool:
        """Sends SIGTERM to a job's driver; whether there was one to send it to."""
        found = self._call("POST", f"/api/jobs/{quote(name)}/stop", {})
        if found.status == 404:
            return False
        return bool(_object(self._ok(found, f"the stop of {name}"), "the stop").get("stopped"))

    def forget_job(self, name: str) -> None:
        """Takes the record of a job that is over away, so that its name can be used again."""
        found = self._call("DELETE", f"/api/jobs/{quote(name)}")
        if found.status != 404:
            self._ok(found, f"the removal of {name}")

    def output(self, name: str) -> str:
        """What a job's driver has written; empty before it began."""
        found = self._call("GET", f"/api/jobs/{quote(name)}/logs")
        if found.status == 404:
            return ""
        return str(_object(self._ok(found, f"the output of {name}"), f"the output of {name}").get("logs") or "")

    # --- state ---

    def nodes(self) -> Nodes:
        """Every node that Ray remembers, the dead ones too."""
        found = self._call("GET", f"/api/v0/nodes?{urlencode({'detail': 1, 'limit': LISTED_AT_MOST})}")
        return Nodes(tuple(_node(row) for row in _rows(self._ok(found, "the nodes"), "the nodes")), found.head_s)

    def held(self) -> set[str]:
        """Ids of the nodes on which a placement group of ours is, or one of anybody's that holds GPUs."""
        asked: Json = {"detail": 1, "limit": LISTED_AT_MOST}
        asked |= {"filter_keys": "state", "filter_predicates": "!=", "filter_values": "REMOVED"}
        found = self._call("GET", f"/api/v0/placement_groups?{urlencode(asked)}")
        rows = _rows(self._ok(found, "the placement groups"), "the placement groups")
        return {str(one.get("node_id")) for row in rows for one in _bundles(row)} - {"", "None"}

    def tail(self, node_id: str, file: str, lines: int) -> bytes:
        """The last lines of a file among a node's Ray logs; empty if it is not there."""
        asked = urlencode({"node_id": node_id, "filename": file, "lines": lines})
        found = self._call("GET", f"/api/v0/logs/file?{asked}")
        if found.status == 500 and b"not found at" in found.body:
            return b""
        return self._ok(found, f"{file} of node {node_id[:8]}").body

    def _call(self, method: str, path: str, body: object = None) -> Answer:
        if method != "GET" and not self._may_write():
            raise BackendUnavailable(f"{method} {path} was not sent: the lease may have run out")
        return self._http.call(method, self.address, path, body)

    def _ok(self, found: Answer, what: str) -> Answer:
        if found.status != 200:
            raise BackendUnavailable(f"{what}: Ray at {self.address} answers HTTP {found.status}: {found.words}")
        return found


def _object(found: Answer, what: str) -> Json:
    told = found.json()
    if not isinstance(told, dict):
        raise BackendUnavailable(f"{what}: Ray answers what is no JSON object: {found.words}")
    return told


def _rows(found: Answer, what: str) -> list[Json]:
    told = _object(found, what)
    rows = ((told.get("data") or {}).get("result") or {}).get("result")
    if not told.get("result") or not isinstance(rows, list):
        raise BackendUnavailable(f"{what}: Ray could not list them: {told.get('msg')}")
    return rows


def _node(row: Mapping[str, Any]) -> RayNode:
    return RayNode(
        id=str(row["node_id"]),
        name=node_name(str(row.get("node_name") or ""), row.get("labels") or {}),
        alive=row.get("state") == "ALIVE",
        is_head=bool(row.get("is_head_node")),
        gpus=float((row.get("resources_total") or {}).get("GPU", 0.0)),
        began_s=float(row.get("start_time_ms") or 0) / 1000,
        ended_s=float(row.get("end_time_ms") or 0) / 1000,
        message=str(row.get("state_message") or ""),
    )


def _bundles(group: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    ours = str(group.get("name") or "").startswith(GROUP)
    return [one for one in group.get("bundles") or () if ours or (one.get("unit_resources") or {}).get("GPU")]
