"""What goes into a chunk comes out of it, bit by bit; a column is read alone; damage is an error."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agents.readings import UNKNOWN
from controlplane.store import codec
from controlplane.store.codec import CodecError, Samples

EDGES = [UNKNOWN, UNKNOWN + 1, -1, 0, 1, 255, 256, 2**31, 2**62, 2**63 - 1]
VALUES = st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1), st.integers(-5, 300))
TIMES = st.floats(allow_nan=False, width=64)


@st.composite
def samples(draw: st.DrawFn) -> Samples:
    metrics, count, entities = draw(st.integers(0, 4)), draw(st.integers(1, 12)), draw(st.integers(0, 4))
    return Samples(
        tuple(f"metric_{index}" for index in range(metrics)),
        draw(hnp.arrays(np.float64, count, elements=TIMES)),
        draw(hnp.arrays(np.float64, count, elements=TIMES)),
        draw(hnp.arrays(np.int64, (metrics, count, entities), elements=VALUES)),
    )


def raw(found: Samples) -> bytes:
    columns = [array("q", column.ravel().tolist()) for column in found.values]
    return codec.encode_raw(
        found.metrics, found.entities, found.at_s.tobytes(), found.monotonic_s.tobytes(), [c.tobytes() for c in columns]
    )


def assert_same(one: Samples, other: Samples) -> None:
    assert one.metrics == other.metrics
    for name in ("at_s", "monotonic_s", "values"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
        assert getattr(one, name).shape == getattr(other, name).shape


@settings(deadline=None)
@given(samples())
def test_both_codecs_give_back_every_bit(found: Samples) -> None:
    assert_same(codec.decode(codec.RAW, raw(found)), found)
    assert_same(codec.decode(codec.COLUMNS, codec.encode_columns(found)), found)


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(0, 4), st.integers(0, 20)), elements=VALUES))
def test_a_column_gives_back_every_bit(values: codec.Ints) -> None:
    assert np.array_equal(codec.decode_column(codec.encode_column(values), *values.shape), values)


@settings(deadline=None)
@given(st.integers(0, 2**62), st.lists(st.integers(0, 2**40), min_size=1, max_size=60), st.data())
def test_counters_with_gaps_and_resets_are_exact(start: int, steps: list[int], data: st.DataObject) -> None:
    values = (start + np.cumsum(np.array(steps, np.int64))).astype(np.int64)
    for index in data.draw(st.sets(st.integers(0, len(steps) - 1))):
        values[index] = data.draw(st.sampled_from([UNKNOWN, 0]))
    column = np.stack([values, values[::-1]])
    assert np.array_equal(codec.decode_column(codec.encode_column(column), *column.shape), column)


@given(
    hnp.arrays(
        np.int64,
        st.tuples(st.integers(1, 5), st.integers(1, 20)),
        elements=st.one_of(st.integers(-(2**31), 2**32 - 1), st.integers(0, 70000)),
    )
)
def test_the_low_half_of_a_column_is_what_the_whole_one_has(values: np.ndarray) -> None:
    low = codec.decode_low(codec.encode_column(values), *values.shape)
    assert low.dtype == np.uint32 and np.array_equal(low, values.astype(np.uint32))


def test_unknown_values_have_no_low_half() -> None:
    frame = codec.encode_column(np.array([[1, UNKNOWN, 3]]))
    with pytest.raises(CodecError, match="unknown values"):
        codec.decode_low(frame, 1, 3)


@settings(deadline=None)
@given(samples())
def test_one_series_is_the_column_of_the_whole(found: Samples) -> None:
    for name, blob in ((codec.RAW, raw(found)), (codec.COLUMNS, codec.encode_columns(found))):
        for index, metric in enumerate(found.metrics):
            series = codec.decode_series(name, blob, metric)
            assert np.array_equal(series.values, found.values[index])
            assert series.at_s.tobytes() == found.at_s.tobytes()
        with pytest.raises(CodecError, match="no metric nothing"):
            codec.decode_series(name, blob, "nothing")


def node(seconds: int = 300) -> Samples:
    """Five minutes of eight busy GPUs: noisy gauges, a counter with noise, counters at rest."""
    dice = np.random.default_rng(7)
    power = 700 + dice.integers(-30, 30, (seconds, 8))
    energy = np.cumsum(power * 65_536 + dice.integers(0, 65_536, (seconds, 8)), axis=0) + 2**40
    still = np.broadcast_to(np.arange(8), (seconds, 8))
    at = 1.8e9 + np.arange(seconds) + dice.normal(0, 0.002, seconds)
    return Samples(("power_w", "energy_j", "still", "zero"), at, at - 1e9, np.stack([power, energy, still, still * 0]))


def test_a_series_is_read_without_the_bytes_of_the_others() -> None:
    blob = bytearray(codec.encode_columns(node()))
    chunk = codec.ColumnsChunk(bytes(blob))
    other = chunk._frame(codec._TIMES + 1)
    where = bytes(blob).find(bytes(other))
    blob[where : where + len(other)] = bytes(len(other))
    assert np.array_equal(codec.decode_series(codec.COLUMNS, bytes(blob), "power_w").values, node().values[0])
    with pytest.raises(CodecError):
        codec.decode_series(codec.COLUMNS, bytes(blob), "energy_j")


def test_resting_columns_cost_next_to_nothing_and_noise_costs_its_noise() -> None:
    busy = node()
    frames = {name: len(codec.encode_column(busy.values[i].T)) for i, name in enumerate(busy.metrics)}
    assert frames["zero"] < 32
    assert frames["still"] < 64
    assert frames["power_w"] / 2400 < 0.8  # 60 values: 5.9 bits
    assert frames["energy_j"] / 2400 < 3.0  # 60 powers times 65,536: 21.9 bits


@pytest.mark.parametrize("cut", [1, 10, 60, 400])
def test_a_cut_chunk_is_an_error(cut: int) -> None:
    for name, blob in ((codec.RAW, raw(node())), (codec.COLUMNS, codec.encode_columns(node()))):
        with pytest.raises(CodecError):
            codec.decode(name, blob[:-cut])


def test_an_unknown_codec_and_unlike_samples_are_refused() -> None:
    with pytest.raises(CodecError, match="no codec"):
        codec.decode("rot13", b"")
    with pytest.raises(CodecError, match="inside its head"):
        codec.decode(codec.COLUMNS, b"abc")
    with pytest.raises(ValueError, match="same metrics and entities"):
        codec.concatenate([node(), Samples(("power_w",), node().at_s, node().at_s, node().values[:1])])


def test_joined_samples_follow_each_other() -> None:
    whole = node()
    parts = [
        Samples(whole.metrics, whole.at_s[a:b], whole.monotonic_s[a:b], whole.values[:, a:b])
        for a, b in ((0, 10), (10, 299), (299, 300))
    ]
    assert_same(codec.concatenate(parts), whole)
    assert_same(whole.last(), parts[-1])
