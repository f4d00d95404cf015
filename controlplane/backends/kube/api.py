"""The API server, JSON in and JSON out: the one place that sends it anything and that reads its errors.

The official client gives configuration, credentials and TLS; its typed models cost more CPU than the calls (a list of
1,024 pods) and hide fields that are newer than they are, so bodies stay plain data. Every call takes from the token
bucket, has a deadline, and asks `may_write` first when it changes something: a controller whose lease is too old to be
sure of must not touch the cluster. Errors are translated once, here; nothing is retried here.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3
from kubernetes import client as k8s
from kubernetes import config as k8s_config

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.bucket import TokenBucket

Json = dict[str, Any]
Item = TypeVar("Item")
Answer = TypeVar("Answer")
TIMEOUT_S = 10.0
CALLS_AT_ONCE = 8
"""half of the connections that the client keeps"""
TAIL_LINES = (10_000, 1000, 100, 10, 1)
TAIL_BYTES = 4 << 20
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class LeaseTooOld(BackendUnavailable):
    """The lease may have run out: nothing was sent."""


class Refused(Exception):
    """The API server understood and said no. `reason` is its machine-readable word; `details` may name the field."""

    def __init__(self, call: str, status: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(f"{call}: {message}")
        self.call, self.status, self.reason, self.message, self.details = call, status, reason, message, details or {}


class NotFound(Refused):
    """There is no such object."""


class AlreadyExists(Refused):
    """An object of that name is there."""


class Conflict(Refused):
    """The object has changed since it was read, another manager owns the field, or a precondition does not hold."""


class Forbidden(Refused):
    """The service account may not do this; the message names verb, resource and namespace."""


class Gone(Refused):
    """The version to watch from is too old: list again."""


class Invalid(Refused):
    """The object is not valid, or an admission rule refuses it."""


_BY_REASON: Mapping[str, type[Refused]] = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Forbidden": Forbidden,
    "Unauthorized": Forbidden,
    "Gone": Gone,
    "Expired": Gone,
    "Invalid": Invalid,
    "BadRequest": Invalid,
}
_BY_STATUS: Mapping[int, type[Refused]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def refusal(call: str, status: int, body: Json) -> Refused:
    """The error that a Status object stands for."""
    reason, message = str(body.get("reason") or ""), str(body.get("message") or f"HTTP {status}")
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(status) or Refused
    return kind(call, status, reason, message, body.get("details"))


def connect(kubeconfig: str = "", context: str = "") -> k8s.ApiClient:
    """A client from a kubeconfig file, or from inside a pod. BackendUnavailable if there is neither."""
    settings = k8s.Configuration()
    settings.retries = False
    settings.connection_pool_maxsize = 16
    try:
        if kubeconfig:
            k8s_config.load_kube_config(  # type: ignore[no-untyped-call]  # the client has no types there
                kubeconfig, context=context or None, client_configuration=settings
            )
        else:
            k8s_config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # as above
    except (k8s_config.ConfigException, OSError) as error:
        raise BackendUnavailable(f"no way to the API server: {error}") from error
    return k8s.ApiClient(settings)


class KubeApi:
    """Calls to one API server. `may_write` is asked before each call that changes something."""

    def __init__(
        self, client: k8s.ApiClient, bucket: TokenBucket | None = None, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        self._client, self._bucket, self._may_write = client, bucket or TokenBucket(), may_write
        self._pool: urllib3.PoolManager = client.rest_client.pool_manager
        self._counting = threading.Lock()
        self.calls: Counter[tuple[str, str]] = Counter()
        """(method, answer) -> calls, for /metrics and for the benches"""
        self.before_call: Callable[[str], None] = lambda _call: None
        """a test's place to die"""
        self.after_call: Callable[[str], None] = lambda _call: None

    def get(self, path: str, **query: object) -> Json:
        """One object, or a list."""
        return self._json("GET", path, query)

    def text(self, path: str, **query: object) -> bytes:
        """What is not JSON: a log."""
        with self._sent("GET", path, query) as response:
            return response.read()

    def tail(self, path: str, limit: int) -> bytes:
        """The end of a pod's log, `limit` bytes at most.

        A kubelet takes the last so many lines and sends their first so many bytes: where those are not all, fewer lines
        are asked for.
        """
        found = b""
        for lines in TAIL_LINES:
            found = self.text(path, tailLines=lines, limitBytes=TAIL_BYTES)
            if len(found) < TAIL_BYTES:
                break
        return found[-limit:]

    def create(self, path: str, body: Json, *, dry_run: bool = False, manager: str = "trimtab") -> Json:
        """A new object; AlreadyExists when the name is taken. A dry run makes nothing, so anybody may ask for one."""
        return self._json("POST", path, _writing(dry_run, manager), body, changes=not dry_run)

    def patch(
        self, path: str, body: Json | list[Json], *, kind: str, manager: str = "trimtab", force: bool = False
    ) -> Json:
        """Changes an object; `kind` is json, merge or apply. Conflict when a test or a field's owner is against it."""
        query: Json = {"fieldManager": manager}
        if force:
            query["force"] = "true"
        return self._json("PATCH", path, query, body, PATCHES[kind])

    def delete(self, path: str, *, uid: str = "", grace_s: int | None = None, propagation: str = "Background") -> None:
        """Deletes an object, only if its uid is `uid` when one is given; one that is not there is no error."""
        body: Json = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            self._json("DELETE", path, {}, body)
        except NotFound:
            return

    def delete_all(self, path: str, selector: str, *, grace_s: int | None = None) -> None:
        """Deletes every object of a collection that the label selector names."""
        body: Json = {"propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        self._json("DELETE", path, {"labelSelector": selector}, body)

    def watch(self, path: str, *, version: str, server_timeout_s: int, **query: object) -> Iterator[Json]:
        """Events from a version on, until the server ends the stream; an ERROR event is raised as its refusal.

        The read deadline is the server's timeout and a little more: a stream that went silent ends by itself.
        """
        asked = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": server_timeout_s,
        }
        with self._sent("GET", path, asked, read_s=server_timeout_s + TIMEOUT_S) as response:
            for line in _lines(response):
                event: Json = json.loads(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise refusal(f"watch {path}", int(status.get("code") or 500), status)
                yield event

    # --- one call ---

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Any = None,
        content_type: str = "application/json",
        *,
        changes: bool = True,
    ) -> Json:
        with self._sent(method, path, query, body, content_type, changes=changes) as response:
            raw = response.read()
        found: Json = json.loads(raw) if raw else {}
        self.after_call(f"{method} {path}")
        return found

    @contextmanager
    def _sent(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Any = None,
        content_type: str = "application/json",
        read_s: float = TIMEOUT_S,
        changes: bool = True,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response of a call that was answered with success; the connection goes back to the pool afterwards."""
        call = f"{method} {path}"
        begun = self._bucket.take()
        if method != "GET" and changes and not self._may_write():
            raise LeaseTooOld(f"{call} was not sent: the lease may have run out")
        self.before_call(call)
        try:
            response = self._pool.request(
                method,
                f"{self._client.configuration.host}{path}{_query(query)}",
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers(content_type),
                timeout=urllib3.Timeout(connect=5.0, read=read_s),
                preload_content=False,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            self._count(method, "no answer")
            raise BackendUnavailable(f"{call}: the API server does not answer: {error}") from error
        try:
            self._count(method, str(response.status))
            if response.status != 429 and response.status < 500:
                self._bucket.answered(begun)
            if response.status >= 300:
                raise self._refused(call, response)
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise BackendUnavailable(f"{call}: the answer broke off: {error}") from error
        finally:
            response.close()  # one that was read to its end is back in the pool already

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "trimtab"}
        token = self._client.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {**headers, "Authorization": token} if token else headers

    def _refused(self, call: str, response: urllib3.BaseHTTPResponse) -> Exception:
        raw = response.read()
        try:
            body = json.loads(raw)
        except ValueError:
            body = {"message": raw[:200].decode("utf-8", "replace")}
        if response.status == 429 or response.status >= 500:
            waits = response.headers.get("Retry-After", "")
            self._bucket.hold(float(waits) if waits.isdigit() else 1.0)
            return BackendUnavailable(f"{call}: HTTP {response.status}: {body.get('message')}")
        return refusal(call, response.status, body if isinstance(body, dict) else {})

    def _count(self, method: str, answer: str) -> None:
        with self._counting:
            self.calls[method, answer] += 1


def at_once(act: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """Several calls side by side, in order of the items; a single one in the caller's own thread.

    Raises the first error in that order, once all have been tried.
    """
    if len(items) <= 1:
        return [act(item) for item in items]
    with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="kube calls") as calls:
        return list(calls.map(act, items))


def _query(query: Mapping[str, object]) -> str:
    asked = {name: value for name, value in query.items() if value not in (None, "")}
    return f"?{urlencode(asked)}" if asked else ""


def _writing(dry_run: bool, manager: str) -> Json:
    query: Json = {"fieldManager": manager, "fieldValidation": "Strict"}
    return {**query, "dryRun": "All"} if dry_run else query


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a stream as they come."""
    rest = b""
    for part in response.stream(1 << 16, decode_content=False):
        *whole, rest = (rest + part).split(b"\n")
        yield from (line for line in whole if line)
