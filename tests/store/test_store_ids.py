"""Ids grow, never repeat, and carry the moment they were made for."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.clock import ManualClock
from controlplane.ids import created_s, uuid7


@given(st.floats(min_value=0, max_value=2e11))
def test_an_id_is_a_version_7_uuid(now: float) -> None:
    parsed = uuid.UUID(uuid7(now))
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_ids_grow_even_if_the_clock_stands_still_or_goes_back() -> None:
    ids = [uuid7(4e9) for _ in range(20_000)] + [uuid7(4e9 - 3) for _ in range(10)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: uuid7(5e9), range(4_000)))
    assert len(set(ids)) == len(ids)


def test_an_id_tells_when_it_was_made() -> None:
    assert created_s(uuid7(6_000_000_000.25)) == 6_000_000_000.25
    assert created_s(uuid7(5.5)) == 5.5  # a clock set back for good is followed
    with pytest.raises(ValueError, match="no moment"):
        uuid7(3e11)
    with pytest.raises(ValueError, match="not a UUIDv7"):
        created_s(str(uuid.uuid4()))


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(100.0)
    assert (clock.now(), clock.monotonic()) == (100.0, 0.0)
    clock.advance(2.5)
    clock.jump(-50)
    assert (clock.now(), clock.monotonic()) == (52.5, 2.5)
    with pytest.raises(ValueError):
        clock.advance(-1)
