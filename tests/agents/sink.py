"""A small real server for the agent's tests: it keeps batches, or answers with a status when told to."""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agents.wire import WAITING_HEADER, Batch, Drill, Reply, decode


@dataclass
class Sink:
    """A server that keeps batches, or answers with a status when told to."""

    status: int = 200
    gone: bool = False
    """connections that are kept alive are dropped without an answer"""
    batches: list[Batch] = field(default_factory=list)
    drills: list[Drill] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    behind: list[str] = field(default_factory=list)
    """what each request said of the batches that wait"""

    def answer(self, body: bytes, token: str) -> tuple[int, bytes]:
        self.tokens.add(token)
        if self.status != 200:
            return self.status, b'{"title": "no"}'
        batch = decode(body)
        self.batches.append(batch)
        drills, self.drills = tuple(self.drills), []
        return 200, Reply(batch.sequence, drills, time.time()).to_json()


def serving(sink: Sink, port: int = 0, tls: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if sink.gone:
                self.close_connection = True
                return
            sink.behind.append(self.headers[WAITING_HEADER])
            status, answer = sink.answer(body, self.headers["Authorization"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refuses us is what is tested
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server
