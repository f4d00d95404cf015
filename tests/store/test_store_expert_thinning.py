"""Old expert records are thinned as the policy says, exactly, once, and no reader sees a matrix that is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import func, select

from controlplane.store import expert_merging, expert_raster, expert_thinning, experts, incidents, upkeep
from controlplane.store.engine import Store
from controlplane.store.expert_records import ExpertStep, Shape
from controlplane.store.expert_stretches import nearest_kept
from controlplane.store.expert_thinning import DAY_S, Policy
from controlplane.store.tables import ExpertChunk, ExpertLayer
from tests.store.test_store_experts import assert_same, record, write

STEPS = 1280
START = 1.8e9
POLICY = Policy()


def written(store: Store, steps: int = STEPS, attempt_no: int = 1, begin: int = 0) -> list[ExpertStep]:
    """An attempt's steps, a second apart, merged as far as they make long chunks."""
    found = [record(step, attempt_no) for step in range(begin, begin + steps)]
    write(store, found, size=64)
    expert_merging.compact_once(store)
    return found


def opened(store: Store, at_s: float, run_id: str = "run-1") -> None:
    """An incident of the run."""
    with store.write() as session:
        values: dict[str, Any] = {"key": f"k{at_s}", "rule": "nan-loss", "severity": "critical", "action": "restart"}
        where: dict[str, Any] = {"entity": "run", "run_id": run_id, "title": "", "updated_s": at_s}
        incidents.add(session, number=incidents.last_number(session) + 1, opened_s=at_s, **values, **where)


def kept(store: Store, last: int = 10**6, run_id: str = "run-1") -> list[ExpertStep]:
    with store.read() as session:
        return experts.window(session, run_id, last=last, limit=last + 1)


def levels(store: Store) -> list[int]:
    with store.read() as session:
        return list(session.scalars(select(ExpertChunk.level).order_by(ExpertChunk.first_step)))


def wanted(every: int, *events: int, steps: int = STEPS) -> list[int]:
    """The steps that keep their matrices, by the words of the policy."""
    around = {step for event in (0, steps - 1, *events) for step in range(event - 64, event + 65)}
    return [step for step in range(steps) if step % every == 0 or step < 256 or step in around]


def test_thinning_keeps_what_the_policy_says_and_every_statistic(store: Store) -> None:
    found = written(store)
    opened(store, START + 700.5)
    opened(store, START + 513 - 10, run_id="another")
    with store.read() as session:
        before = experts.read_statistics(session, "run-1", ("cv", "maxvio", "skip_share"))
    for now, every, level in ((6, 1, 1), (7.1, 8, 2), (29, 8, 2), (31, 64, 3), (400, 64, 3)):
        expert_thinning.thin_once(store, START + now * DAY_S, POLICY)
        assert levels(store) == [level] * 5
        left = kept(store)
        assert [one.step for one in left] == wanted(every, 701)
        for one in left:
            assert_same(one, found[one.step])
        with store.read() as session:
            after = experts.read_statistics(session, "run-1", ("cv", "maxvio", "skip_share"))
            assert experts.counted(session, "run-1") == STEPS
            assert experts.bounds(session, "run-1") == (0, STEPS - 1)
        np.testing.assert_array_equal(after.step, before.step)
        for name, values in before.values.items():
            np.testing.assert_array_equal(after.values[name], values)
    assert expert_thinning.thin_once(store, START + 400 * DAY_S, POLICY) == 0


def test_what_is_young_waits_and_a_call_does_its_share(store: Store) -> None:
    written(store)
    now = START + 511 + 7 * DAY_S  # the second of five chunks has just come of age
    assert expert_thinning.thin_once(store, now, POLICY, chunks=1) == 1
    assert levels(store) == [2, 1, 1, 1, 1]
    assert expert_thinning.thin_once(store, now, POLICY) == 1
    assert expert_thinning.thin_once(store, now, POLICY) == 0
    assert levels(store) == [2, 2, 1, 1, 1]
    upkeep.prune_once(store, now, thinning=Policy(0, 0))
    assert levels(store) == [3] * 5


def test_restarts_stay_whole_on_both_sides(store: Store) -> None:
    first = written(store, 1024)
    second = written(store, 768, attempt_no=2, begin=600)
    expert_thinning.thin_once(store, START + 60 * DAY_S, POLICY)
    left = {one.step: one for one in kept(store)}
    assert set(range(600 - 64, 600 + 65)) | set(range(1023 - 64, 1023 + 65)) <= set(left)
    assert 700 not in left and 704 in left
    for step, one in left.items():
        assert_same(one, (first if step < 600 else second)[step - (600 if step >= 600 else 0)])
    with store.read() as session:
        hidden = experts.stored_step(session, ("run-1", 1, 630))
    assert hidden is not None
    assert_same(hidden, first[630])


def test_what_never_made_a_long_chunk_is_thinned_as_well(store: Store) -> None:
    found = [record(step) for step in range(256)] + [record(step) for step in range(300, 500)]
    write(store, found, size=8)
    expert_merging.compact_once(store)
    assert levels(store).count(0) == 25
    expert_thinning.thin_once(store, START + 6 * DAY_S, POLICY)
    assert levels(store).count(0) == 25
    expert_thinning.thin_once(store, START + 60 * DAY_S, POLICY)
    assert levels(store) == [3, 3]
    assert [one.step for one in kept(store)] == [*range(256), 320, 384, *range(499 - 64, 500)]


def test_the_surroundings_of_a_changed_data_mix_stay(store: Store) -> None:
    found = []
    for step in range(STEPS):
        one = record(step)
        even = np.full(one.counts.shape, 1000, np.uint32) + one.counts % 20
        if 600 <= step < 640:
            even[:, 0] = 4000
        found.append(replace(one, counts=even))
    write(store, found, size=64)
    expert_merging.compact_once(store)
    expert_thinning.thin_once(store, START + 60 * DAY_S, POLICY)
    assert [one.step for one in kept(store)] == wanted(64, 600)


def test_a_raster_shows_the_steps_that_are_kept(store: Store) -> None:
    found = written(store)
    expert_thinning.thin_once(store, START + 60 * DAY_S, POLICY)
    steps = wanted(64)
    with store.read() as session:
        raster = expert_raster.read_raster(session, "run-1", 1, first=0, last=STEPS, columns=STEPS)
        none = expert_raster.read_raster(session, "run-1", 1, first=513, last=575, columns=STEPS)
        statistics = experts.read_statistics(session, "run-1", ("cv_floor",))
    assert none is None
    assert raster is not None
    assert raster.step.tolist() == steps
    np.testing.assert_array_equal(raster.bias, np.stack([found[step].bias[1, :4] for step in steps]).T)
    told = statistics.values["cv_floor"][1]
    before = [-1, *steps[:-1]]
    means = [told[begin + 1 : end + 1].mean() for begin, end in zip(before, steps, strict=True)]
    np.testing.assert_allclose(raster.cv_floor, means, rtol=1e-5)
    assert steps[-1] - before[-1] == 1 and max(np.diff(steps)) == 64, "statistics of every step, also of thinned ones"


def test_the_nearest_kept_step_is_told_of_thinned_ones_only(store: Store) -> None:
    written(store)
    expert_thinning.thin_once(store, START + 60 * DAY_S, POLICY)
    with store.read() as session:
        assert [nearest_kept(session, "run-1", step) for step in (513, 550, 700)] == [512, 576, 704]
        assert [nearest_kept(session, "run-1", step) for step in (0, 512, STEPS, 10**6)] == [None] * 4
        assert nearest_kept(session, "none", 3) is None


def test_servers_at_once_thin_each_chunk_once(database_url: str, open_store: Callable[[str], Store]) -> None:
    one = open_store(database_url)
    found = written(one)
    stores = [one, open_store(database_url), open_store(database_url)]
    done = [0] * len(stores)

    def thin(index: int) -> None:
        done[index] = expert_thinning.thin_once(stores[index], START + 60 * DAY_S, POLICY)

    threads = [threading.Thread(target=thin, args=(index,)) for index in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 5
    left = kept(one)
    assert [step.step for step in left] == wanted(64)
    for step in left:
        assert_same(step, found[step.step])
    with one.read() as session:
        assert session.execute(select(func.count()).select_from(ExpertLayer)).scalar_one() == 5 * 3


def test_a_reader_in_the_midst_of_a_chunk_sees_it_as_it_was(store: Store) -> None:
    found = written(store, 512)
    with store.read() as session:
        row = session.scalars(select(ExpertChunk).order_by(ExpertChunk.id.desc()).limit(1)).one()
        expert_thinning.thin_once(store, START + 60 * DAY_S, Policy(1, 2))
        steps = experts._steps_of(session, row)
    assert [one.step for one in steps] == list(range(256, 512))
    assert_same(steps[17], found[273])
    assert len(kept(store)) < 512


def test_thinned_bytes_are_fewer(store: Store) -> None:
    shape = Shape(3, 17, 16, 1)
    write(store, [record(step, shape=shape) for step in range(STEPS)], size=64)
    found = []
    for days in (0, 0, 8, 40):
        with store.read() as session:
            found.append(expert_thinning.sizes(session, "run-1"))
        expert_merging.compact_once(store)
        expert_thinning.thin_once(store, START + days * DAY_S, POLICY)
    with store.read() as session:
        found.append(expert_thinning.sizes(session, "run-1"))
    assert [list(sizes) for sizes in found] == [[0], [1], [1], [2], [3]]
    assert {size.steps for sizes in found for size in sizes.values()} == {STEPS}
    first, merged, _, eighth, last = (next(iter(sizes.values())).matrices for sizes in found)
    assert first > merged > 2 * eighth > 2 * last > 0
    assert found[0][0].statistics > found[1][1].statistics > 0
    kept = (next(iter(sizes.values())).statistics for sizes in found[1:])
    assert max(kept) < 1.01 * found[1][1].statistics
