"""Experts on incidents: what lived on the GPU that failed, whether a skewed rank is hot or sick, a lost bias."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from agents.readings import StepRecord
from controlplane.services import expert_windows, views_experts, views_incidents
from controlplane.services.live import Live
from controlplane.store import experts, steps
from controlplane.store.engine import Session, Store
from controlplane.store.expert_coding import encode_steps
from controlplane.store.expert_records import ExpertStep, Shape
from controlplane.store.tables import Checkpoint
from tests.incidents.serving import BOOK, Server, add_attempt, change_attempt, fault, start_run

SHAPE = Shape(4, 8, 8, 1)
WEIGHTS = np.array([1, 1, 1, 1, 2, 2, 1, 1], np.float64)


@pytest.fixture
def server(sqlite_store: Store) -> Server:
    return Server(sqlite_store)


def record(server: Server, step: int, *, attempt_no: int = 1, seconds: float | None = None, **changes: object) -> None:
    """A step whose third block of two experts carries twice the others' load, times a swing that step time follows."""
    at_s = server.clock.now() - 300 + step
    swing = 1 + 0.3 * np.sin(step)
    weights = np.where(WEIGHTS > 1, WEIGHTS * swing, WEIGHTS)
    counts = np.random.default_rng(step).multinomial(8192, weights / weights.sum(), SHAPE.layers).astype(np.uint32)
    made = ExpertStep("run-1", attempt_no, step, at_s, 2, 8192, 0, SHAPE, counts, np.full((4, 8), 0.2, np.float32))
    made = replace(made, **{"layout": (2, 1, 1), **changes})  # type: ignore[arg-type]  # a test's shorthand
    with server.store.write() as session:
        session.add(experts.chunk_row("run-1", attempt_no, SHAPE, encode_steps([made]), level=0, steps=(step, step, 1)))
        told = StepRecord("run-1", attempt_no, 1, 0, step, at_s, 2.0, 1.0, seconds or 0.5 + swing, 8192, 1e-3, step)
        steps.add(session, [told])


def radius(server: Server, node: str = "node-1") -> dict[str, object]:
    server.check()
    incident = next(one for one in server.incidents() if (one.rule, one.node) == ("hbm-uncorrectable", node))
    found = views_incidents.view(server.store, BOOK, incident.number, server.clock.now())
    assert found is not None
    return dict(found["blast_radius"] or {})


def test_an_incident_tells_which_experts_lived_on_the_gpu_and_what_they_carried(server: Server) -> None:
    start_run(server)
    for step in range(201, 281):
        record(server, step)
    server.send(fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1))
    found = radius(server)
    assert (found["experts"], found["layers"], found["copies"]) == ([4, 7], [0, 3], 1)
    assert found["share"] == pytest.approx(0.6, abs=0.03)
    assert "Rank 1 holds experts 4 to 7 of layers 0 to 3, the only copy" in str(found["sentence"])


def test_a_data_parallel_rank_holds_every_expert(server: Server) -> None:
    start_run(server)
    record(server, 250, layout=(1, 1, 1))
    server.send(fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1))
    found = radius(server)
    assert (found["copies"], found["share"]) == (2, 0.5)
    assert "holds every expert, as all 2 ranks do: 50.0 %" in str(found["sentence"])


def test_a_fault_without_a_rank_or_records_has_no_radius(server: Server) -> None:
    start_run(server)
    server.send(fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1))
    assert radius(server) == {}, "there is no record"
    record(server, 250)
    server.send(fault(server, "node-2", entity="gpu0"))
    assert radius(server, "node-2") == {}, "no job was there"


def skewed(server: Server) -> dict[str, object]:
    """The finding that the rules make of the skew."""
    with server.store.read() as session:
        judged = server.rules.judge(session, server.clock.now())
    finding = next(one for one in judged.findings if one.rule == "expert-parallel-skew")
    return {"sentence": finding.sentence, **finding.evidence}


def test_a_skewed_rank_whose_load_step_time_follows_is_hot(server: Server) -> None:
    start_run(server)
    for step in range(201, 281):
        record(server, step)
    found = skewed(server)
    assert "Rank 1 is hot" in str(found["verdict"]) and str(found["verdict"]) in str(found["sentence"])
    assert dict(found["tax"])["r2"] > 0.9  # type: ignore[call-overload]  # evidence is JSON


def test_a_skewed_rank_on_a_faulty_gpu_is_sick_too(server: Server) -> None:
    start_run(server)
    dice = np.random.default_rng(1)
    for step in range(201, 281):
        record(server, step, seconds=1 + dice.uniform(0, 0.5))
    slow = fault(server, "node-1", rule="thermal-throttle", sentence="gpu3 of node-1 throttles", action="alert")
    server.send(replace(slow, run_id="run-1", attempt_no=1, rank=1))
    verdict = str(skewed(server)["verdict"])
    assert "step time does not follow it" in verdict and "Rank 1 is sick: gpu3 of node-1 throttles" in verdict


@pytest.mark.parametrize(
    ("checksum", "begins", "lost"),
    [
        ("00000000000000ab" + "0" * 48, 0.001, True),
        ("00000000000000ab" + "0" * 48, 0.2, False),
        ("0" * 14 + "7" + "0" * 49, 0.001, False),
        ("sha256:no hexadecimal", 0.001, True),
        ("sha256:no hexadecimal", 0.2, False),
    ],
)
def test_a_bias_lost_at_resume_is_found_from_the_manifest_s_checksum(
    server: Server, checksum: str, begins: float, lost: bool
) -> None:
    start_run(server)
    spread = np.linspace(-0.2, 0.2, 32, dtype=np.float32).reshape(4, 8)
    record(server, 250, bias=spread)
    with server.store.write() as session:
        session.add(
            Checkpoint(
                id="c", run_id="run-1", attempt_no=1, epoch=1, step=250, path="/c", seen_s=0.0, bias_checksum=checksum
            )
        )
    change_attempt(server, 1, state="superseded")
    names = ("node-0", "node-1")
    add_attempt(server, 2, names, resume_checkpoint_id="c", resume_step=250, first_step=251, first_step_s=1.0)
    record(server, 251, attempt_no=2, start_bias=7, bias=spread * np.float32(begins / 0.2))
    with server.store.read() as session:
        judged = server.rules.judge(session, server.clock.now())
    assert ("expert-bias-lost" in {finding.rule for finding in judged.findings}) == lost


def test_a_trainer_that_tells_no_step_time_has_no_tax_and_breaks_nothing(server: Server) -> None:
    start_run(server)
    for step in range(201, 281):
        record(server, step, seconds=float("nan"))
    found = skewed(server)
    assert found["tax"] is None and "step time does not follow it" in str(found["verdict"])


def test_the_radius_is_of_the_attempt_s_own_steps_before_the_fault(server: Server) -> None:
    start_run(server)
    for step in range(1, 81):
        record(server, step)
    hit = fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1)
    at_s = server.clock.now() - 300 + 40
    server.send(replace(hit, onset_s=at_s, last_clean_s=at_s - 1))
    add_attempt(server, 2, ("node-0", "node-1"), state="superseded")
    for step in range(20, 300):
        record(server, step, attempt_no=2)
    found = radius(server)
    assert found["steps"] == [1, 41], "later steps, and another attempt's of the same numbers, are not these"


def test_records_that_cannot_be_judged_leave_every_other_rule_at_work(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(server)
    record(server, 250)

    def broken(*_: object) -> None:
        raise ValueError("no router has this")

    monkeypatch.setattr(expert_windows, "of_attempt", broken)
    server.send(fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1))
    server.check()
    assert [one.rule for one in server.incidents()] == ["hbm-uncorrectable"]


def test_the_summary_of_a_run_tells_of_its_ranks(server: Server) -> None:
    start_run(server)
    for step in range(201, 281):
        record(server, step)
    with server.store.read() as session:
        live = Live(server.store, server.clock)
        found = views_experts.summary(session, live, "run-1", now=server.clock.now())
    assert found is not None and found["parallel"]["rank"] == 1 and "is hot" in found["parallel"]["sentence"]
    assert json.dumps(found, allow_nan=False)


def test_a_rank_that_turns_sick_is_told_though_no_step_comes_any_more(server: Server) -> None:
    """The loads are kept while the run stands still; the health of its GPUs is not."""
    start_run(server)
    for step in range(201, 281):
        record(server, step)
    live = Live(server.store, server.clock)

    def told() -> dict[str, object]:
        with server.store.read() as session:
            found = views_experts.summary(session, live, "run-1", now=server.clock.now())
        assert found is not None
        return dict(found["parallel"])

    well = told()
    ill = fault(server, "node-1", run_id="run-1", attempt_no=1, rank=1)
    server.send(ill)
    sick = told()
    assert well["sick"] == {} and list(dict(sick["sick"])) == ["1"] and "Rank 1 is sick" in str(sick["sentence"])
    assert {name: sick[name] for name in ("skews", "tax", "rank")} == {
        name: well[name] for name in ("skews", "tax", "rank")
    }
    server.send(replace(ill, state="clear", observed_s=ill.observed_s + 1))
    assert told() == well


def test_the_cost_of_a_step_of_the_past_is_read_from_its_own_steps(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(server)
    for step in range(201, 281):
        record(server, step)
    read, asked = steps.read, []

    def watched(session: Session, run_id: str, *, first: int = 0, last: int = 2**62) -> list[steps.StepRecords]:
        asked.append((first, last))
        return read(session, run_id, first=first, last=last)

    monkeypatch.setattr(steps, "read", watched)
    with server.store.read() as session:
        live = Live(server.store, server.clock)
        found = views_experts.summary(session, live, "run-1", now=server.clock.now(), step=270)
    assert found is not None and found["parallel"]["tax"] is not None and asked == [(207, 270)]


def test_a_replayed_step_has_its_own_ranks_controller_and_health(server: Server) -> None:
    """Up to step 264 experts 4 and 5 are full and a GPU of their rank is sick; then they are even and it is well."""
    start_run(server)
    even = np.full((4, 8), 1024, np.uint32)
    for step in range(201, 265):
        record(server, step, bias=np.full((4, 8), -0.01 * step, np.float32))
    for step in range(265, 329):
        record(server, step, counts=even, bias=np.full((4, 8), 0.2, np.float32))
    now = server.clock.now()
    slow = fault(server, "node-1", rule="thermal-throttle", sentence="gpu3 of node-1 throttles", action="alert")
    slow = replace(slow, run_id="run-1", attempt_no=1, rank=1, onset_s=now - 300 + 250)
    server.send(slow)
    server.send(replace(slow, state="clear", observed_s=slow.observed_s + 1))
    live = Live(server.store, server.clock)
    with server.store.read() as session:
        newest = views_experts.summary(session, live, "run-1", now=now)
        then = views_experts.summary(session, live, "run-1", now=now, step=264)
        earlier = views_experts.summary(session, live, "run-1", now=now, step=240)
        again = views_experts.summary(session, live, "run-1", now=now)
        assert views_experts.summary(session, live, "run-1", now=now, step=9999) is None
    assert newest is not None and then is not None and earlier is not None
    assert newest == again, "what a replay asks for does not stand in the newest step's place"
    assert (newest["step"], newest["asked"], then["step"], then["asked"]) == (328, None, 264, 264)
    assert newest["parallel"]["sentence"] == "The ranks are even." and newest["parallel"]["level"] == "ok"
    assert "is hot" in then["parallel"]["sentence"] and "gpu3 of node-1 throttles" in then["parallel"]["sentence"]
    assert earlier["parallel"]["sick"] == {}, "it was well before its onset"
    assert then["controller"][0]["drift"] == pytest.approx(0.01, rel=1e-3) and newest["controller"][0]["drift"] == 0.0
    assert then["sentence"] != newest["sentence"] and not then["stale"]
