"""Stretches of a run's expert records: together they are the current view, whatever its chunks, and each is short."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.store import expert_merging, expert_thinning, experts
from controlplane.store.engine import Store
from controlplane.store.expert_records import ExpertStep
from controlplane.store.expert_stretches import Stretch, Wanted, stretches
from controlplane.store.expert_thinning import DAY_S, Policy
from tests.store.test_store_experts import record, write

ALL = Wanted(0, 10**6)


def a_restarted_run(store: Store) -> list[ExpertStep]:
    """What is shown of a run of three attempts, one step of it completed late; the first attempt is merged."""
    write(store, [record(step) for step in range(1, 600)], size=8)
    expert_merging.compact_once(store)
    write(store, [record(40)])
    write(store, [record(step, 2) for step in range(500, 900)], size=8)
    write(store, [record(step, 3) for step in range(550, 1000)], size=8)
    shown = [record(step) for step in range(1, 500)] + [record(step, 2) for step in range(500, 550)]
    return shown + [record(step, 3) for step in range(550, 1000)]


def steps_of(found: list[Stretch]) -> list[int]:
    return [int(step) for stretch in found for step in stretch.step]


def test_stretches_together_are_the_current_view(store: Store) -> None:
    shown = a_restarted_run(store)
    found = list(stretches(store, "run-1", ALL))
    assert steps_of(found) == [one.step for one in shown]
    assert max(len(stretch.step) for stretch in found) <= 256
    at = 0
    for stretch in found:
        part = shown[at : at + len(stretch.step)]
        at += len(part)
        assert {one.attempt_no for one in part} == {stretch.attempt_no}
        assert stretch.at_s.tolist() == [one.at_s for one in part]
        assert (stretch.ranks.tolist(), stretch.tokens.tolist()) == ([2] * len(part), [1000] * len(part))
        np.testing.assert_array_equal(stretch.counts, np.stack([one.counts for one in part]))
        np.testing.assert_array_equal(stretch.bias, np.stack([one.bias for one in part]))


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (250, 270), (499, 551), (900, 10**6), (1000, 2000)])
def test_a_part_of_the_steps_and_layers_is_just_that(sqlite_store: Store, first: int, last: int) -> None:
    shown = [one for one in a_restarted_run(sqlite_store) if first <= one.step <= last]
    found = list(stretches(sqlite_store, "run-1", Wanted(first, last, layers=(0, 2, 9))))
    assert steps_of(found) == [one.step for one in shown]
    for stretch in found:
        assert stretch.layers.tolist() == [0, 2]
    if shown:
        counts = np.concatenate([stretch.counts for stretch in found])
        np.testing.assert_array_equal(counts, np.stack([one.counts[[0, 2]] for one in shown]))


def test_statistics_come_of_thinned_steps_too(store: Store) -> None:
    a_restarted_run(store)
    with store.read() as session:
        before = experts.read_statistics(session, "run-1", ("cv", "maxvio"))
    expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())
    names = ("cv", "maxvio")
    found = list(stretches(store, "run-1", Wanted(0, 10**6, matrices=False, statistics=names)))
    assert steps_of(found) == before.step.tolist()
    for name in names:
        values = np.concatenate([stretch.statistics[name] for stretch in found])
        np.testing.assert_array_equal(values.T, before.values[name])
    kept = steps_of(list(stretches(store, "run-1", ALL)))
    assert set(kept) < set(before.step.tolist())
    with store.read() as session:
        assert kept == [one.step for one in experts.window(session, "run-1", last=10**6, limit=10**6)]


def test_a_run_without_records_has_no_stretch(sqlite_store: Store) -> None:
    assert list(stretches(sqlite_store, "none", ALL)) == []


def test_what_is_merged_and_written_meanwhile_is_read_once(sqlite_store: Store) -> None:
    write(sqlite_store, [record(step) for step in range(1000)], size=8)
    seen = []
    for stretch in stretches(sqlite_store, "run-1", ALL):
        seen += stretch.step.tolist()
        expert_merging.compact_once(sqlite_store)
        if len(seen) < 300:
            write(sqlite_store, [record(step) for step in range(1000, 1010)])
    assert seen == list(range(1010))
