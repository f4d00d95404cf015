"""The kernel log: records of /dev/kmsg as they come, every severity, of the kernel alone, each classified.

A program may write there too, but never under the kernel's own facility: what is not of facility 0 is somebody's word
about the kernel and not the kernel's. When the log runs over, what was lost is counted and reading goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from agents.readings import KernelLine
from agents.rules import kernel

RECORD_BYTES = 8192
LINES_A_LOOK = 2000
LONGEST_TEXT = 500


def parse(record: bytes, wall_offset_s: float) -> tuple[int, int, float, str, str] | None:
    """(sequence, priority, wall time, text, the device that the kernel names beside it); None if it is no record.

    A record reads `priority,sequence,microseconds since boot,flags;text`, further lines ` KEY=value`. The priority
    holds the facility in all but its lowest three bits.
    """
    head, found, body = record.partition(b";")
    parts = head.split(b",")
    if not found or len(parts) < 3:
        return None
    try:
        priority, sequence, micros = int(parts[0]), int(parts[1]), int(parts[2])
    except ValueError:
        return None
    text, *more = body.decode(errors="replace").split("\n")
    device = next((line.removeprefix(" DEVICE=+pci:") for line in more if line.startswith(" DEVICE=+pci:")), "")
    return sequence, priority, wall_offset_s + micros / 1e6, text.strip()[:LONGEST_TEXT], device


class KernelLog:
    """Reads from `path`, or whatever `read` returns: a record a call, BlockingIOError when there is none yet.

    `after` is the number of the last record that an earlier agent has judged; without it reading begins now, because
    what was printed before anybody looked is old news. OSError where the log cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        devices: Mapping[str, str],
        after: int | None,
        read: Callable[[], bytes] | None = None,
    ) -> None:
        self.devices = devices
        self.descriptor = -1
        self.sequence = -1 if after is None else after
        self.overruns = 0
        self.lines_read = 0
        if path is not None:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if after is None:
                with contextlib.suppress(OSError):  # a stand-in for the log may be a pipe, which begins where it is
                    os.lseek(self.descriptor, 0, os.SEEK_END)
        self._read = read or (lambda: os.read(self.descriptor, RECORD_BYTES))

    def lines(self, wall_offset_s: float) -> list[KernelLine]:
        """What has come since the last look that speaks of a device of this node or means something.

        `wall_offset_s` is the wall time at boot: the log's own stamps count from there.
        """
        found: list[KernelLine] = []
        for _ in range(LINES_A_LOOK):
            try:
                record = self._read()
            except BrokenPipeError:  # EPIPE: the oldest records were overwritten; the next read goes on behind them
                self.overruns += 1
                continue
            except OSError:  # BlockingIOError: nothing yet; anything else is tried again at the next look
                break
            if not record:
                break
            line = self._line(record, wall_offset_s)
            if line is not None:
                found.append(line)
        return found

    def _line(self, record: bytes, wall_offset_s: float) -> KernelLine | None:
        parsed = parse(record, wall_offset_s)
        if parsed is None:
            return None
        sequence, priority, at_s, text, device = parsed
        if sequence <= self.sequence:
            return None  # judged by the agent before
        self.sequence = sequence
        self.lines_read += 1
        if priority >> 3:
            return None
        kind, address = kernel.table().kind_of(text), kernel.device_of(text, self.devices, device)
        if not kind and address is None:
            return None
        return KernelLine(at_s, priority & 7, text, address, kind)

    def close(self) -> None:
        """Lets go of the log."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
