"""The demo's receiver as a process of its own: it checks signature and age, drops repeats, and survives bad input."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from controlplane.clock import SystemClock
from controlplane.notify.webhook import WebhookSender, headers, new_secret, secret_key
from tests.notify.receiving import LOCAL


class Running:
    """The process, its address, secret and file."""

    def __init__(self, folder: Path) -> None:
        self.secret_file, self.out = folder / "the secret", folder / "messages.jsonl"
        command = [sys.executable, "-m", "controlplane.notify.receiver", "--port", "0"]
        command += ["--secret-file", str(self.secret_file), "--out", str(self.out)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.url = self.line.rpartition(" ")[2]
        self.secret = self.secret_file.read_text().strip()

    def post(self, body: bytes, said: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        connection.request("POST", "/", body, said)
        status = connection.getresponse().status
        connection.close()
        return status

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    if made.process.poll() is None:
        made.stop()


def test_it_says_where_it_listens_and_keeps_its_secret_to_itself(running: Running) -> None:
    assert running.line.startswith("receiver listens on http://127.0.0.1:")
    assert running.secret_file.stat().st_mode & 0o777 == 0o600
    assert len(secret_key(running.secret)) == 32
    assert running.stop() == 0


def test_a_message_is_kept_once_however_often_it_comes(running: Running) -> None:
    sender, now = WebhookSender(LOCAL), SystemClock().now()
    config = {"url": running.url, "secret": running.secret}
    for _ in range(3):
        assert sender.send(config, "msg-1", {"type": "incident.opened"}, now).ok
    assert sender.send(config, "msg-2", {"type": "incident.resolved"}, now).ok
    sender.close()
    assert [line["id"] for line in running.lines()] == ["msg-1", "msg-2"]
    assert running.lines()[0]["message"] == {"type": "incident.opened"}


def test_what_is_forged_old_or_malformed_is_refused_and_never_an_error(running: Running) -> None:
    now, key = SystemClock().now(), secret_key(running.secret)
    body = b'{"type":"x"}'
    good = headers("msg-1", body, [key], now)
    signature = good["webhook-signature"]
    for said in (
        {},
        {**good, "webhook-signature": signature.replace("v1,", "v1")},
        {**good, "webhook-signature": "v1,!!!"},
        {**good, "webhook-signature": f"v2,{signature[3:]}"},
        {**good, "webhook-id": "msg-2"},
        {**good, "webhook-timestamp": "soon"},
        headers("msg-1", body, [secret_key(new_secret())], now),
        headers("msg-1", body, [key], now - 301),
        headers("msg-1", body, [key], now + 301),
    ):
        assert running.post(body, said) == 401
    assert running.post(b'{"type":"y"}', good) == 401
    assert running.post(b"\xff\xfe", headers("m", b"\xff\xfe", [key], now)) == 401
    assert running.post(b"x" * 20_001, good) == 413
    assert running.post(b"", {**good, "content-length": "many"}) == 411
    assert running.lines() == []
    assert running.post(body, good) == 200, "and it still works"
