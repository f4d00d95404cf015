"""The agent over TLS: it checks the server by the authority it is given, and serves nothing in the clear elsewhere."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.node import exporter
from agents.node.exporter import AgentState
from agents.node.main import StartError, options, start
from agents.node.outbox import TELEMETRY, Outbox
from agents.node.sender import Sender
from agents.wire import Batch, encode
from tests import certificates
from tests.agents.sink import Sink, serving
from tests.certificates import Papers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return certificates.make(tmp_path_factory.mktemp("papers"))


def answering(papers: Papers) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers.cert, papers.key)
    return context


@dataclass
class Desk:
    """An outbox with one batch, and a server behind TLS."""

    folder: Path
    url: str
    sink: Sink
    said: list[str] = field(default_factory=list)

    def send(self, ca: Path | None) -> None:
        (self.folder / "token").write_text("tt_agent_x")
        outbox = Outbox(self.folder / "spool")
        number = outbox.next_sequence()
        outbox.put(number, TELEMETRY, encode(Batch("n", "b", number, "simulated", True, "0", 1.0, 1.0)))
        trusted = "" if ca is None else str(ca)
        sender = Sender(self.url, self.folder / "token", outbox, lambda _: None, self.said.append, trusted)
        sender._stop.set()
        sender.send_one(0)
        sender.stop(0)
        self.waiting = outbox.waiting[0]
        outbox.close()


@pytest.fixture
def desk(papers: Papers, tmp_path: Path) -> Iterator[Desk]:
    sink = Sink()
    server = serving(sink, tls=answering(papers))
    yield Desk(tmp_path, f"https://127.0.0.1:{server.server_port}", sink)
    server.shutdown()
    server.server_close()


def test_a_batch_reaches_a_server_of_the_named_authority(desk: Desk, papers: Papers) -> None:
    desk.send(papers.ca)
    assert len(desk.sink.batches) == 1 and desk.said == [] and desk.waiting == 0


def test_a_server_of_another_authority_gets_neither_batch_nor_token(desk: Desk, tmp_path: Path) -> None:
    other = certificates.make(tmp_path / "other")
    for ca in (other.ca, None):
        desk.send(ca)
        assert "certificate verify failed" in desk.said[-1] and desk.waiting
    assert desk.sink.batches == [] and desk.sink.tokens == set()


def refused(tmp_path: Path, *words: str) -> str:
    (tmp_path / "token").write_text("tt_agent_x")
    base = ["--source", "simulated", "--node", "n", "--server", "https://127.0.0.1:1", "--token-file"]
    base += [str(tmp_path / "token"), "--runtime-dir", str(tmp_path / "run"), "--spool-dir", str(tmp_path / "spool")]
    with pytest.raises(StartError) as caught:
        start(options([*base, *words]))
    return str(caught.value)


def test_papers_that_cannot_be_used_are_named(tmp_path: Path, papers: Papers) -> None:
    assert str(tmp_path / "no.crt") in refused(tmp_path, "--ca-file", str(tmp_path / "no.crt"))
    port = ["--metrics-port", "0"]
    assert "nothing is served beyond loopback" in refused(tmp_path, *port, "--metrics-host", "0.0.0.0")
    half = refused(tmp_path, *port, "--metrics-cert", str(papers.cert))
    assert "--metrics-cert and --metrics-key" in half
    wrong = refused(tmp_path, *port, "--metrics-cert", str(papers.ca), "--metrics-key", str(papers.key))
    assert str(papers.ca) in wrong


def test_metrics_over_tls_wait_for_no_silent_caller(papers: Papers) -> None:
    state = AgentState("node-a", True, None, (), 1, 0, 0, 0, 0, 0, 0.0, 0, 0.0)
    server, port = exporter.serve(0, lambda: state, "0.0.0.0", answering(papers))
    with socket.create_connection(("127.0.0.1", port)):  # says nothing, and holds nobody up
        trusted = ssl.create_default_context(cafile=str(papers.ca))
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=20, context=trusted) as answer:
            assert b"trimtab_agent_info{" in answer.read()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20)
    server.shutdown()
    server.server_close()
