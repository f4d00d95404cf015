"""The live state and its frames: what was committed is seen at once, and after a restart again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from agents.readings import GPU_INDEX, UNKNOWN
from agents.wire import Batch, Columns
from controlplane.clock import ManualClock
from controlplane.rules.experts import layer_statistics
from controlplane.services import frames
from controlplane.services.fleet_state import STATES, NodeStatus, gpu_state, newest, uncorrectable
from controlplane.services.ingest import Ingest
from controlplane.services.live import HISTORY, Live
from controlplane.store import codec, nodes
from controlplane.store.engine import Store
from tests.services.batches import START, add_run, batch, columns, expert, fault


class Server:
    """One store, one memory, one clock, and a writer."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store, self.clock = store, clock
        self.live = Live(store, clock)
        self.ingest = Ingest(store, self.live, clock, group_s=0.0)
        self.ingest.start()

    def send(self, found: Batch) -> None:
        self.ingest.submit(found, self.clock.now()).result(30)

    def restarted(self) -> Server:
        self.ingest.stop()
        made = Server(self.store, self.clock)
        made.live.rebuild()
        return made


@pytest.fixture
def server(sqlite_store: Store) -> Iterator[Server]:
    made = Server(sqlite_store, ManualClock(START))
    yield made
    made.ingest.stop()


def with_value(found: Columns, metric: str, device: int, value: int) -> Columns:
    changed = found.values[GPU_INDEX[metric]][:]
    changed[device] = value
    values = list(found.values)
    values[GPU_INDEX[metric]] = changed
    return replace(found, values=tuple(values))


def fleet(server: Server) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    server.live.forget_statuses()
    return frames.unpack(server.live.fleet_frame()[1])


def words(state: np.ndarray) -> list[list[str]]:
    return [[STATES[number] for number in row] for row in state]


def test_the_fleet_frame_shows_each_gpu(server: Server) -> None:
    gpus = columns(gfx_activity_percent=90, power_w=700, temperature_hotspot_c=71, ecc_hbm_uncorrectable_total=0)
    gpus = with_value(gpus, "gfx_activity_percent", 1, 0)
    gpus = with_value(gpus, "power_w", 2, UNKNOWN)
    gpus = with_value(gpus, "gfx_activity_percent", 2, UNKNOWN)
    gpus = with_value(gpus, "ecc_hbm_uncorrectable_total", 3, 40)
    server.send(
        batch(0, gpu=gpus, faults=(fault(entity="gpu3"), fault(entity="gpu4", severity="warning", onset_s=1.0)))
    )
    server.send(batch(0, node="node-0", gpu=columns(entities=2)))
    with server.store.write() as session:
        nodes.cordon(session, "node-0", reason="test", now=START)
    head, arrays = fleet(server)
    assert head["kind"] == "fleet"
    assert (head["nodes"], head["gpus"], head["simulated"]) == (["node-0", "node-1"], 8, True)
    assert words(arrays["state"])[0] == ["drained"] * 2 + ["nodata"] * 6
    assert words(arrays["state"])[1] == ["training", "idle", "nodata", "fault", "warning"] + ["training"] * 3
    assert arrays["power"][1, 0] == 700
    assert np.isnan(arrays["power"][1, 2])
    assert np.isnan(arrays["power"][0, 5])
    assert arrays["ecc"][1].tolist() == [2, 2, 2, 42, 2, 2, 2, 2]
    assert arrays["temperature"][1, 7] == 71


def test_a_silent_node_has_no_data(server: Server) -> None:
    server.send(batch(0))
    server.clock.advance(15)
    assert words(fleet(server)[1]["state"])[0] == ["training"] * 8
    server.clock.advance(0.5)
    assert words(fleet(server)[1]["state"])[0] == ["nodata"] * 8


def test_an_old_sample_that_comes_late_is_not_shown_as_the_present(server: Server) -> None:
    server.send(batch(0))
    server.clock.advance(100)
    server.ingest.submit(batch(60), server.clock.now(), behind=40).result(30)
    assert words(fleet(server)[1]["state"])[0] == ["nodata"] * 8
    again = server.restarted()
    assert words(fleet(again)[1]["state"])[0] == ["nodata"] * 8
    again.ingest.submit(batch(100), server.clock.now()).result(30)
    assert words(fleet(again)[1]["state"])[0] == ["training"] * 8
    again.ingest.stop()


def test_an_empty_fleet_is_a_frame_too(server: Server) -> None:
    head, arrays = fleet(server)
    assert (head["nodes"], arrays["state"].shape) == ([], (0, 0))


@pytest.mark.parametrize(
    ("drained", "fired", "age_s", "activity", "expected"),
    [
        (False, (), 1.0, 90.0, "training"),
        (False, (), 1.0, 9.0, "idle"),
        (False, (), 1.0, None, "nodata"),
        (False, (), None, 90.0, "nodata"),
        (True, (("gpu0", "critical"),), 99.0, 90.0, "nodata"),
        (True, (("gpu0", "critical"),), 1.0, 90.0, "fault"),
        (True, (("gpu1", "critical"),), 1.0, 90.0, "drained"),
        (False, (("gpu1", "critical"),), 1.0, 90.0, "training"),
        (False, (("gpu0", "warning"), ("gpu0", "error")), 1.0, None, "fault"),
        (False, (("node", "error"),), 1.0, 90.0, "warning"),
        (False, (("nic0", "error"), ("run", "error")), 1.0, 90.0, "training"),
    ],
)
def test_a_gpus_state_is_what_matters_most(
    drained: bool, fired: tuple[tuple[str, str], ...], age_s: float | None, activity: float | None, expected: str
) -> None:
    status = NodeStatus("n", drained, fired)
    assert gpu_state(status, 0, age_s=age_s, activity_percent=activity) == expected


def test_what_is_not_read_is_not_shown() -> None:
    samples = codec.Samples(("power_w",), np.zeros(1), np.zeros(1), np.array([[[5, UNKNOWN]]]))
    assert newest(samples, "power_w").tolist()[0] == 5
    assert np.isnan(newest(samples, "power_w")[1])
    assert len(newest(samples, "nothing")) == len(newest(None, "power_w")) == len(uncorrectable(samples)) == 0


def test_the_experts_frame_is_the_last_step(server: Server) -> None:
    add_run(server.store)
    server.live.expect("run-1", 1, 1)
    assert server.live.experts_frame("run-1") is None
    uneven = np.full(17, 100)
    uneven[[0, 3, 16]] = 400, 0, 7
    records = [expert(step, counts=uneven + step) for step in (1, 2)]
    records += [expert(3, counts=uneven)]
    for sequence, record in enumerate(records):
        server.send(batch(sequence, experts=(record,)))
    found = server.live.experts_frame("run-1")
    assert found is not None
    head, arrays = frames.unpack(found[1])
    assert {name: head[name] for name in ("kind", "run", "attempt", "step", "layers", "experts", "slots", "top_k")} == {
        "kind": "experts",
        "run": "run-1",
        "attempt": 1,
        "step": 3,
        "layers": 4,
        "experts": 16,
        "slots": 17,
        "top_k": 1,
    }
    assert (head["stale"], head["simulated"], head["tokens"]) == (False, True, int(uneven.sum()))
    assert np.array_equal(arrays["counts"], np.broadcast_to(uneven, (4, 17)))
    bias = [np.array(record.bias, np.float32).reshape(4, 17) for record in records]
    assert np.array_equal(arrays["bias"], bias[2])
    assert np.array_equal(arrays["delta_bias"], bias[2] - bias[1])
    expected = layer_statistics(arrays["counts"], arrays["bias"], 16, 1)
    np.testing.assert_allclose(arrays["cv_floor"], expected.cv_floor, rtol=1e-6)
    assert head["floor_cv"] == pytest.approx(float(expected.floor_cv))
    assert arrays["history"].shape == (4, 64)
    assert np.isnan(arrays["history"][:, :61]).all()
    np.testing.assert_array_equal(arrays["history"][:, 63], arrays["cv_floor"])
    assert arrays["dead"].dtype == np.uint8
    assert not arrays["dead"].any()  # expert 3 had tokens in two of the last three steps


def test_a_dead_expert_is_seen_after_sixteen_steps(server: Server) -> None:
    counts = np.full(17, 100)
    counts[[5, 16]] = 0
    for sequence in range(16):
        add_run(server.store) if sequence == 0 else None
        server.live.expect("run-1", 1, 1)
        server.send(batch(sequence, experts=(expert(sequence, counts=counts),)))
    found = server.live.experts_frame("run-1")
    assert found is not None
    assert np.argwhere(frames.unpack(found[1])[1]["dead"][0]).tolist() == [[5]]


def test_the_tag_changes_with_the_content_and_with_age_only_when_stale(server: Server) -> None:
    add_run(server.store)
    server.live.expect("run-1", 1, 1)
    server.send(batch(0, experts=(expert(1),)))
    tags = [server.live.experts_frame("run-1")]
    server.clock.advance(10)
    tags.append(server.live.experts_frame("run-1"))
    server.clock.advance(10)
    tags.append(server.live.experts_frame("run-1"))
    server.send(batch(1, experts=(expert(2),)))
    tags.append(server.live.experts_frame("run-1"))
    found = [tag[0] for tag in tags if tag is not None]
    assert found[0] == found[1]
    assert len({found[1], found[2], found[3]}) == 3
    assert [frames.unpack(tag[1])[0]["age_s"] for tag in tags if tag is not None] == [0, 10, 20, 0]


def test_a_later_attempt_replaces_the_steps_that_it_does_again(server: Server) -> None:
    add_run(server.store, attempts=[(1, ()), (2, ())])
    for attempt in (1, 2):
        server.live.expect("run-1", attempt, 1)
    first = tuple(expert(step) for step in range(1, 11))
    server.send(batch(0, experts=first))
    server.send(batch(1, experts=(expert(8, attempt_no=2), expert(9, attempt_no=2))))
    server.send(batch(2, experts=(expert(11),)))  # what attempt 1 says late changes nothing
    for one in (server, server.restarted()):
        run = one.live.run("run-1")
        assert run is not None
        assert [(step.step, step.attempt_no) for step in run.window] == [(step, 1) for step in range(1, 8)] + [
            (8, 2),
            (9, 2),
        ]
        one.ingest.stop()


def test_a_restarted_server_knows_what_it_knew(server: Server) -> None:
    add_run(server.store)
    server.live.expect("run-1", 1, 1)
    for sequence in range(3):
        steps = range(40 * sequence, 40 * sequence + 40)
        server.send(batch(sequence, experts=tuple(expert(step) for step in steps)))
    again = server.restarted()
    before, after = server.live.experts_frame("run-1"), again.live.experts_frame("run-1")
    assert before is not None
    assert after is not None
    one, other = frames.unpack(before[1]), frames.unpack(after[1])
    assert one[1].keys() == other[1].keys()
    for name, array in one[1].items():
        assert array.tobytes() == other[1][name].tobytes()
    window = again.live.run("run-1")
    assert window is not None
    assert len(window.window) == HISTORY
    assert fleet(server)[1]["power"].tobytes() == fleet(again)[1]["power"].tobytes()
    again.ingest.stop()


def test_only_so_many_runs_are_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.services.live.RUNS", 2)
    for run in ("a", "b", "a", "c"):
        add_run(server.store, run) if server.live.run(run) is None else None
        server.live.expect(run, 1, 1)
        server.send(batch(len(server.live.runs()) + ord(run) * 10, node=run + "x", experts=(expert(1, run_id=run),)))
    assert list(server.live.runs()) == ["a", "c"]


def test_a_frame_holds_only_what_a_browser_maps() -> None:
    content = frames.payload({"a": np.arange(3, dtype=np.uint8), "b": np.arange(4, dtype=np.float64)})
    frame = frames.pack("x", {"n": float("nan"), "t": "ü"}, content)
    head, arrays = frames.unpack(frame)
    assert (head["n"], head["t"]) == (None, "ü")
    assert arrays["a"].tolist() == [0, 1, 2]
    assert arrays["b"].tolist() == [0, 1, 2, 3]
    assert all((8 + int.from_bytes(frame[4:8], "little") + one["offset"]) % 8 == 0 for one in head["arrays"])
    with pytest.raises(frames.FrameError, match="not int64"):
        frames.payload({"c": np.arange(3)})
    with pytest.raises(frames.FrameError, match="no Trimtab frame"):
        frames.unpack(b"PNG.....")
