"""The real application under a real server on loopback, over a real SQLite store; only the cluster is scripted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from agents.node.agent import columns
from agents.node.sources.simulated import SimulatedSource
from agents.wire import Batch, encode
from controlplane.api.app import create_app
from controlplane.api.context import Context
from controlplane.backends.memory import MemoryBackend
from controlplane.clock import SystemClock
from controlplane.loops import Leadership
from controlplane.notify.address import UrlPolicy
from controlplane.rules import book
from controlplane.services import tokens
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.services.plans import Places
from controlplane.services.reconcile import Controller
from controlplane.store import leases
from controlplane.store.engine import Store

NODES = ("node-a", "node-b", "node-c")


@dataclass
class Api:
    """A running server and what a test needs to be anybody."""

    url: str
    context: Context
    app: Any
    controller: Controller
    backend: MemoryBackend
    http: httpx2.Client
    sequences: dict[str, int] = field(default_factory=dict)

    def token(self, kind: str = "personal", **claims: Any) -> str:
        """A token of any kind; `life_s` may be negative."""
        life = claims.pop("life_s", 3600.0)
        with self.context.store.write() as session:
            return tokens.issue(
                session,
                kind=kind,
                subject=claims.pop("subject", f"a {claims.get('role') or kind}"),
                now=self.context.clock.now(),
                created_by="test",
                life_s=life,
                **claims,
            )

    def call(self, method: str, path: str, token: str = "", **more: Any) -> httpx2.Response:
        """One request below /api/v1."""
        headers = {**more.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return self.http.request(method, f"{self.url}/api/v1/{path}", headers=headers, **more)

    def batch(self, node: str, sequence: int | None = None, *, simulated: bool = True, **more: Any) -> bytes:
        """A node's next batch with one sample."""
        number = sequence if sequence is not None else self.sequences.get(node, 0) + 1
        self.sequences[node] = number
        now = time.time()
        source = SimulatedSource(node, now)
        sample = source.sample(now, time.monotonic())
        gpu = columns([sample], "gpu")
        facts = source.facts()
        return encode(Batch(node, "boot", number, "simulated", simulated, "0", now, now, gpu=gpu, facts=facts, **more))

    def report(self, node: str, **more: Any) -> httpx2.Response:
        """The node's agent sends a batch."""
        return self.call("POST", "ingest", self.token("agent", node=node), content=self.batch(node, **more))


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application on a port of its own, under a real server; yields its address."""
    opened = socket.create_server(("127.0.0.1", 0))
    port = int(opened.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[opened]), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@contextmanager
def serving(store: Store, folder: Path, **more: Any) -> Iterator[Api]:
    """A server over this store; `more` goes into its context."""
    clock = SystemClock()
    live = Live(store, clock)
    ingest = Ingest(store, live, clock)
    ingest.start()
    backend = MemoryBackend(NODES)
    rules = book.load()
    places = Places(folder / "runs", "http://127.0.0.1:1")
    leadership = Leadership(store, leases.this_process("api"), clock)
    controller = Controller(store, {"memory": backend}, rules, places)
    policy = UrlPolicy(allow_loopback=True)
    parts: dict[str, Any] = {
        "store": store,
        "live": live,
        "ingest": ingest,
        "book": rules,
        "backends": {"memory": backend},
        "default_backend": "memory",
        "places": places,
        "leadership": leadership,
        "policy": policy,
        "senders": {},
        "clock": clock,
    }
    context = Context(**{**parts, **more})
    app = create_app(context)
    with listening(app) as url, httpx2.Client(timeout=30, trust_env=False) as http:
        yield Api(url, context, app, controller, backend, http)
    ingest.stop()


@pytest.fixture
def api(sqlite_store: Store, tmp_path: Path) -> Iterator[Api]:
    with serving(sqlite_store, tmp_path) as made:
        yield made


@pytest.fixture
def two_servers(database_url: str, open_store: Callable[[str], Store], tmp_path: Path) -> Iterator[tuple[Api, Api]]:
    """Two servers on one database, on SQLite and on PostgreSQL."""
    with serving(open_store(database_url), tmp_path) as one, serving(open_store(database_url), tmp_path) as other:
        yield one, other
