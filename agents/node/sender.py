"""Sends the outbox, faults first, over one kept-alive connection, and waits politely when the server cannot take it.

A batch leaves the outbox only when the server acknowledged it (it is durable there) or called it unreadable, which is
said and counted. Network errors and 5xx back off with jitter; a refused token, a wrong address or another version is
tried again slowly, since a person may be mending it.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agents.node.outbox import Outbox
from agents.wire import CONTENT_TYPE, WAITING_HEADER, Drill, Reply, WireError

TIMEOUT_S = 10.0
# the longest wait stays well below the 15 s after which a silent node is called blind
FIRST_WAIT_S, LONGEST_WAIT_S, REFUSED_WAIT_S = 0.5, 8.0, 15.0
UNREADABLE = (400, 413, 422)
LATER = (408, 425, 429)
LONGEST_REPLY = 1 << 20


class SendError(Exception):
    """The batch was not taken. `gone` says that it never will be; `wait_s` how long to leave the server alone."""

    def __init__(self, sentence: str, *, gone: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.gone, self.wait_s = gone, wait_s


@dataclass
class SenderState:
    """What /metrics and the log want to know."""

    sent: int = 0
    failed: int = 0
    unreadable: int = 0
    last_acknowledged_s: float | None = None
    trouble: str = ""


class Sender:
    """One thread; `on_drill` is called for each drill that a reply brings.

    The server of an https URL is checked by `ca_file` alone, or by the authorities that the machine trusts. ValueError
    when URL or file cannot be used.
    """

    def __init__(
        self,
        url: str,
        token_file: Path,
        outbox: Outbox,
        on_drill: Callable[[Drill], None],
        say: Callable[[str], None],
        ca_file: str = "",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--server must be a URL like http://127.0.0.1:8440, not {url!r}")
        self._host, self._port = parts.hostname, parts.port
        self._trust = _trust(ca_file) if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/") + "/api/v1/ingest"
        self._token_file, self._outbox, self._on_drill, self._say = token_file, outbox, on_drill, say
        self._connection: http.client.HTTPConnection | None = None
        self._stop = threading.Event()
        self._end_s = 0.0
        self._wait_s = FIRST_WAIT_S
        self.state = SenderState()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread, which sends what it still can in that time; the rest stays on disk."""
        self._end_s = time.monotonic() + timeout_s
        self._stop.set()
        self._outbox.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._disconnect()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.send_one(1.0)
        while time.monotonic() < self._end_s and not self.state.trouble and self._outbox.waiting[0]:
            self.send_one(0.0)

    def send_one(self, timeout_s: float) -> None:
        """Takes the next batch and tries once."""
        taken = self._outbox.take(timeout_s)
        if taken is None:
            return
        item, body = taken
        try:
            reply = self._post(body)
        except SendError as error:
            self._failed(error)
            if error.gone:
                self._outbox.done(item)
            else:
                self._stop.wait(error.wait_s or self._back_off())
            return
        self._outbox.done(item)
        self._succeeded(reply)

    def _succeeded(self, reply: Reply) -> None:
        state = self.state
        if state.trouble:
            self._say("the server takes batches again")
        state.sent, state.trouble, state.last_acknowledged_s = state.sent + 1, "", time.time()
        self._wait_s = FIRST_WAIT_S
        for drill in reply.drills:
            self._on_drill(drill)

    def _failed(self, error: SendError) -> None:
        self.state.failed += 1
        self.state.unreadable += error.gone
        if str(error) != self.state.trouble:
            self._say(str(error))
        self.state.trouble = str(error)

    def _back_off(self) -> float:
        wait = random.uniform(self._wait_s / 2, self._wait_s)
        self._wait_s = min(LONGEST_WAIT_S, self._wait_s * 2)
        return wait

    def _post(self, body: bytes) -> Reply:
        try:
            token = self._token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SendError(f"the token file cannot be read: {error}", wait_s=REFUSED_WAIT_S) from error
        try:
            response, answer = self._exchange(body, token)
        except ValueError as error:
            self._disconnect()  # a request was begun
            raise SendError(f"the token file holds no token: {error}", wait_s=REFUSED_WAIT_S) from error
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            raise SendError(f"the server cannot be reached ({error}); batches wait on disk") from error
        if response.status != 200:
            raise self._refusal(response, answer)
        try:
            return Reply.from_json(answer)
        except WireError as error:
            raise SendError(f"the server's reply is not understood: {error}", wait_s=REFUSED_WAIT_S) from error

    def _exchange(self, body: bytes, token: str) -> tuple[http.client.HTTPResponse, bytes]:
        """One request and its whole answer. A kept-alive connection that the server closed meanwhile is opened anew at
        once; sending twice is safe, the server knows each sequence number."""
        behind = str(max(0, self._outbox.waiting[0] - 1))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": CONTENT_TYPE, WAITING_HEADER: behind}
        for last_try in (self._connection is None, True):
            connection = self._connect()
            try:
                connection.request("POST", self._path, body, headers)
                response = connection.getresponse()
                return response, response.read(LONGEST_REPLY)
            except ConnectionError:
                self._disconnect()
                if last_try:
                    raise
        raise AssertionError("the second try returns or raises")

    @staticmethod
    def _refusal(response: http.client.HTTPResponse, answer: bytes) -> SendError:
        status, said = response.status, answer[:300].decode(errors="replace")
        if status in UNREADABLE:
            return SendError(f"the server cannot read a batch ({status}), it is dropped: {said}", gone=True)
        if status in LATER or status >= 500:
            after = response.headers.get("Retry-After", "")
            wait_s = min(float(after), 60.0) if after.isdecimal() else 0.0
            return SendError(f"the server answers {status}; batches wait on disk", wait_s=wait_s)
        if status in (401, 403):
            return SendError(f"the server refuses this agent's token ({status}): {said}", wait_s=REFUSED_WAIT_S)
        return SendError(f"{status} is no answer of a Trimtab server: {said}", wait_s=REFUSED_WAIT_S)

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = (
                http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
                if self._trust is None
                else http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._trust)
            )
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError is one as well
        raise ValueError(f"--ca-file {ca_file}: {error}") from error
