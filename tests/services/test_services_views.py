"""What the pages' JSON says of nodes and of expert balance, read back after real batches."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from agents.readings import KernelLine
from controlplane.clock import ManualClock
from controlplane.services import frames, views_experts, views_fleet
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import nodes, runs
from controlplane.store.engine import Store
from tests.services.batches import START, add_run, batch, columns, expert, fault


class Server:
    """A store with a memory and a writer."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, ManualClock(START)
        self.live = Live(store, self.clock)
        self.ingest = Ingest(store, self.live, self.clock, group_s=0.0)
        self.sequence = 0

    def send(self, **changes: object) -> None:
        self.ingest.submit(batch(self.sequence, **changes), self.clock.now()).result(30)
        self.sequence += 1


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    made = Server(store)
    made.ingest.start()
    yield made
    made.ingest.stop()


def test_a_row_for_every_node(server: Server) -> None:
    add_run(server.store, attempts=[(1, ["node-1"])])
    server.send(gpu=columns(gfx_activity_percent=90, power_w=700, vram_used_mib=151_000), faults=(fault(),))
    server.send(node="node-0", nic=columns("nic", link_up=0))
    server.clock.advance(2)
    with server.store.write() as session:
        assert nodes.cordon(session, "node-1", reason="bad memory", now=START)
        assert not nodes.cordon(session, "node-9", reason="none", now=START)
    server.live.forget_statuses()
    with server.store.read() as session:
        other, row = views_fleet.node_rows(session, server.live, now=server.clock.now())
    json.dumps([other, row], allow_nan=False)
    assert (row["name"], row["state"], row["cordoned"], row["state_reason"]) == (
        "node-1",
        "healthy",
        True,
        "bad memory",
    )
    assert (row["age_s"], row["simulated"], row["source"], row["run"]) == (2.0, True, "simulated", "run-1")
    assert (row["nics_up"], row["nics"]) == (8, 8)
    assert [gpu["state"] for gpu in row["gpus"]] == ["drained"] * 3 + ["fault"] + ["drained"] * 4
    assert row["gpus"][0]["power_w"] == 700
    assert row["gpus"][0]["vram_used_gib"] == 147.5
    (found,) = row["findings"]
    assert (found["gpu"], found["severity"], found["since_s"], found["incident"]) == (3, "critical", 2.0, None)
    assert (other["run"], other["nics_up"], other["findings"]) == (None, 0, [])


def test_a_node_with_its_history(server: Server) -> None:
    server.send(faults=(fault(),), kernel=(KernelLine(START, 3, "amdgpu: poison", "0000:05:00.0"),))
    with server.store.read() as session:
        view = views_fleet.node_view(session, server.live, "node-1", now=START + 1)
        assert views_fleet.node_view(session, server.live, "nobody", now=START) is None
    assert view is not None
    json.dumps(view, allow_nan=False)
    assert [line["text"] for line in view["kernel"]] == ["amdgpu: poison"]
    assert [(row["lane"], row["level"]) for row in view["timeline"]] == [("hardware", "fault"), ("hardware", "info")]
    assert view["faults"][0]["rule"] == "hbm-uncorrectable"
    port = view["nics_detail"][7]
    assert (port["index"], port["name"], port["up"], port["rate_gbps"], port["carrier_changes"]) == (
        7,
        "nic7",
        True,
        1.0,
        1.0,
    )
    power = next(one for one in view["metrics"] if one["name"] == "power_w")
    assert (power["scope"], power["unit"], len(power["values"])) == ("gpu", "W", 8)
    assert [one["gpu"] for one in view["budgets"]] == list(range(8)) and view["users"] == [] and view["unlike"] == []


def test_a_node_that_sent_no_sample_yet(server: Server) -> None:
    server.send(gpu=None, nic=None)
    with server.store.read() as session:
        (row,) = views_fleet.node_rows(session, server.live, now=START + 3)
    assert (row["gpus"], row["nics"], row["nics_up"], row["age_s"]) == ([], 0, 0, 3.0)


def test_a_series_is_in_its_unit(server: Server) -> None:
    server.send(gpu=columns(at_s=[START, START + 1], energy_j=10**6, power_w=650))
    with server.store.read() as session:
        arguments = {"since_s": START - 1, "until_s": START + 9}
        energy = views_fleet.series(session, "node-1", "energy_j", 2, **arguments)
        power = views_fleet.series(session, "node-1", "power_w", 2, **arguments)
        with pytest.raises(views_fleet.UnknownSeries, match="no device has a metric luck"):
            views_fleet.series(session, "node-1", "luck", 2, **arguments)
        assert views_fleet.series(session, "node-1", "power_w", 99, **arguments)["t"] == []
        assert views_fleet.stored(session) == {"gpu_samples": 2, "nic_samples": 1}
    assert energy["v"] == pytest.approx([15.259, 15.259])
    assert (energy["unit"], energy["kind"], power["unit"], power["v"]) == ("J", "counter", "W", [650.0, 650.0])


def train(server: Server, steps: range, counts: np.ndarray, attempt_no: int = 1) -> None:
    server.live.expect("run-1", attempt_no, 1)
    records = tuple(expert(step, counts=counts, attempt_no=attempt_no) for step in steps)
    server.send(experts=records)


def uneven() -> np.ndarray:
    counts = np.full((4, 17), 100)
    counts[:, 16] = 0
    counts[2, 5] = 900
    counts[3, 7] = 0
    return counts


def test_the_summary_says_what_is_wrong(server: Server) -> None:
    add_run(server.store)
    train(server, range(201, 265), uneven())
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START + 1)
        assert views_experts.summary(session, server.live, "none", now=START) is None
    assert found is not None
    json.dumps(found, allow_nan=False)
    assert (found["step"], found["layers"], found["experts"], found["slots"]) == (264, 4, 16, 17)
    assert found["worst_layer"]["layer"] == 2
    assert found["dead"] == {"count": 1, "layers": [3]}
    assert found["sentence"]["lead"] == "Layer 2 sends 6.0× its share to expert 5."
    assert "Layer 3 has 1 dead expert." in found["sentence"]["rest"]
    assert found["sentence"]["level"] == "fault"
    tiles = {tile["label"]: tile for tile in found["tiles"]}
    assert list(tiles) == [
        "worst layer", "median layer", "dead experts", "effective experts", "skip share", "oscillating",
    ]  # fmt: skip
    assert (tiles["worst layer"]["level"], tiles["dead experts"]["value"]) == ("fault", "1")
    assert tiles["dead experts"]["level"] == "warn", "as grave as its rule says"
    assert tiles["worst layer"]["context"] == "1 collapsing, 1 uneven in 64 steps"
    assert tiles["skip share"]["context"] == "no token took a skip slot"
    assert found["records"] == 64
    assert found["maxvio"]["last_window"] == pytest.approx((5.0 + 1 / 15) / 4)
    assert len(found["controller"]) == 4
    assert found["controller"][0]["same_direction"] == pytest.approx(1.0)
    assert {row["kind"] for row in found["controller"]} <= {"sign", "pid", "unknown"}
    assert {"kp", "ki", "kd", "r2", "sign_gain", "sign_r2", "inverted", "inverted_by", "swings"} <= set(
        found["controller"][2]
    )


def test_a_young_run_is_not_called_wrong(server: Server) -> None:
    add_run(server.store)
    train(server, range(1, 21), uneven())
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START)
    assert found is not None
    assert found["sentence"]["level"] == "ok"
    assert found["sentence"]["lead"] == "Step 20: the balancing biases are still settling."
    assert {tile["level"] for tile in found["tiles"]} == {"ok"}, "a dead expert is a fact, no rule judges it yet"
    assert (found["settling"], found["dead"]["count"]) == (True, 1)


def test_a_run_that_ended_in_its_warmup_does_not_settle_any_more(server: Server) -> None:
    add_run(server.store)
    train(server, range(1, 201), uneven())
    with server.store.write() as session:
        run = runs.locked(session, "run-1")
        assert run is not None
        run.status = "succeeded"
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START)
    assert found is not None
    assert found["sentence"]["lead"] == "The run ended at step 200, before its balance could be judged."
    assert "is farthest from even" in found["sentence"]["rest"]


@pytest.mark.parametrize(("last", "settling"), [(263, True), (264, False)])
def test_every_picture_of_a_step_says_the_same_of_it(server: Server, last: int, settling: bool) -> None:
    add_run(server.store)
    train(server, range(last - 63, last + 1), uneven())
    with server.store.read() as session:
        told = views_experts.summary(session, server.live, "run-1", now=START)
        past = views_experts.frame_at(session, server.live, "run-1", last)
        raster = views_experts.raster_frame(session, "run-1", 2)
    now = server.live.experts_frame("run-1")
    assert told is not None and now is not None and past is not None and raster is not None
    for frame in (now, past):
        head, arrays = frames.unpack(frame[1])
        assert {name: head[name] for name in ("step", "sentence", "tiles", "settling")} == {
            name: told[name] for name in ("step", "sentence", "tiles", "settling")
        }
        assert np.count_nonzero(arrays["dead"]) == told["dead"]["count"]
        worst = float(arrays["mean_floor"].max())
        assert told["tiles"][0]["value"] == f"{worst:.1f}×"
        assert told["worst_layer"]["cv_floor"] == pytest.approx(worst)
        assert arrays["level"].tolist() == ([0, 0, 0, 1] if settling else [0, 0, 2, 1])
    assert told["settling"] is settling
    assert frames.unpack(raster[1])[0]["rules"]["expert-imbalance"]["cv_floor"] == 1.5


def test_what_is_cut_short_says_how_much_is_left_out(server: Server) -> None:
    add_run(server.store)
    counts = np.full((4, 17), 100)
    counts[:, 7] = 0
    train(server, range(240, 260), counts)
    counts[1:, 7] = 100
    counts[0, :5] = 0
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START)
        assert found is not None
        assert found["tiles"][2]["context"] == "L0, L1, L2 and 1 more"
        assert "4 layers have 4 dead experts." in found["sentence"]["rest"]
        train(server, range(260, 280), counts)
        found = views_experts.summary(session, server.live, "run-1", now=START)
    assert found is not None and found["tiles"][2]["context"] == "L0: 0, 1, 2 and 3 more"


def test_an_even_run_is_said_to_be_even(server: Server) -> None:
    add_run(server.store)
    dice = np.random.default_rng(1)
    server.live.expect("run-1", 1, 1)
    records = []
    for step in range(300, 364):
        counts = np.zeros((4, 17), np.int64)
        counts[:, :16] = dice.multinomial(4096, np.full(16, 1 / 16), size=4)
        records.append(expert(step, counts=counts))
    server.send(experts=tuple(records))
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START)
    assert found is not None
    assert found["sentence"]["lead"] == "All 4 layers are as even as chance allows."
    assert 0.7 < found["median_layer"]["cv_floor"] < 1.3


def test_a_layer_without_tokens_is_unknown_not_wrong(server: Server) -> None:
    add_run(server.store)
    counts = np.full((4, 17), 100)
    counts[1] = 0
    train(server, range(240, 250), counts)
    with server.store.read() as session:
        found = views_experts.summary(session, server.live, "run-1", now=START)
    json.dumps(found, allow_nan=False)


def test_a_raster_marks_where_another_attempt_goes_on(server: Server) -> None:
    add_run(server.store, attempts=[(1, ()), (2, ())])
    train(server, range(1, 21), uneven())
    train(server, range(17, 31), uneven(), attempt_no=2)
    with server.store.read() as session:
        found = views_experts.raster_frame(session, "run-1", 2, columns=1000)
        narrow = views_experts.raster_frame(session, "run-1", 2, first=5, last=14, columns=5)
        assert views_experts.raster_frame(session, "run-1", 9) is None
        assert views_experts.raster_frame(session, "none", 0) is None
    assert found is not None
    assert narrow is not None
    head, arrays = frames.unpack(found[1])
    assert (head["kind"], head["layer"], head["step"]) == ("raster", 2, 30)
    assert head["marks"] == [{"kind": "restart", "column": 16, "step": 17, "label": "attempt 2"}]
    assert arrays["steps"].tolist() == list(range(1, 31))
    assert arrays["share"].shape == arrays["bias"].shape == (16, 30)
    assert arrays["share"][5, 0] == pytest.approx(900 / 2400)
    assert frames.unpack(narrow[1])[1]["steps"].tolist() == [6, 8, 10, 12, 14]


def test_a_step_of_the_past_is_a_frame(server: Server) -> None:
    add_run(server.store)
    train(server, range(1, 100), uneven())
    with server.store.read() as session:
        found = views_experts.frame_at(session, server.live, "run-1", 50)
        again = views_experts.frame_at(session, server.live, "run-1", 50)
        assert views_experts.frame_at(session, server.live, "run-1", 500) is None
        assert views_experts.frame_at(session, server.live, "none", 1) is None
    assert found is not None
    assert again is not None
    assert found[0] == again[0]
    head, arrays = frames.unpack(found[1])
    assert head["step"] == 50
    assert np.isnan(arrays["history"][:, 13]).all()
    assert np.isfinite(arrays["history"][:, 14]).all()
