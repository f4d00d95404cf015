"""The sender between an outbox and a server that hangs up, misunderstands, or is somebody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.node.outbox import TELEMETRY, Outbox
from agents.node.sender import Sender
from agents.wire import Batch, Drill, encode
from tests.agents.sink import Sink, serving


@dataclass
class Desk:
    """A sender over three batches, with its server and what it said; waits between tries end at once."""

    folder: Path
    url: str
    sink: Sink
    said: list[str] = field(default_factory=list)
    drills: list[Drill] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "token").write_text("tt_agent_x\n")
        self.outbox = Outbox(self.folder / "spool")
        for _ in range(3):
            number = self.outbox.next_sequence()
            self.outbox.put(number, TELEMETRY, encode(Batch("n", "b", number, "simulated", True, "0", 1.0, 1.0)))
        self.sender = Sender(self.url, self.folder / "token", self.outbox, self.drills.append, self.said.append)
        self.sender._stop.set()

    def send(self, times: int = 1) -> list[int]:
        for _ in range(times):
            self.sender.send_one(0)
        return [batch.sequence for batch in self.sink.batches]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    sink = Sink()
    server = serving(sink)
    made = Desk(tmp_path, f"http://127.0.0.1:{server.server_port}", sink)
    yield made
    made.sender.stop(0)
    made.outbox.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [301, 307, 404, 405, 409, 426, 502])
def test_an_answer_of_somebody_else_loses_nothing(desk: Desk, status: int) -> None:
    desk.sink.status = status
    assert desk.send(2) == []
    assert str(status) in desk.said[0]
    desk.sink.status = 200
    assert desk.send(3) == [1, 2, 3]
    assert desk.said[-1] == "the server takes batches again"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_only_what_the_server_calls_unreadable_is_given_up(desk: Desk, status: int) -> None:
    desk.sink.status = status
    desk.send()
    desk.sink.status = 200
    assert desk.send(3) == [2, 3]
    assert desk.sender.state.unreadable == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_no_trouble(desk: Desk) -> None:
    assert desk.send() == [1]
    connection = desk.sender._connection
    assert connection is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert desk.send(2) == [1, 2, 3]
    assert (desk.said, desk.sender.state.failed) == ([], 0)


def test_a_server_that_takes_a_batch_and_hangs_up_gets_it_again(desk: Desk) -> None:
    desk.sink.gone = True
    desk.send(2)
    assert desk.outbox.waiting[0] == 3
    assert len(desk.said) == 1 and "cannot be reached" in desk.said[0]
    desk.sink.gone = False
    assert desk.send(3) == [1, 2, 3]


@pytest.mark.parametrize("token", ["two\nlines", "ключ", ""])
def test_a_file_that_holds_no_token_is_said_and_does_not_end_the_sender(desk: Desk, token: str) -> None:
    (desk.folder / "token").write_text(token)
    desk.sink.status = 200 if token else 401
    desk.send()
    assert desk.said and "token" in desk.said[0]
    (desk.folder / "token").write_text("tt_agent_x")
    desk.sink.status = 200
    assert desk.send(3) == [1, 2, 3]


def test_a_reply_that_is_not_understood_keeps_the_batch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as lying:
        lying.setattr(desk.sink, "answer", lambda body, token: (200, b"<html>welcome</html>"))
        desk.send()
    assert desk.outbox.waiting[0] == 3
    assert "not understood" in desk.said[0]


def test_no_server_at_all_is_said_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        desk = Desk(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}", Sink())
        desk.send(5)
    assert (len(desk.said), desk.sender.state.failed, desk.outbox.waiting[0]) == (1, 5, 3)


def test_each_batch_says_how_many_wait_behind_it(desk: Desk) -> None:
    desk.sink.status = 503
    desk.send()
    desk.sink.status = 200
    desk.send(3)
    assert desk.sink.behind == ["2", "2", "1", "0"]


def test_a_sender_that_is_stopped_sends_what_it_still_can(desk: Desk) -> None:
    desk.sender._stop.clear()
    desk.sender.start()
    desk.sender.stop(10.0)
    assert desk.send(0) == [1, 2, 3]
    assert "sender" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", ""])
def test_a_server_that_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    outbox = Outbox(tmp_path / "spool")
    with pytest.raises(ValueError, match="must be a URL"):
        Sender(url, tmp_path / "token", outbox, lambda drill: None, lambda sentence: None)
    outbox.close()
