"""The wire: what goes in comes out, and no bytes whatever raise anything but a WireError with a code."""

from __future__ import annotations

import struct
import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import wire
from agents.readings import UNKNOWN, ExpertRecord, Fault, HeartbeatFile, KernelLine, StepRecord
from agents.wire import Batch, Columns, Drill, Reply, WireError, decode, encode

CODES = {"bad_magic", "wrong_version", "truncated", "bad_checksum", "oversized", "malformed"}
whole = st.integers(UNKNOWN, 2**63 - 1)
real = st.floats(allow_nan=False, width=64)
word = st.text(max_size=20)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    metrics = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4))
    entities, moments = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count = entities * moments
    values = tuple(array("q", draw(st.lists(whole, min_size=count, max_size=count))) for _ in metrics)
    times = array("d", draw(st.lists(real, min_size=moments, max_size=moments)))
    return Columns(tuple(metrics), entities, times, times[:], values)


@st.composite
def expert_records(draw: st.DrawFn) -> ExpertRecord:
    layers, slots = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    count = layers * slots
    counts = array("I", draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count)))
    bias = array("f", draw(st.lists(st.floats(allow_nan=False, width=32), min_size=count, max_size=count)))
    return ExpertRecord(
        *(draw(word), 1, 2, draw(st.integers(0, 2**62)), 3.0, 1, layers, slots, slots, 1, 9, 0, counts, bias),
        expert_parallel=draw(st.integers(1, 9)),
        start_bias=draw(st.integers(0, 2**60 - 1)),
        route_mismatch=draw(real),
        facts=array("f", draw(st.sampled_from([[], [0.5] * 3 * layers]))),
        spread=array("d", draw(st.sampled_from([[], [2.0] * 2 * layers]))),
    )


faults = st.builds(
    Fault,
    id=word,
    rule=word,
    severity=st.sampled_from(["warning", "error", "critical"]),
    action=st.sampled_from(["alert", "drain", "restart", "rma"]),
    node=word,
    entity=word,
    state=st.sampled_from(["firing", "clear"]),
    onset_s=real,
    last_clean_s=real,
    observed_s=real,
    value=real,
    threshold=real,
    sentence=word,
    evidence=st.dictionaries(word, st.integers() | word, max_size=2),
)
steps = st.builds(
    StepRecord,
    run_id=word,
    attempt_no=st.integers(0, 9),
    epoch=st.integers(0, 9),
    rank=st.integers(0, 9),
    step=st.integers(0, 2**62),
    at_s=real,
    loss=real,
    grad_norm=real,
    step_seconds=real,
    tokens=st.integers(0, 2**62),
    learning_rate=real,
    data_position=st.integers(0, 2**62),
)
beats = st.builds(HeartbeatFile, path=word, modified_s=real, size=st.integers(0, 99), body=st.binary(max_size=64))
batches = st.builds(
    Batch,
    node=word,
    boot_id=word,
    sequence=st.integers(0, 2**62),
    source=word,
    simulated=st.booleans(),
    agent_version=word,
    sent_s=real,
    sent_monotonic_s=real,
    gpu=st.none() | columns(),
    nic=st.none() | columns(),
    faults=st.lists(faults, max_size=2).map(tuple),
    kernel=st.lists(st.builds(KernelLine, real, st.integers(0, 7), word, st.none() | word), max_size=2).map(tuple),
    experts=st.lists(expert_records(), max_size=2).map(tuple),
    steps=st.lists(steps, max_size=2).map(tuple),
    heartbeats=st.lists(beats, max_size=2).map(tuple),
)


def sample() -> Batch:
    counts, bias = array("I", range(6)), array("f", [0.5] * 6)
    record = ExpertRecord("run", 1, 1, 5, 1.0, 1, 2, 3, 2, 1, 10, 0, counts, bias)
    gpu = Columns(("power_w",), 2, array("d", [1.0]), array("d", [2.0]), (array("q", [700, UNKNOWN]),))
    beat = HeartbeatFile("a/heartbeat-rank-0.json", 1.0, 2, b"{}")
    return Batch("n", "b", 1, "simulated", True, "0", 1.0, 2.0, gpu=gpu, experts=(record,), heartbeats=(beat,))


def resealed(plain: bytes) -> bytes:
    """A batch with a right checksum around any body."""
    body = zlib.compress(plain)
    head = struct.pack("<4sHHIII", b"TTB1", wire.WIRE_VERSION, 0, len(body), len(plain), zlib.crc32(body))
    return head + body


def refusal(data: bytes) -> str | None:
    """The code with which some bytes are refused; None if they are a batch. Any other exception ends the test."""
    try:
        decode(data)
    except WireError as error:
        return error.code
    return None


@given(batches)
def test_what_goes_in_comes_out(batch: Batch) -> None:
    assert decode(encode(batch)) == batch


def test_a_batch_cut_anywhere_is_refused_with_a_code() -> None:
    data = encode(sample())
    for length in range(len(data)):
        with pytest.raises(WireError) as caught:
            decode(data[:length])
        assert caught.value.code in {"truncated", "bad_magic"}


def test_a_flipped_bit_anywhere_is_refused_with_a_code() -> None:
    data = bytearray(encode(sample()))
    for position in range(len(data) * 8):
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(WireError) as caught:
            decode(bytes(data))
        assert caught.value.code in CODES
        data[position // 8] ^= 1 << position % 8


@given(st.binary(max_size=300))
def test_any_bytes_are_a_wire_error_or_a_batch(data: bytes) -> None:
    for attempt in (data, b"TTB1" + data, resealed(data)):
        assert refusal(attempt) in {*CODES, None}


def test_a_batch_that_unpacks_to_more_than_it_says_is_refused() -> None:
    body = zlib.compress(bytes(80 << 20))
    for claimed in (100, 80 << 20):
        head = struct.pack("<4sHHIII", b"TTB1", wire.WIRE_VERSION, 0, len(body), claimed, zlib.crc32(body))
        with pytest.raises(WireError) as caught:
            decode(head + body)
        assert caught.value.code in {"malformed", "oversized"}


def test_another_version_is_named() -> None:
    data = bytearray(encode(sample()))
    data[4] = 9
    with pytest.raises(WireError, match="version 9") as caught:
        decode(bytes(data))
    assert caught.value.code == "wrong_version"


def test_a_batch_over_the_limit_is_not_sent() -> None:
    import os

    beat = HeartbeatFile("p", 1.0, 1, os.urandom(wire.MAX_BATCH_BYTES))
    with pytest.raises(WireError) as caught:
        encode(Batch("n", "b", 1, "s", True, "0", 1.0, 1.0, heartbeats=(beat,)))
    assert caught.value.code == "oversized"


def test_a_reply_comes_back_as_it_was() -> None:
    reply = Reply(7, (Drill("d", "gpu-lost", 3),), 12.5)
    assert Reply.from_json(reply.to_json()) == reply
    for bad in (b"", b"[]", b"{}", b'{"acknowledged": "x", "drills": [], "server_s": 1}'):
        with pytest.raises(WireError):
            Reply.from_json(bad)
