"""A small webhook receiver for demos and tests: verifies the signature, drops repeats, writes JSON lines.

It stands outside the control plane on purpose: it verifies with the public `standardwebhooks` library, not with the
sender's code. `python -m controlplane.notify.receiver --port 0 --secret-file F --out FILE` prints its address.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from controlplane.clock import Clock, SystemClock
from controlplane.notify.webhook import MAX_BODY_BYTES, new_secret


class Inbox:
    """The messages taken so far, each id once; `out` gets one JSON line a message."""

    def __init__(self, secret: str, out: IO[str], clock: Clock) -> None:
        self._webhook, self._out, self._clock = Webhook(secret), out, clock
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self.repeats = 0

    def take(self, headers: dict[str, str], body: bytes) -> HTTPStatus:
        """Verifies and keeps a message: 200 if it is kept or a repeat, 401 if its signature is not right."""
        try:
            message = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):  # the library also raises ValueError, for parts without a comma
            return HTTPStatus.UNAUTHORIZED
        identifier = {name.lower(): value for name, value in headers.items()}["webhook-id"]
        with self._lock:
            if identifier in self._seen:
                self.repeats += 1
                return HTTPStatus.OK
            line = {"id": identifier, "received_s": self._clock.now(), "message": message}
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()
            self._seen.add(identifier)
        return HTTPStatus.OK


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("content-length", ""))
        except ValueError:
            self._answer(HTTPStatus.LENGTH_REQUIRED)
            return
        if not 0 <= length <= MAX_BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        self._answer(self.server.inbox.take(dict(self.headers.items()), self.rfile.read(length)))

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the file of messages is the record."""


class Receiver(ThreadingHTTPServer):
    """Listens on loopback only."""

    daemon_threads = True

    def __init__(self, port: int, inbox: Inbox) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.inbox = inbox

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def read_secret(path: Path) -> str:
    """The secret in a file; a new one is made, readable by its owner only, where there is no file yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        secret = new_secret()
        file.write(secret + "\n")
    return secret


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.notify.receiver", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--secret-file", type=Path, required=True, help="made if it does not exist")
    parser.add_argument("--out", type=Path, required=True, help="one JSON line a message")
    chosen = parser.parse_args(arguments)
    with chosen.out.open("a", encoding="utf-8") as out:
        receiver = Receiver(chosen.port, Inbox(read_secret(chosen.secret_file), out, SystemClock()))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=receiver.shutdown).start())
        print(f"receiver listens on {receiver.url}", flush=True)
        receiver.serve_forever(poll_interval=0.1)
        receiver.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
