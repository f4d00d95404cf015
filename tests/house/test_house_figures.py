"""The figures' own arithmetic: a wait that is counted wrongly makes every number after it a lie."""

from __future__ import annotations

from benchmarks.spine import p95, waits


def test_each_step_waits_for_the_first_frame_with_it_or_a_later_one() -> None:
    ends = [1.0, 1.5, 2.0, 2.5, 3.0, 9.0]
    shown = [(1.2, 1.0), (2.2, 2.0), (2.9, 2.0), (4.0, 3.0)]
    assert waits(ends, shown) == [2.2 - 1.5, 2.2 - 2.0, 4.0 - 2.5, 4.0 - 3.0]


def test_what_was_over_before_the_page_was_open_and_what_it_never_saw_do_not_count() -> None:
    assert waits([1.0, 5.0], [(2.0, 1.0), (3.0, 4.0)]) == []
    assert waits([1.0], []) == []


def test_a_percentile_of_nothing_is_unknown() -> None:
    assert (p95([]), p95([0.7])) == (None, 0.7)
