"""Ingest: nothing twice, nothing acknowledged before it is durable, nothing lost for a neighbour's fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from agents.readings import UNKNOWN
from agents.wire import Reply
from controlplane.clock import ManualClock
from controlplane.services import ingest as ingest_module
from controlplane.services.admission import BatchRefused
from controlplane.services.ingest import Ingest, IngestedSummary
from controlplane.services.live import Live
from controlplane.store import drills, events, experts, faults, heartbeats, nodes, steps, telemetry
from controlplane.store.engine import Store, StoreRejected, StoreUnavailable
from tests.services.batches import (
    START,
    add_run,
    batch,
    columns,
    expert,
    fault,
    gpu_samples,
    heartbeat,
    refusing,
    step_record,
)

Send = Callable[..., Reply]


def test_a_batch_is_readable_once_it_is_acknowledged(store: Store, send: Send) -> None:
    reply = send(batch(5, gpu=columns(at_s=[START + 4, START + 5], power_w=650)))
    assert reply == Reply(5, (), START)
    with store.read() as session:
        points = telemetry.read_points(
            session, "node-1", "gpu", "power_w", 7, since_s=START, until_s=START + 10, points=100
        )
        node = nodes.get(session, "node-1")
        assert points.last.tolist() == [650.0, 650.0]
        assert points.at_s.tolist() == [START + 4, START + 5]
        assert node is not None
        assert (node.boot_id, node.last_sequence, node.simulated, node.state) == ("boot-1", 5, True, "healthy")
        assert [event.kind for event in events.listed(session, node="node-1")] == ["node.new"]


def test_a_replayed_batch_is_acknowledged_and_not_stored_again(store: Store, send: Send, ingest: Ingest) -> None:
    for sequence in (0, 1, 2, 2, 1, 0):
        assert send(batch(sequence)).acknowledged >= sequence
    assert send(batch(1)).acknowledged == 2
    assert gpu_samples(store) == 3
    assert ingest.counters.replays == 4


def test_a_replay_within_one_group_is_found(store: Store, live: Live, clock: ManualClock) -> None:
    ingest = Ingest(store, live, clock)
    waiting = [ingest.submit(batch(sequence), START) for sequence in (0, 0, 1, 1)]
    ingest.start()
    assert [one.result(30).acknowledged for one in waiting] == [0, 0, 1, 1]
    ingest.stop()
    assert gpu_samples(store) == 2
    assert ingest.counters.transactions == 1


def test_the_batches_of_a_boot_that_was_left_are_still_known(store: Store, send: Send) -> None:
    send(batch(7))
    send(batch(0, boot_id="boot-2", at_s=START + 8))
    assert send(batch(7)).acknowledged == 7
    assert gpu_samples(store) == 2
    send(batch(8))
    assert send(batch(0, boot_id="boot-2", at_s=START + 8)).acknowledged == 0
    assert gpu_samples(store) == 3
    with store.read() as session:
        assert [event.kind for event in events.listed(session, node="node-1")] == ["node.new", "node.boot", "node.boot"]


@pytest.mark.parametrize(
    "changes",
    [
        {"node": ""},
        {"node": "a\nb"},
        {"node": "x" * 300},
        {"boot_id": ""},
        {"sequence": -1},
        {"sequence": 2**63},
        {"sent_s": float("nan")},
        {"gpu": replace(columns(), metrics=("twice",) * 33)},
        {"gpu": replace(columns(), entities=9)},
        {"gpu": columns(at_s=[float("inf")])},
        {"faults": (fault(observed_s=float("nan")),)},
        {"faults": (fault(severity=3),)},
        {"faults": (fault(state="maybe"),)},
        {"faults": (fault(attempt_no=2**70),)},
        {"steps": (step_record(1, data_position=2**64),)},
    ],
)
def test_a_malformed_batch_is_refused_and_leaves_nothing(
    sqlite_store: Store, changes: dict[str, object], clock: ManualClock
) -> None:
    ingest = Ingest(sqlite_store, Live(sqlite_store, clock), clock)
    with pytest.raises(BatchRefused) as refused:
        ingest.submit(batch(**changes), START)
    assert refused.value.code == "malformed"
    assert ingest.counters.refused_batches == 1
    ingest.start()
    ingest.stop()
    with sqlite_store.read() as session:
        assert nodes.listed(session) == []


def test_a_node_tells_of_its_own_faults_only(ingest: Ingest) -> None:
    with pytest.raises(BatchRefused, match="node-1 tells of a fault of node-2") as refused:
        ingest.submit(batch(faults=(fault(node="node-2"),)), START)
    assert refused.value.code == "foreign_fault"


def test_a_batch_that_the_database_cannot_hold_harms_no_other(
    store: Store, live: Live, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(store)
    ingest = Ingest(store, live, clock)
    poison = batch(0, node="node-2", heartbeats=(heartbeat(rank=2**40),))  # PostgreSQL: out of the column's range
    if store.embedded:  # SQLite holds 64 bits in every integer column, so its refusal is asked for
        monkeypatch.setattr(ingest_module, "commit", refusing("node-2", StoreRejected("no such rank")))
    waiting = [ingest.submit(batch(0), START), ingest.submit(poison, START), ingest.submit(batch(1), START)]
    ingest.start()
    assert waiting[0].result(30).acknowledged == 0
    with pytest.raises(BatchRefused, match="cannot be stored"):
        waiting[1].result(30)
    assert waiting[2].result(30).acknowledged == 1
    ingest.stop()
    assert (gpu_samples(store), gpu_samples(store, "node-2")) == (2, 0)
    assert (ingest.counters.refused_batches, ingest.counters.failed_transactions) == (1, 2)


def test_text_that_a_database_cannot_hold_is_cleaned(store: Store, send: Send) -> None:
    send(batch(faults=(fault(sentence="a\0b \ud800", evidence={"k\0": ["\0", float("nan")]}),)))
    with store.read() as session:
        (row,) = faults.firing(session)
        assert row.sentence == "ab ?"
        assert row.evidence == {"k": ["", None]}


def test_unknown_values_stay_unknown(store: Store, send: Send) -> None:
    send(batch(gpu=columns(power_w=UNKNOWN, energy_j=2**62)))
    with store.read() as session:
        (series,) = telemetry.read_series(session, "node-1", "gpu", "power_w", since_s=0, until_s=START + 1)
        assert (series.values == UNKNOWN).all()
        (series,) = telemetry.read_series(session, "node-1", "gpu", "energy_j", since_s=0, until_s=START + 1)
        assert (series.values == 2**62).all()
        points = telemetry.read_points(
            session, "node-1", "gpu", "power_w", 0, since_s=START, until_s=START + 1, points=5
        )
        assert len(points.at_s) == 0


def test_a_fault_is_one_row_however_often_it_is_told(store: Store, send: Send, clock: ManualClock) -> None:
    heard: list[IngestedSummary] = []
    first = fault()
    send(batch(0, faults=(first, first)))
    send(batch(1, faults=(replace(first, observed_s=START + 5, value=2.0),)))
    send(batch(2, faults=(replace(first, observed_s=START + 1, value=9.0),)))
    with store.read() as session:
        (row,) = faults.firing(session)
        assert (row.value, row.observed_s, row.cleared_s) == (2.0, START + 5, None)
    clock.advance(60)
    send(batch(3, faults=(replace(first, state="clear", observed_s=START + 60),)))
    send(batch(4, faults=(replace(first, observed_s=START + 61),)))
    with store.read() as session:
        assert faults.firing(session) == []
        (row,) = faults.of_node(session, "node-1")
        assert (row.state, row.cleared_s) == ("clear", START + 60)
    assert heard == []


def test_listeners_hear_of_a_commit_and_may_fail(ingest: Ingest, send: Send, live: Live) -> None:
    heard: list[IngestedSummary] = []

    def fail(_: IngestedSummary) -> None:
        raise RuntimeError("a listener's own trouble")

    ingest.on_commit(fail)
    ingest.on_commit(heard.append)
    found = fault()
    send(batch(0, faults=(found,)))
    send(batch(1))
    assert [summary.faults for summary in heard] == [(found.id,), ()]
    assert heard[0].nodes == ("node-1",)
    assert live.node("node-1") is not None


def test_drills_go_to_simulated_nodes_once(store: Store, send: Send) -> None:
    for node in ("node-1", "node-2"):
        with store.write() as session:
            drills.add(session, node=node, kind="hbm-uncorrectable", gpu=3, now=START, created_by="test")
    assert [(drill.kind, drill.gpu) for drill in send(batch(0)).drills] == [("hbm-uncorrectable", 3)]
    assert send(batch(1)).drills == ()
    assert send(batch(0, node="node-2", simulated=False, source="amd")).drills == ()
    assert len(send(batch(1, node="node-2")).drills) == 1
    with store.read() as session:
        assert drills.listed(session, "node-1")[0].delivered_s == START


def test_heartbeats_are_decoded_and_a_malformed_one_costs_only_itself(store: Store, send: Send, live: Live) -> None:
    add_run(store)
    broken = replace(heartbeat(1), body=b'{"run_id": "run-1"')
    send(batch(0, heartbeats=(heartbeat(0), broken, heartbeat(0, step=9, last_step=9, at_s=START + 2))))
    assert gpu_samples(store) == 1
    with store.read() as session:
        (row,) = heartbeats.of_attempt(session, "run-1", 1)
        assert (row.rank, row.step, row.phase, row.body["pid"]) == (0, 9, "train", 1000)
        complaints = [event.sentence for event in events.listed(session) if event.kind == "ingest.refused"]
    assert len(complaints) == 1
    assert "heartbeat-rank-1.json was left out" in complaints[0]
    assert live.expected("run-1", 1) == 2


def test_records_of_strangers_and_of_stale_epochs_are_refused_and_counted(
    store: Store, send: Send, ingest: Ingest
) -> None:
    add_run(store, attempts=[(1, ["node-1"]), (2, ["node-2"])])
    send(
        batch(
            experts=(expert(1), expert(2, epoch=9), expert(3, attempt_no=2), expert(4, run_id="nobody's")),
            steps=(step_record(1), step_record(2, epoch=0)),
            heartbeats=(heartbeat(0, attempt_no=7),),
        )
    )
    assert ingest.counters.refused_records == {"stale epoch": 2, "another node's attempt": 1, "unknown run": 2}
    assert gpu_samples(store) == 1
    with store.read() as session:
        assert [found.step.tolist() for found in steps.read(session, "run-1")] == [[1]]
        sentences = [event.sentence for event in events.listed(session) if event.kind == "ingest.refused"]
    assert len(sentences) == 3  # each reason once a minute


def test_a_step_is_summed_over_the_nodes_of_its_attempt(store: Store, send: Send, live: Live) -> None:
    add_run(store)
    live.expect("run-1", 1, 3)
    send(batch(0, experts=(expert(1, counts=10, ranks=2), expert(2, counts=10, ranks=2))))
    with store.read() as session:
        assert experts.counted(session, "run-1") == 0
    assert live.run("run-1") is None
    send(batch(0, node="node-2", experts=(expert(1, counts=5),)))
    with store.read() as session:
        (found,) = experts.recent(session, "run-1", limit=64)
    assert (found.step, found.ranks, found.tokens) == (1, 3, 15 * 17)
    assert np.array_equal(found.counts, np.full((4, 17), 15))
    run = live.run("run-1")
    assert run is not None
    assert [step.step for step in run.window] == [1]


def test_a_step_does_not_wait_for_ever_and_a_late_part_is_added(
    store: Store, send: Send, live: Live, ingest: Ingest
) -> None:
    add_run(store)
    live.expect("run-1", 1, 2)
    send(batch(0, experts=(expert(1, counts=10),)), received_s=START)
    assert ingest.flush_once(START + 1) == 0
    assert ingest.flush_once(START + 3) == 1
    assert ingest.flush_once(START + 3) == 0
    with store.read() as session:
        assert experts.recent(session, "run-1", limit=1)[0].ranks == 1
    send(batch(0, node="node-2", experts=(expert(1, counts=10),)), received_s=START + 4)
    with store.read() as session:
        (found,) = experts.recent(session, "run-1", limit=64)
    assert (found.ranks, found.counts[0, 0]) == (2, 20)


def test_a_record_of_another_shape_or_of_nonsense_is_left_out(store: Store, send: Send, live: Live) -> None:
    add_run(store)
    live.expect("run-1", 1, 1)
    send(batch(0, experts=(expert(1), expert(2, top_k=99), expert(3, ranks=0), expert(4, experts=18))))
    with store.read() as session:
        assert [step.step for step in experts.recent(session, "run-1", limit=64)] == [1]
        assert any("expert record was left out" in event.sentence for event in events.listed(session))


def test_an_unreachable_database_refuses_nothing(sqlite_store: Store, clock: ManualClock) -> None:
    ingest = Ingest(sqlite_store, Live(sqlite_store, clock), clock)
    sqlite_store.migrate("base")
    waiting = [ingest.submit(batch(0), START), ingest.submit(batch(1), START)]
    ingest.start()
    for one in waiting:
        with pytest.raises(StoreUnavailable):
            one.result(30)
    sqlite_store.migrate()
    assert ingest.submit(batch(0), START).result(30).acknowledged == 0
    ingest.stop()
    assert ingest.counters.failed_transactions == 1
