"""A copy of one collection of the cluster, kept by list and watch: reads cost nothing, and its age is known.

Why not the client's informer: it asks for no bookmarks and no timeouts, and retries without back-off. This one lists in
pages, watches with bookmarks and a server-side timeout, lists again when the version is gone (as an event or as an HTTP
answer), lists anew every five minutes whatever the watch says, and backs off. It judges nothing: whoever reads asks how
old the copy is.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import Gone, Json, KubeApi, Refused
from controlplane.clock import Clock

PAGE = 500
WATCH_S = (240, 300)
RESYNC_S = 300.0
BACKOFF_S = (0.5, 30.0)
_log = structlog.get_logger()
REMEMBERED_S = 120.0
"""how long the last state of a deleted object is kept: a pod that the cluster took away says why only there"""


@dataclass(slots=True)
class Counters:
    """Totals of one reflector, for /metrics."""

    lists: int = 0
    watches: int = 0
    gone: int = 0
    failures: int = 0
    events: int = 0


class Reflector:
    """Objects of `path` (and of a label selector) by (namespace, name). `run_once` lists, then watches once."""

    def __init__(
        self,
        api: KubeApi,
        path: str,
        clock: Clock,
        *,
        selector: str = "",
        changed: Callable[[], None] = lambda: None,
        keep: Callable[[Json], Json] = lambda found: found,
    ) -> None:
        self._api, self._path, self._clock, self._selector = api, path, clock, selector
        self._changed, self._keep = changed, keep
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, str], Json] = {}
        self._left: dict[tuple[str, str], tuple[float, Json]] = {}
        self._version = ""
        self._listed_s = self._heard_s = float("-inf")
        self._failed = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.counters = Counters()

    # --- what readers ask ---

    def objects(self) -> dict[tuple[str, str], Json]:
        """The copy, as it is now. Whoever reads must not change what it finds."""
        with self._lock:
            return dict(self._objects)

    def get(self, name: str, namespace: str = "") -> Json | None:
        """One object."""
        with self._lock:
            return self._objects.get((namespace, name))

    def departed(self) -> list[Json]:
        """The last state of what was deleted within `REMEMBERED_S`."""
        with self._lock:
            self._forget()
            return [found for _, found in self._left.values()]

    def _forget(self) -> None:
        since_s = self._clock.monotonic() - REMEMBERED_S
        self._left = {key: known for key, known in self._left.items() if known[0] >= since_s}

    @property
    def age_s(self) -> float:
        """Seconds since the server last said anything of this collection; infinite before the first list."""
        return self._clock.monotonic() - self._heard_s

    # --- keeping it ---

    def start(self) -> None:
        """Keeps the copy in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name=f"watch {self._path}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the current event; a stream that waits ends with its process or its timeout."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = self.run_once()
            if wait_s:
                self._stop.wait(wait_s)

    def run_once(self) -> float:
        """A list if one is due, then one watch; returns how long to wait before the next, 0 after success."""
        try:
            if not self._version or self._clock.monotonic() - self._listed_s >= RESYNC_S:
                self.list_once()
            self.watch_once()
        except Gone:
            self.counters.gone += 1
            self._version = ""
            return self._back_off() if self._failed else 0.0
        except (BackendUnavailable, Refused) as error:
            if self._stop.is_set():
                return 0.0
            self.counters.failures += 1
            _log.warning("a collection cannot be watched", path=self._path, error=str(error))
            return self._back_off()
        self._failed = 0
        return 0.0

    def _back_off(self) -> float:
        self._failed += 1
        shortest, longest = BACKOFF_S
        return min(longest, shortest * 2.0**self._failed) * random.uniform(0.5, 1.0)

    def list_once(self) -> None:
        """Replaces the copy by a fresh list, page by page; a list that breaks off changes nothing."""
        found: dict[tuple[str, str], Json] = {}
        token, version = "", ""
        while True:
            page = self._api.get(self._path, limit=PAGE, labelSelector=self._selector, **{"continue": token})
            for one in page.get("items") or ():
                found[_key(one)] = self._keep(one)
            head = page.get("metadata") or {}
            token, version = str(head.get("continue") or ""), str(head.get("resourceVersion") or "")
            if not token:
                break
        with self._lock:
            self._objects = found
        self._version = version
        self._listed_s = self._heard_s = self._clock.monotonic()
        self.counters.lists += 1
        self._changed()

    def watch_once(self) -> None:
        """Follows the stream to its end. Gone when the version is too old."""
        self.counters.watches += 1
        left_s = max(1.0, self._listed_s + RESYNC_S - self._clock.monotonic())
        timeout_s = int(max(1.0, min(left_s, random.uniform(*WATCH_S))))
        for event in self._api.watch(
            self._path, version=self._version, server_timeout_s=timeout_s, labelSelector=self._selector
        ):
            self._take(event)
            if self._stop.is_set():
                return
        self._heard_s = self._clock.monotonic()  # a stream that ended as asked says: nothing else happened

    def _take(self, event: Mapping[str, object]) -> None:
        found: Json = event["object"]  # type: ignore[assignment]  # the API's own shape
        self._version = str(found["metadata"]["resourceVersion"])
        self._heard_s = self._clock.monotonic()
        self.counters.events += 1
        if event["type"] == "BOOKMARK":
            return
        with self._lock:
            if event["type"] == "DELETED":
                self._objects.pop(_key(found), None)
                self._forget()
                self._left[_key(found)] = (self._heard_s, self._keep(found))
            else:
                self._objects[_key(found)] = self._keep(found)
        self._changed()


def _key(found: Json) -> tuple[str, str]:
    head = found["metadata"]
    return str(head.get("namespace") or ""), str(head["name"])
