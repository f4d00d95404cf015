"""A real HTTP receiver whose answers a test scripts, and an outbox to send from."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook

from controlplane.clock import ManualClock
from controlplane.notify.address import UrlPolicy
from controlplane.notify.webhook import new_secret
from controlplane.store import deliveries, incidents
from controlplane.store.engine import Store
from controlplane.store.tables import Delivery

LOCAL = UrlPolicy(allow_loopback=True)


@dataclass(frozen=True)
class Answer:
    """What the receiver says next; `hold` makes it wait before that."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


@dataclass
class Taken:
    """One request that arrived, already verified."""

    id: str
    timestamp: str
    host: str
    path: str
    message: Any


class Receiver(ThreadingHTTPServer):
    """Checks every signature with the public library and answers as scripted, 200 when the script is over.

    Freshness is left out: tests move their clock by days. The demo's receiver checks it, and has its own test.
    """

    daemon_threads = True

    def __init__(self, secret: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secret, self.webhook = secret, Webhook(secret)
        self.script, self.taken = list[Answer](), list[Taken]()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.taken]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        signed_at = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        expected = self.server.webhook.sign(self.headers["webhook-id"], signed_at, body.decode())
        with self.server.lock:
            answer = self.server.script.pop(0) if self.server.script else Answer()
            if expected not in self.headers["webhook-signature"].split(" "):
                answer = Answer(401)
            else:
                found = [self.headers[name] for name in ("webhook-id", "webhook-timestamp", "host")]
                self.server.taken.append(Taken(*found, self.path, json.loads(body)))
        if answer.hold is not None:
            answer.hold.wait()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def receiver(secret: str | None = None) -> Iterator[Receiver]:
    """A running receiver; it expects a secret of its own, unless one is given."""
    server = Receiver(secret or new_secret())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Outbox:
    """A store with channels and incidents that have something to tell."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, ManualClock()

    def channel(self, name: str, url: str, secret: str, **more: Any) -> None:
        with self.store.write() as session:
            deliveries.put_channel(session, name, kind="webhook", config={"url": url, "secret": secret, **more})

    def incident(self, number: int = 1) -> str:
        with self.store.write() as session:
            made = incidents.add(
                session,
                number=number,
                key=f"gpu-lost/node-{number}/gpu0",
                rule="gpu-lost",
                severity="critical",
                action="restart",
                entity="gpu0",
                title="GPU lost",
                opened_s=self.clock.now(),
                updated_s=self.clock.now(),
            )
        return made.id

    def message(self, incident_id: str, seq: int, channel: str = "ops") -> str:
        with self.store.write() as session:
            now = self.clock.now()
            body = {"type": "incident.opened", "data": {"seq": seq}}
            made = deliveries.add(
                session, incident_id=incident_id, seq=seq, channel=channel, body=body, due_s=now, now=now
            )
        return made.id

    def deliveries(self, incident_id: str) -> list[Delivery]:
        with self.store.read() as session:
            return deliveries.of_incident(session, incident_id)

    def states(self, incident_id: str) -> list[str]:
        return [one.state for one in self.deliveries(incident_id)]
