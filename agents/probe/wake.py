"""The tap on the agent's shoulder: a datagram that says "there is something new". It carries nothing and may be lost.

The socket lies in the node's runtime directory; where that path is too long for a socket's name, both sides derive the
same short one. Standard library only.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from pathlib import Path

_LONGEST = 100


def wake_path(runtime_dir: Path) -> str:
    """Where the agent of this runtime directory listens."""
    plain = str(runtime_dir / "wake.sock")
    if len(plain.encode()) <= _LONGEST:
        return plain
    return str(Path(tempfile.gettempdir()) / f"tt-{hashlib.sha256(plain.encode()).hexdigest()[:16]}.sock")


class Waker:
    """The trainer's side: sends without waiting, and forgets an agent that is not there."""

    def __init__(self, runtime_dir: Path) -> None:
        self._path = wake_path(runtime_dir)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._connected = False

    def wake(self) -> None:
        """Never blocks and never raises: an absent, slow or full agent finds the records at its next look."""
        if self._connected:
            try:
                self._socket.send(b"")
                return
            except BlockingIOError:
                return
            except OSError:  # the agent has ended
                self._connected = False
        self._connect()

    def _connect(self) -> None:
        """Once an agent, so that a tap looks up no path; one refused call a tap while there is none."""
        try:
            self._socket.connect(self._path)
            self._connected = True
            self._socket.send(b"")
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()


def listen(runtime_dir: Path) -> socket.socket:
    """The agent's side: a non-blocking socket bound anew, whatever an earlier agent left behind."""
    path = Path(wake_path(runtime_dir))
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.setblocking(False)
    listening.bind(str(path))
    return listening
