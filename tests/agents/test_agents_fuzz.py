"""Whatever files hold and the library answers, the agent goes on; what says nothing of a device is no fault of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from agents.node.sources.amd.binding import GONE
from agents.node.sources.machine import MachineSource
from agents.readings import GPU_METRICS, NIC_METRICS, Fault
from agents.rules.evaluate import Attribution, Evaluator
from agents.rules.load import load_rules
from agents.stub.node import StubNode
from agents.stub.state import Answer
from tests.agents.conftest import places

METRICS = "amdsmi_get_gpu_metrics_info"
WHO = Attribution("run-1", 1, 0, heartbeat_age_s=1.0)
SECONDS, SEEDS = 90, range(4)
VAGUE = [status for status in range(1, 60) if status not in GONE]
"""Answers that do not say that a device is gone."""


class Watched:
    """A node's source, and its rules over every sample; `mend` is what the node would say by itself."""

    def __init__(self, stub: StubNode) -> None:
        self.stub = stub
        self.source = MachineSource("node-a", places(stub), {})
        self.evaluator = Evaluator(load_rules(), "node-a", "boot", self.source.facts())
        self.found: list[Fault] = []
        stub.source.follow(3.0)

    def mend(self, second: int) -> None:
        self.stub.beat(float(second))

    def sample(self, second: int) -> None:
        sample = self.source.sample(float(second), float(second))
        assert [len(row) for row in sample.gpus] == [len(GPU_METRICS)] * 8
        assert [len(row) for row in sample.nics] == [len(NIC_METRICS)] * 8 and len(sample.host) == 1
        self.found += self.evaluator.check(sample, WHO)


@pytest.fixture
def watched(stub: StubNode) -> Iterator[Watched]:
    found = Watched(stub)
    for second in range(20):
        found.mend(second)
        found.sample(second)
    assert found.found == []
    yield found
    found.source.close()


def slots(made: Any) -> Iterator[tuple[Any, Any, int]]:
    """Each number of a structure: what holds it, its name or place there, its size in bytes."""
    if isinstance(made, ctypes.Array):
        for at, one in enumerate(made):
            if isinstance(one, ctypes.Structure | ctypes.Array):
                yield from slots(one)
            else:
                yield made, at, ctypes.sizeof(made._type_)
    else:
        for name, kind in made._fields_:
            one = getattr(made, name)
            if isinstance(one, ctypes.Structure | ctypes.Array):
                yield from slots(one)
            elif issubclass(kind, ctypes._SimpleCData):
                yield made, name, ctypes.sizeof(kind)


def say_nothing(stub: StubNode, gpu: int, draw: Random, share: float) -> None:
    """Some of a GPU's numbers become the library's "not available"."""
    made = stub._wrapper.amdsmi_gpu_metrics_t.from_buffer_copy(stub.state.answers[METRICS, gpu, 0, 0].body)
    for holder, at, size in slots(made):
        if draw.random() < share:
            nothing = (1 << 8 * size) - 1
            if isinstance(at, int):
                holder[at] = nothing
            else:
                setattr(holder, at, nothing)
    stub.state.put(Answer(METRICS, gpu, body=bytes(made)))


def disturbed(watched: Watched, draw: Random, change: Callable[[Answer], Answer]) -> None:
    """Each second a dozen of the library's answers are others, and well again in the next."""
    state = watched.stub.state
    for second in range(20, 20 + SECONDS):
        watched.mend(second)
        well = dict(state.answers)
        for answer in draw.sample([one for one in well.values() if one.gpu >= 0], 12):
            state.put(change(answer))
        state.write()
        watched.sample(second)
        state.answers = well


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_that_are_not_available_are_no_fault(watched: Watched, seed: int) -> None:
    draw = Random(seed)
    for second in range(20, 20 + SECONDS):
        watched.mend(second)
        for gpu in draw.sample(range(8), 4):
            say_nothing(watched.stub, gpu, draw, draw.choice([0.02, 0.2, 0.8]))
        watched.stub.state.write()
        watched.sample(second)
    assert [fault.sentence for fault in watched.found] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_calls_that_fail_in_any_way_that_says_nothing_are_no_fault(watched: Watched, seed: int) -> None:
    draw = Random(seed)
    disturbed(watched, draw, lambda answer: replace(answer, status=draw.choice(VAGUE), body=b""))
    assert [fault.sentence for fault in watched.found] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_full_of_anything_break_nothing(watched: Watched, seed: int) -> None:
    draw = Random(seed)
    disturbed(watched, draw, lambda answer: replace(answer, body=draw.randbytes(len(answer.body))))


@pytest.mark.parametrize("seed", SEEDS)
def test_files_full_of_anything_break_nothing_and_are_no_fault(watched: Watched, seed: int) -> None:
    draw, stub = Random(seed), watched.stub
    written = [name for name in stub._files if name.startswith(("sys/class", "sys/devices", "proc/"))]
    evidence = ("/state", "/phys_state", "/carrier")  # what they say of a link is that, whatever it is
    for second in range(20, 20 + SECONDS):
        watched.mend(second)
        for name in draw.sample([one for one in written if not one.endswith(evidence)], 12):
            (stub.tree / name).write_bytes(draw.randbytes(draw.randint(0, 40)))
            stub._written.pop(name, None)
        watched.sample(second)
    assert [fault.sentence for fault in watched.found] == []
