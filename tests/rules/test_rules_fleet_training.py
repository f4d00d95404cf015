"""Blind is not broken, lost with its agent is not stale, and a hang is judged by its phase's own patience."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controlplane.rules import book as rule_book
from controlplane.rules.findings import Judgement, Subject
from controlplane.rules.fleet import NodeSeen, no_telemetry
from controlplane.rules.training import RankSeen, StepSeen, hang, loss_not_finite, moving, stalled_by_blind_nodes
from jobs.contract import Heartbeat

BOOK = rule_book.load()
NOW = 2_000_000.0
LONG_AGO = NOW - 1e6


def node(name: str, silent_s: float, state: str = "healthy") -> NodeSeen:
    return NodeSeen(name, NOW - silent_s, state)


def blind(*nodes: NodeSeen, since_s: float = LONG_AGO, stalled: dict[str, str] | None = None) -> Judgement:
    return no_telemetry(nodes, stalled or {}, BOOK, now=NOW, watching_since_s=since_s)


def test_fifteen_seconds_of_silence_alert_and_no_more() -> None:
    judged = blind(node("a", 0.2), node("b", 15.4))
    (finding,) = judged.findings
    assert (finding.rule, finding.node, finding.entity) == ("no-telemetry", "b", "node")
    assert (finding.severity, finding.action) == ("warning", "alert")
    assert finding.onset_s == NOW - 0.4 and finding.last_clean_s == NOW - 15.4
    assert blind(node("a", 0.5), node("b", 14.9)) == Judgement()


def test_evidence_that_does_not_travel_through_the_agent_makes_it_a_restart() -> None:
    judged = blind(node("a", 0.5), node("b", 70), stalled={"b": "rank 0 on a has waited for 65 s"})
    (finding,) = judged.findings
    assert (finding.severity, finding.action) == ("critical", "restart")
    assert "rank 0 on a has waited for 65 s" in finding.sentence


def test_when_every_node_is_silent_the_way_is_to_blame_not_the_nodes() -> None:
    judged = blind(node("a", 16), node("b", 20), stalled={"b": "rank 0 waits"})
    (finding,) = judged.findings
    assert (finding.rule, finding.entity, finding.node, finding.action) == ("no-telemetry-fleet", "fleet", "", "alert")
    assert finding.onset_s == NOW - 1
    assert judged.unknown == {Subject("no-telemetry", "a", "node"), Subject("no-telemetry", "b", "node")}


def test_a_node_is_not_blamed_before_another_was_heard_since() -> None:
    judged = blind(node("a", 14.8), node("b", 15.2))
    assert judged.findings == ()
    assert judged.unknown == {Subject("no-telemetry", "b", "node")}, "neither found nor clear"


def test_a_fleet_of_one_node_has_no_other_to_compare_with() -> None:
    assert [finding.node for finding in blind(node("a", 16)).findings] == ["a"]


def test_a_server_that_just_started_accuses_nobody_of_its_own_absence() -> None:
    judged = blind(node("a", 600), node("b", 600), since_s=NOW - 10)
    assert judged.findings == ()
    assert {subject.where for subject in judged.unknown} == {"a", "b"}, "and clears nobody either"
    assert [finding.node for finding in blind(node("a", 1), node("b", 600), since_s=NOW - 17).findings] == ["b"]


@pytest.mark.parametrize("state", ["drained", "remediating", "retired"])
def test_nodes_out_of_service_may_be_silent(state: str) -> None:
    assert blind(node("a", 1), node("b", 9999, state)) == Judgement()
    assert blind() == Judgement()


def rank(number: int, silent_s: float, behind_s: float = 0.5, **beat: object) -> RankSeen:
    """A rank that had been silent so long when its node's word ended, `behind_s` before now."""
    made = Heartbeat(
        run_id="run-1",
        attempt_no=1,
        epoch=1,
        rank=number,
        world=2,
        node=f"node-{number}",
        pid=1,
        phase="train",
        step=40,
        first_step=1,
        last_step=40,
        resumed_from=None,
        at_s=NOW - silent_s,
        phase_since_s=NOW - 500,
        step_seconds_median=0.5,
    )
    made = replace(made, **beat)  # type: ignore[arg-type]  # a test's shorthand
    return RankSeen("run-1", "zaya-toy", 1, made, silent_s, made.node, NOW - behind_s)


def hung(*ranks: RankSeen, since_s: float = LONG_AGO) -> Judgement:
    return hang(ranks, BOOK, now=NOW, watching_since_s=since_s)


def test_a_run_whose_ranks_all_wait_is_one_finding_that_blames_nobody() -> None:
    (finding,) = hung(rank(0, 61), rank(1, 62)).findings
    assert (finding.entity, finding.run_id, finding.node, finding.rank) == ("run", "run-1", "", -1)
    assert (finding.severity, finding.action, finding.threshold) == ("critical", "restart", 60)
    assert finding.onset_s == NOW - 2.5 and finding.last_clean_s == NOW - 62.5
    assert finding.evidence["ranks"] == [0, 1]
    assert hung(rank(0, 59), rank(1, 59)) == Judgement()


def test_the_rank_that_stayed_behind_is_blamed_with_its_node() -> None:
    (finding,) = hung(rank(0, 61), rank(1, 62, step=39)).findings
    assert (finding.node, finding.rank) == ("node-1", 1)


@pytest.mark.parametrize(
    ("beat", "limit"),
    [
        ({"phase": "compile", "first_step": None, "step": None}, 1800),
        ({"phase": "checkpoint"}, 600),
        ({"phase": "train", "first_step": None, "step": None}, 600),
        ({"step_seconds_median": 30.0}, 150),
    ],
)
def test_each_phase_has_its_own_patience(beat: dict[str, object], limit: float) -> None:
    assert hung(rank(0, limit - 1, **beat), rank(1, 1)) == Judgement()
    assert [finding.threshold for finding in hung(rank(0, limit + 1, **beat), rank(1, 1)).findings] == [limit]


def test_a_slow_disk_is_given_the_time_it_took_before() -> None:
    slow = replace(rank(0, 700, phase="checkpoint"), longest_checkpoint_s=300.0)
    assert hung(slow) == Judgement()


def test_a_run_that_steps_elsewhere_shows_that_a_silent_nodes_trainer_lives() -> None:
    silent = rank(1, 2, 30.0)
    assert moving([rank(0, 4), silent], now=NOW) == {"node-1"}
    assert moving([rank(0, 11), silent], now=NOW) == frozenset(), "it has waited for too long itself"
    assert moving([rank(0, 40, step_seconds_median=30.0), silent], now=NOW) == {"node-1"}, "its steps are long"
    assert moving([rank(0, 4, phase="checkpoint"), silent], now=NOW) == frozenset()
    assert moving([silent], now=NOW) == frozenset()


def test_a_heartbeat_lost_with_its_agent_is_unknown_and_never_stale() -> None:
    judged = hung(rank(0, 3), rank(1, 2, 300.0))
    assert judged == Judgement(unknown=frozenset({Subject("hang", "run-1", "run")}))


def test_a_node_that_tells_old_things_first_is_unknown_until_it_has_caught_up() -> None:
    for behind_s in (120.0, 60.0, 15.5):
        judged = hung(rank(0, 61, behind_s), rank(1, 61, behind_s))
        assert judged == Judgement(unknown=frozenset({Subject("hang", "run-1", "run")}))
    assert hung(rank(0, 4, 14.0), rank(1, 2, 14.0)) == Judgement()
    assert hung(rank(0, 61, 14.0), rank(1, 2, 14.0)).findings


def test_a_rank_that_waits_for_a_blind_node_is_evidence_against_that_node() -> None:
    ranks = [rank(0, 65), rank(1, 2, 70.0)]
    assert hung(*ranks).findings == ()
    evidence = stalled_by_blind_nodes(ranks, BOOK, now=NOW, watching_since_s=LONG_AGO)
    assert evidence == {"node-1": "rank 0 of zaya-toy on node-0 has waited in a step for 65 s"}
    fresh = [rank(0, 5), rank(1, 2, 70.0)]
    assert stalled_by_blind_nodes(fresh, BOOK, now=NOW, watching_since_s=LONG_AGO) == {}
    seen = [rank(0, 65), rank(1, 65)]
    assert stalled_by_blind_nodes(seen, BOOK, now=NOW, watching_since_s=LONG_AGO) == {}


def test_patience_starts_anew_when_the_server_starts_to_look() -> None:
    judged = hung(rank(0, 300), rank(1, 300), since_s=NOW - 30)
    assert judged == Judgement(unknown=frozenset({Subject("hang", "run-1", "run")})), "an older verdict stands"
    assert hung(rank(0, 300), rank(1, 300), since_s=NOW - 61).findings


def test_a_rank_that_exits_is_not_hung() -> None:
    assert hung(rank(0, 9999, phase="exit")) == Judgement()


def step(number: int, loss: float = 2.0, norm: float = 1.0) -> StepSeen:
    return StepSeen(number, NOW - 100 + number, loss, norm)


def loss(*steps: StepSeen) -> Judgement:
    return loss_not_finite("run-1", "zaya-toy", 1, steps, BOOK)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_found_at_its_step(value: float) -> None:
    (finding,) = loss(step(1), step(2), step(3, value), step(4, value)).findings
    assert finding.evidence["step"] == 3 and finding.value == 3.0
    assert (finding.onset_s, finding.last_clean_s) == (NOW - 97, NOW - 98)
    assert finding.action == "alert", "no node is to blame"


def test_one_skipped_step_of_a_scaled_loss_is_no_finding() -> None:
    assert loss(step(1), step(2, norm=math.inf), step(3)) == Judgement()
    (finding,) = loss(step(1), step(2, norm=math.inf), step(3, norm=math.nan)).findings
    assert "the gradient norm of step 2" in finding.sentence


def test_no_steps_are_unknown() -> None:
    assert loss() == Judgement(unknown=frozenset({Subject("loss-not-finite", "run-1", "run")}))
    assert loss(step(1), step(2)) == Judgement()
