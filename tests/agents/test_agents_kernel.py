"""The kernel log: every pattern by its examples, whose device a line is of, what a program says of it, and overruns."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.node.sources.kmsg import KernelLog, parse
from agents.readings import KernelLine
from agents.rules import kernel
from agents.rules.load import load_rules

TABLE = kernel.table()
EXAMPLES = [(row.kind, text) for row in TABLE.rows for text in row.examples]
DEVICES = {"0000:c6:00.0": "0000:c6:00.0", "0000:14:01.0": "0000:c6:00.0", "0000:c7:00.0": "0000:c7:00.0"}


@pytest.mark.parametrize(("kind", "line"), EXAMPLES, ids=lambda value: str(value)[:40])
def test_a_line_is_of_the_kind_whose_example_it_is(kind: str, line: str) -> None:
    priority, _, text = line.partition(" ")
    assert 0 <= int(priority) <= 7 and TABLE.kind_of(text) == kind


@pytest.mark.parametrize("line", TABLE.quiet, ids=lambda value: str(value)[:60])
def test_a_healthy_line_means_nothing(line: str) -> None:
    assert TABLE.kind_of(line.partition(" ")[2]) == ""


def test_every_kind_is_looked_for_by_a_rule_and_of_the_rules_device() -> None:
    wanted = {(kind, rule.scope) for rule in load_rules() for kind in rule.events if not kind.startswith("afid-")}
    assert wanted == {(row.kind, row.device) for row in TABLE.rows}


@pytest.mark.parametrize(
    ("text", "hint", "address"),
    [
        ("amdgpu 0000:c6:00.0: amdgpu: GPU reset begin!", "", "0000:c6:00.0"),
        ("pcieport 0000:14:01.0: pciehp: Slot(21): Link Down", "", "0000:c6:00.0"),
        (
            "pcieport 0000:00:00.0: AER: Uncorrectable (Fatal) error message received from 0000:c6:00.0",
            "",
            "0000:c6:00.0",
        ),
        ("amdgpu 0000:ff:00.0: amdgpu: GPU reset begin!", "", None),
        ("Failed to evict queue 1", "0000:c7:00.0", "0000:c7:00.0"),
        ("all is well", "", None),
    ],
)
def test_a_line_speaks_of_the_device_that_it_names(text: str, hint: str, address: str | None) -> None:
    assert kernel.device_of(text, DEVICES, hint) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 9", "version 9"),
        ("not toml [", "not TOML"),
        ('version = 1\n[[line]]\nkind = "x"', "are needed"),
        (
            'version = 1\n[[line]]\nkind = "x"\ndevice = "gpu"\npattern = "("\nexamples = ["a"]\nsource = "b"',
            "x: pattern",
        ),
    ],
)
def test_a_table_that_cannot_work_is_refused(text: str, words: str) -> None:
    with pytest.raises(kernel.KernelTableError, match=words):
        kernel.parse(text)


# --- the log ---------------------------------------------------------------------------------------------------------


class Log:
    """A log whose records a test writes: a packet is a record, as a read of /dev/kmsg is."""

    def __init__(self) -> None:
        self.kernel, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent.setblocking(False)
        self._agent, self.sequence = agent, 0

    def read(self) -> bytes:
        return os.read(self._agent.fileno(), 8192)

    def say(self, text: str, priority: int = 6, facility: int = 0, device: str = "") -> None:
        self.sequence += 1
        more = f" SUBSYSTEM=pci\n DEVICE=+pci:{device}\n" if device else ""
        self.kernel.send(f"{facility << 3 | priority},{self.sequence},{self.sequence}000000,-;{text}\n{more}".encode())

    def close(self) -> None:
        self.kernel.close()
        self._agent.close()


@pytest.fixture
def log() -> Iterator[Log]:
    found = Log()
    yield found
    found.close()


RESET = "amdgpu 0000:c6:00.0: amdgpu: GPU reset begin!"


def test_lines_of_devices_and_lines_that_mean_something_are_kept(log: Log) -> None:
    reader = KernelLog(None, DEVICES, 0, log.read)
    log.say(RESET, priority=6)
    log.say("amdgpu 0000:c6:00.0: amdgpu: ring is well", priority=7)
    log.say("usb 1-1: new device", priority=3)
    log.say("Kernel panic - not syncing: Fatal exception", priority=0)
    log.say("Failed to evict queue 1", priority=3, device="0000:c7:00.0")
    found = reader.lines(100.0)
    assert [(line.kind, line.pci_address, line.priority) for line in found] == [
        ("gpu-reset", "0000:c6:00.0", 6),
        ("", "0000:c6:00.0", 7),
        ("kernel-panic", None, 0),
        ("ring-timeout", "0000:c7:00.0", 3),
    ]
    assert found[0].at_s == 101.0 and reader.lines(100.0) == []


def test_what_a_program_writes_there_is_not_the_kernels_word(log: Log) -> None:
    reader = KernelLog(None, DEVICES, 0, log.read)
    log.say(RESET, facility=1)
    log.say(RESET, facility=3)
    assert reader.lines(0.0) == []


def test_an_overrun_is_counted_and_reading_goes_on(log: Log) -> None:
    full = iter([BrokenPipeError(32, "overrun")])

    def read() -> bytes:
        for error in full:
            raise error
        return log.read()

    reader = KernelLog(None, DEVICES, 0, read)
    log.say(RESET)
    assert [line.kind for line in reader.lines(0.0)] == ["gpu-reset"] and reader.overruns == 1


def test_the_next_agent_goes_on_behind_the_last_line_of_the_one_before(log: Log) -> None:
    for _ in range(3):
        log.say(RESET)
    reader = KernelLog(None, DEVICES, 2, log.read)
    assert len(reader.lines(0.0)) == 1 and reader.sequence == 3


def test_the_machines_own_log_is_read_from_now_on(tmp_path: Path) -> None:
    path = Path("/dev/kmsg")
    try:
        reader = KernelLog(path, {}, None)
    except OSError:
        reader = KernelLog(tmp_path_file(tmp_path), {}, None)
    assert reader.lines(0.0) == []
    reader.close()


def tmp_path_file(folder: Path) -> Path:
    """Where nobody may read the kernel's log, a file that is read to its end."""
    (folder / "kmsg").write_text("6,1,1,-;amdgpu 0000:c6:00.0: amdgpu: GPU reset begin!\n")
    return folder / "kmsg"


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reading(body: bytes) -> None:
    found = parse(body, 0.0)
    assert found is None or isinstance(found[3], str)


@given(st.text(max_size=200))
def test_text_that_is_no_example_is_no_line_of_the_kernels(text: str) -> None:
    assert TABLE.kind_of(text) == ""


def test_mangled_examples_never_break_the_classifier() -> None:
    draw = random.Random(3)
    for _, line in EXAMPLES * 20:
        text = list(line)
        for _ in range(draw.randint(1, 8)):
            text[draw.randrange(len(text))] = chr(draw.randint(1, 0x2FFF))
        mangled = "".join(text)
        assert isinstance(TABLE.kind_of(mangled), str)
        assert kernel.device_of(mangled, DEVICES) in (None, *DEVICES.values())


def test_a_line_is_short_enough_for_a_batch(log: Log) -> None:
    reader = KernelLog(None, DEVICES, 0, log.read)
    log.say(RESET + "x" * 3000)
    (line,) = reader.lines(0.0)
    assert isinstance(line, KernelLine) and len(line.text) == 500
