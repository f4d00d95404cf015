"""All layers over time and how they swing, as frames from stored records: windows, marks, what is not known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controlplane.clock import ManualClock
from controlplane.services import experts_frame, experts_over_time, frames, views_experts
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import expert_merging, expert_thinning, experts
from controlplane.store.engine import Store
from controlplane.store.expert_coding import encode_steps
from controlplane.store.expert_records import ExpertStep, Shape
from controlplane.store.tables import Run
from tests.services.batches import START, add_run, batch, expert

SHIFT = 60


@pytest.fixture
def live(store: Store) -> Live:
    """A run of 100 steps whose data change at step SHIFT and whose second attempt does steps 81 to 100."""
    clock = ManualClock(START)
    found = Live(store, clock)
    ingest = Ingest(store, found, clock, group_s=0.0)
    ingest.start()
    add_run(store, attempts=[(1, ()), (2, ())])
    for number, (attempt_no, steps) in enumerate(((1, range(1, 91)), (2, range(81, 101)))):
        found.expect("run-1", attempt_no, 1)
        records = tuple(expert(step, counts=counts_at(step), attempt_no=attempt_no) for step in steps)
        ingest.submit(batch(number, experts=records), START).result(30)
    ingest.stop()
    return found


def counts_at(step: int) -> np.ndarray:
    """[4, 17]: nearly even, layer 1 silent, layer 3 swinging every second step, layer 2 with skipped tokens."""
    counts = np.random.default_rng(step).multinomial(4096, np.full(17, 1 / 17), size=4)
    counts[:, 16] = (0, 0, 64, 0)
    if step >= SHIFT:
        counts[(0, 2), 5] += 4096
    counts[3] = 200 + 100 * (-1) ** (step + np.arange(17))
    counts[3, 16] = 0
    counts[1] = 0
    return counts


def test_every_layer_over_time_with_its_marks(store: Store, live: Live) -> None:
    with store.read() as session:
        found = experts_over_time.layers_frame(session, "run-1", columns=1000)
        raster = views_experts.raster_frame(session, "run-1", 0, columns=1000)
        assert experts_over_time.layers_frame(session, "none") is None
        assert experts_over_time.layers_frame(session, "run-1", first=500) is None
    assert found is not None and raster is not None
    head, arrays = frames.unpack(found[1])
    assert (head["kind"], head["layers"], head["step"], head["first_step"]) == ("layers", 4, 100, 1)
    assert arrays["cv_floor"].shape == (4, 100) and np.isnan(arrays["cv_floor"][1]).all()
    assert arrays["skip_share"][2, 0] == pytest.approx(64 / counts_at(1)[2].sum())
    assert arrays["steps"].tolist() == list(range(1, 101))
    known = arrays["cv_floor"][[0, 2, 3]]
    assert arrays["worst"] == pytest.approx(known.max(axis=0))
    assert arrays["middle"] == pytest.approx(np.median(known, axis=0))
    assert [(mark["kind"], mark["step"], mark["column"]) for mark in head["marks"]] == [
        ("restart", 81, 80),
        ("data", SHIFT, SHIFT - 1),
    ]
    assert frames.unpack(raster[1])[0]["marks"] == head["marks"]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([{"steps": 40}, {"steps": 50, "name": "anneal"}, {"steps": 30}], [(41, "phase anneal"), (91, "phase 3")]),
        ([{"steps": 500}, {"steps": 50}], []),
        ([{"length": 40}, {"steps": 50}], []),
        ("cosine", []),
        (None, []),
    ],
)
def test_the_phases_of_the_jobs_plan_are_marked(
    store: Store, live: Live, phases: object, expected: list[tuple[int, str]]
) -> None:
    with store.write() as session:
        run = session.get(Run, "run-1")
        assert run is not None
        run.spec = {"spec": {"train": {"steps": 120, "phases": phases}}}
    with store.read() as session:
        found = experts_over_time.layers_frame(session, "run-1", columns=1000)
    assert found is not None
    marks = [mark for mark in frames.unpack(found[1])[0]["marks"] if mark["label"].startswith("phase")]
    assert [(mark["step"], mark["label"]) for mark in marks] == expected
    assert all(mark["kind"] == "data" and mark["column"] == mark["step"] - 1 for mark in marks)


def test_a_column_is_a_mean_and_the_worst_is_never_averaged_away(store: Store, live: Live) -> None:
    with store.read() as session:
        fine = experts_over_time.layers_frame(session, "run-1", columns=1000)
        coarse = experts_over_time.layers_frame(session, "run-1", columns=10)
    assert fine is not None and coarse is not None
    one, ten = frames.unpack(fine[1])[1], frames.unpack(coarse[1])[1]
    assert ten["steps"].tolist() == list(range(10, 101, 10))
    assert ten["cv_floor"][0] == pytest.approx(one["cv_floor"][0].reshape(10, 10).mean(axis=1))
    assert ten["worst"] == pytest.approx(one["worst"].reshape(10, 10).max(axis=1))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [({"steps": 30}, 71, 100), ({"last": 70, "steps": 20}, 51, 70), ({"first": 90, "last": 95}, 90, 95)],
)
def test_a_window_is_named_by_its_ends_or_by_its_length(
    store: Store, live: Live, asked: dict[str, int], first: int, last: int
) -> None:
    with store.read() as session:
        layers = experts_over_time.layers_frame(session, "run-1", **asked)
        raster = views_experts.raster_frame(session, "run-1", 0, **asked)
    for found in (layers, raster):
        assert found is not None
        steps = frames.unpack(found[1])[1]["steps"]
        assert (steps[0], steps[-1]) == (first, last)


@pytest.mark.parametrize(("step", "steps"), [(None, 20), (70, 64)])
def test_a_layer_that_swings_shows_its_period(store: Store, live: Live, step: int | None, steps: int) -> None:
    """Over the steps of the attempt alone, as the alarm: the newest has twenty."""
    with store.read() as session:
        found = experts_over_time.swings_frame(session, live, "run-1", step)
        assert experts_over_time.swings_frame(session, live, "none") is None
    assert found is not None
    head, arrays = frames.unpack(found[1])
    assert (head["step"], head["steps"], head["layers"], head["judged"]) == (step or 100, steps, 4, False)
    assert not arrays["swinging"].any(), "no rule judges it yet"
    assert arrays["autocorrelation"].shape == (4, experts_over_time.LAGS)
    assert arrays["period"][3] == pytest.approx(2.0)
    assert arrays["autocorrelation"][3, 0] < -0.9 and arrays["autocorrelation"][3, 1] > 0.89
    assert np.isnan(arrays["autocorrelation"][1]).all(), "a layer that says nothing is not calm"


def test_the_swings_are_those_that_the_alarm_names(sqlite_store: Store) -> None:
    """Layer 0 comes and goes within eight steps, which lag 1 does not show; layer 1 turns round a little by chance."""
    dice, shape = np.random.default_rng(1), Shape(2, 16, 16, 1)
    phase = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    steps = []
    for step in range(301, 365):
        loads = np.array([1 + 0.5 * np.cos(2 * np.pi * step / 8 + phase), 1 + 0.02 * (-1) ** (step + np.arange(16))])
        counts = np.array([dice.multinomial(4096 * 4**layer, one / one.sum()) for layer, one in enumerate(loads)])
        steps.append(
            ExpertStep(
                "run-1", 1, step, START + step, 1, 4096, 0, shape,
                counts.astype(np.uint32), np.zeros((2, 16), np.float32),
            )
        )  # fmt: skip
    live = Live(sqlite_store, ManualClock(START))
    live.take_steps(steps, simulated=False, received_s=START)
    with sqlite_store.read() as session:
        found = experts_over_time.swings_frame(session, live, "run-1")
        assert experts_over_time.swings_frame(session, live, "run-1") is found, "made once while no step comes"
    drawn = live.experts_frame("run-1")
    assert found is not None and drawn is not None
    head, arrays = frames.unpack(found[1])
    assert head["judged"] and arrays["swinging"].tolist() == [2, 0]
    assert arrays["swinging"].tolist() == frames.unpack(drawn[1])[1]["swinging"].tolist()
    assert arrays["autocorrelation"][0, 0] > 0.5 and arrays["autocorrelation"][1, 0] < -0.25
    assert arrays["period"][0] == pytest.approx(8.0)


def old_steps(store: Store, count: int = 700) -> None:
    """A long run's steps, written, merged, and thinned as they are after ten days: every eighth has its counts."""
    shape = Shape(layers=2, slots=5, experts=4, top_k=1)
    dice = np.random.default_rng(3)
    for begin in range(0, count, 64):
        steps = [
            ExpertStep(
                "run-1", 1, step, START + step, 1, 400, 0, shape,
                dice.multinomial(400, [0.25] * 4 + [0.0], size=2).astype(np.uint32), np.zeros((2, 5), np.float32),
            )
            for step in range(begin, min(begin + 64, count))
        ]  # fmt: skip
        bounds = (steps[0].step, steps[-1].step, len(steps))
        with store.write() as session:
            session.add(experts.chunk_row("run-1", 1, shape, encode_steps(steps), level=0, steps=bounds))
    expert_merging.compact_once(store)
    assert expert_thinning.thin_once(store, START + count + 10 * expert_thinning.DAY_S, expert_thinning.Policy()) > 0


@pytest.mark.parametrize(("asked", "shown"), [(100, 100), (400, 400), (403, 400), (405, 408)])
def test_of_a_step_that_was_thinned_the_nearest_one_is_shown_and_said(store: Store, asked: int, shown: int) -> None:
    add_run(store)
    old_steps(store)
    live = Live(store, ManualClock(START))
    with store.read() as session:
        found = views_experts.frame_at(session, live, "run-1", asked)
        assert views_experts.frame_at(session, live, "run-1", 5000) is None
    assert found is not None
    head, arrays = frames.unpack(found[1])
    assert (head["step"], head["asked"]) == (shown, asked)
    assert np.isfinite(arrays["history"]).all(), "every step has its statistics"
    thinned = shown > 320
    assert np.isnan(arrays["lag1"]).all() == thinned and np.isnan(arrays["delta_bias"]).all() == thinned


def test_expert_parallel_ranks_are_told_as_far_as_they_are_declared() -> None:
    counts = np.array([[300, 100, 100, 100, 7], [0, 0, 0, 0, 0]], np.uint32)
    step = ExpertStep(
        "run-1", 1, 5, START, 1, 600, 0, Shape(2, 5, 4, 1), counts, np.zeros((2, 5), np.float32), layout=(2, 1, 1)
    )  # fmt: skip
    meta, arrays = experts_frame.of_window([step])
    assert meta["expert_parallel"] == 2
    assert arrays["rank_load"][0].tolist() == pytest.approx([4 / 3, 2 / 3])
    assert np.isnan(arrays["rank_load"][1]).all()
    for layout in ((1, 1, 1), (3, 1, 1)):
        assert "rank_load" not in experts_frame.of_window([replace(step, layout=layout)])[1]


def test_the_course_of_a_long_run_is_read_again_only_when_a_column_is_full(store: Store) -> None:
    add_run(store)
    old_steps(store)
    live = Live(store, ManualClock(START))
    shape = Shape(2, 5, 4, 1)
    made = []
    for step in (699, 700, 720):
        one = ExpertStep(
            "run-1", 1, step, START + step, 1, 400, 0, shape,
            np.full((2, 5), 80, np.uint32), np.zeros((2, 5), np.float32),
        )  # fmt: skip
        with store.write() as session:
            session.add(experts.chunk_row("run-1", 1, shape, encode_steps([one]), level=0, steps=(step, step, 1)))
        with store.read() as session:
            made.append(experts_over_time.course_frame(session, live, "run-1", 32))
            assert experts_over_time.course_frame(session, live, "none", 32) is None
    assert made[0] is made[1] and made[2] is not made[1] and made[2] is not None
    head, arrays = frames.unpack(made[2][1])
    assert (head["step"], arrays["cv_floor"].shape) == (720, (2, 32))
    over_time = experts_over_time.over_time_frame
    with store.read() as session:
        for whole in ({}, {"steps": 5000}, {"first": 0}, {"first": 0, "last": 5000}):
            assert over_time(session, live, "run-1", columns=32, **whole) is made[2], whole
        for part in ({"steps": 10}, {"first": 700}, {"first": 0, "last": 600}, {"last": 0}):
            assert over_time(session, live, "run-1", columns=32, **part) is not made[2], part
        assert over_time(session, live, "none") is None


def test_the_course_of_a_run_that_has_ended_has_its_last_steps(store: Store) -> None:
    add_run(store)
    old_steps(store)
    live = Live(store, ManualClock(START))
    shape = Shape(2, 5, 4, 1)
    made = []
    for step, status in ((699, "active"), (700, "active"), (700, "succeeded")):
        one = ExpertStep(
            "run-1", 1, step, START + step, 1, 400, 0, shape,
            np.full((2, 5), 80, np.uint32), np.zeros((2, 5), np.float32),
        )  # fmt: skip
        with store.write() as session:
            if status == "active":
                chunk = experts.chunk_row("run-1", 1, shape, encode_steps([one]), level=0, steps=(step, step, 1))
                session.add(chunk)
            session.get_one(Run, "run-1").status = status
        with store.read() as session:
            made.append(experts_over_time.course_frame(session, live, "run-1", 32))
    heads = [frames.unpack(frame[1])[0]["step"] for frame in made if frame]
    assert heads == [699, 699, 700]
