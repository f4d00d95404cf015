"""The Jobs API of one Ray cluster, by plain HTTP: how a job is, and that it is to stop. No Ray is imported for it.

GET /api/jobs/ID says the status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED), POST /api/jobs/ID/stop makes Ray send
SIGTERM to the job's processes and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S of the head's environment; it answers at once,
and asked again it changes nothing. The cluster's token is the password. A Ray that does not answer says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import urllib3

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import LeaseTooOld

Json = dict[str, Any]
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
ANSWER_AT_MOST = 1 << 20


class RayApi:
    """Calls to Ray dashboards, each with its own token. `may_write` is asked before a job is told to stop."""

    def __init__(self, token_of: Callable[[str], str], may_write: Callable[[], bool] = lambda: True) -> None:
        self._token_of, self._may_write = token_of, may_write
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3.0, read=10.0), retries=False)

    def status(self, address: str, job_id: str) -> str:
        """The job's status; empty when Ray does not know it. BackendUnavailable when Ray cannot be asked."""
        found = self._asked("GET", address, job_id, "")
        return str(found.get("status") or "") if found is not None else ""

    def stop(self, address: str, job_id: str) -> bool:
        """Tells the job to stop; whether there was anything to tell. BackendUnavailable when Ray cannot be asked."""
        if not self._may_write():
            raise LeaseTooOld(f"the job {job_id} was not told to stop: the lease may have run out")
        found = self._asked("POST", address, job_id, "/stop")
        return bool((found or {}).get("stopped"))

    def _asked(self, method: str, address: str, job_id: str, verb: str) -> Mapping[str, Any] | None:
        """The answer, or None for a job that Ray does not know."""
        call = f"{method} /api/jobs/{job_id}{verb}"
        try:
            response = self._pool.request(
                method,
                f"{address}/api/jobs/{quote(job_id)}{verb}",
                headers={"Authorization": f"Bearer {self._token_of(job_id)}", "Accept": "application/json"},
                redirect=False,  # the token is for this address alone
                preload_content=False,
            )
            raw = response.read(ANSWER_AT_MOST)
            response.close()
        except urllib3.exceptions.HTTPError as error:
            raise BackendUnavailable(f"{call}: Ray at {address} does not answer: {error}") from error
        if response.status == 404:
            return None
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if response.status != 200 or not isinstance(found, dict):
            said = raw[:200].decode("utf-8", "replace")
            raise BackendUnavailable(f"{call}: Ray at {address} answers HTTP {response.status}: {said}")
        return found
