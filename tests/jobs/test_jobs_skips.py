"""Which data a step reads when some of it is left out, and how that is written."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import ContractError, data_index, format_ranges, merged, parse_ranges

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda r: (r[0], r[0] + r[1])), max_size=5)


def indices(found: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> set[int]:
    return {index for first, last in found for index in range(first, last + 1)}


@given(ranges)
def test_skipped_indices_are_never_read_and_no_other_is_lost(skipped: list[tuple[int, int]]) -> None:
    wanted = [index for index in range(1, 300) if index not in indices(skipped)][:100]
    assert [data_index(step, tuple(skipped)) for step in range(1, 101)] == wanted


@given(ranges)
def test_merging_loses_and_adds_nothing(found: list[tuple[int, int]]) -> None:
    made = merged(found)
    assert indices(made) == indices(found) and merged(made) == made
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(made))
    assert parse_ranges(format_ranges(made)) == made


def test_what_is_no_range_is_named() -> None:
    assert parse_ranges("") == () and parse_ranges("7-7, 9-12") == ((7, 7), (9, 12))
    with pytest.raises(ContractError, match="'9-3' is not a range"):
        parse_ranges("1-2,9-3")
