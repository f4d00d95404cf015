"""What follows from a view of a lifecycle: a legal move, the same each time, whatever the view; gates that refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.runs.lifecycle import decide
from controlplane.runs.lifecycle_again import move, refuses
from controlplane.runs.lifecycle_gates import Found, judge
from controlplane.runs.lifecycle_states import (
    AT_WORK,
    LIFECYCLE,
    STAGE,
    STAGE_ENDED,
    check_lifecycle,
    check_stage,
)
from controlplane.runs.lifecycle_view import (
    Again,
    Begin,
    Keep,
    Kept,
    MoveStage,
    Pass,
    PlanView,
    Rest,
    SetLifecycle,
    StageView,
    StartRun,
    Tried,
    Word,
)
from controlplane.runs.states import IllegalTransition
from controlplane.store.base import LIFECYCLE_STATUSES, RUN_STATUSES, STAGE_HOLDS, STAGE_STATES
from jobs.lifecycle import parse_lifecycle
from tests.runs.conducting import JOB, gate, plan

PLAN = parse_lifecycle(
    plan(
        {"name": "a", "prepare": [{"name": "text", "job": JOB}], "gate": gate("loss < 2.6", approval=True)},
        {"name": "b", "budget": {"gpuHours": 2}, "promote": "best"},
        {"name": "c", "after": ["a"], "role": "release"},
    )
)
HASH, OTHER = "ab" * 32, "cd" * 32


def view(desired: str = "run", status: str = "active", **stages: dict[str, Any]) -> PlanView:
    """The plan's stages, each with what is named of it."""
    found = tuple(StageView(plan=one, **{"state": "waiting", **stages.get(one.name, {})}) for one in PLAN.spec.stages)
    return PlanView("l", "walk", desired, status, found, 0.0)


def tried(role: str = "train", status: str = "succeeded", **more: Any) -> Tried:
    return Tried(id=f"{role}-run", role=role, item=more.pop("item", ""), round=1, status=status, desired="run", **more)


KEPTS = st.one_of(st.none(), st.builds(Kept, st.sampled_from([HASH, OTHER]), st.just("/p"), tainted=st.booleans()))
RUNS = st.builds(
    Tried,
    id=st.sampled_from(["r1", "r2"]),
    role=st.sampled_from(["prepare", "train", "evaluate", "release"]),
    item=st.sampled_from(["", "text"]),
    round=st.integers(1, 2),
    status=st.sampled_from(RUN_STATUSES),
    desired=st.sampled_from(["run", "pause", "cancel"]),
    busy=st.booleans(),
    end_class=st.sampled_from(["", "error", "configuration"]),
    mode=st.sampled_from(["act", "advise"]),
    init_hash=st.sampled_from(["", HASH, OTHER]),
    wished=st.booleans(),
    unread=st.booleans(),
    settled=st.booleans(),
    final=KEPTS,
    found=st.one_of(st.none(), st.builds(Found, st.just({"loss": 2.0}), st.sampled_from([HASH, OTHER]))),
)
WORDS = st.builds(
    Word, st.just("w"), st.sampled_from([HASH, OTHER]), st.sampled_from(["approved", "refused"]), st.just("bob")
)
WISHES = st.one_of(st.none(), st.builds(Again, st.just("bob"), st.booleans(), st.booleans()))


@st.composite
def stage_views(draw: st.DrawFn, name: str) -> StageView:
    state = draw(st.sampled_from(STAGE_STATES))
    return StageView(
        plan=PLAN.stage(name),
        state=state,
        hold=draw(st.sampled_from(STAGE_HOLDS[1:])) if state == "held" else "",
        round=draw(st.integers(1, 2)),
        retries=draw(st.integers(0, 2)),
        used_gpu_h=draw(st.sampled_from([0.0, 3.0])),
        init=draw(KEPTS),
        candidate=draw(KEPTS),
        runs=tuple(draw(st.lists(RUNS, max_size=3))),
        words=tuple(draw(st.lists(WORDS, max_size=2))),
        wish=draw(WISHES) if state == "held" else None,
    )


VIEWS = st.builds(
    PlanView,
    id=st.just("l"),
    name=st.just("walk"),
    desired=st.sampled_from(["run", "pause", "cancel"]),
    status=st.sampled_from(LIFECYCLE_STATUSES),
    stages=st.tuples(*(stage_views(name) for name in PLAN.stages)),
    now=st.just(0.0),
)


@given(VIEWS)
def test_every_move_is_legal_and_the_same_each_time(seen: PlanView) -> None:
    move = decide(seen)
    assert decide(seen) == move
    if isinstance(move, SetLifecycle):
        check_lifecycle(seen.status, move.status)
    if isinstance(move, Begin | StartRun | MoveStage | Pass):
        stage = seen.stage(move.stage)
        after = "passed" if isinstance(move, Pass) else move.state
        assert after == stage.state or after in STAGE[stage.state], f"{stage.state} → {after}"
        assert move.sentence.endswith(".")
        if isinstance(move, MoveStage):
            assert (move.hold != "") == (move.state == "held")


@given(VIEWS)
def test_nothing_begins_unless_it_is_wanted_and_nothing_tainted_is_built_on(seen: PlanView) -> None:
    move = decide(seen)
    if isinstance(move, StartRun | Begin):
        assert (seen.desired, seen.status) != ("cancel", seen.status) and seen.desired == "run"
        assert move.init is None or not move.init.tainted
    if isinstance(move, StartRun):
        stage = seen.stage(move.stage)
        live = [one for one in stage.runs if not one.ended and one.id != move.closes]
        alike = [one for one in live if (one.role, one.item, one.round) == (move.role, move.item, move.round)]
        assert not [one for one in alike if one.init_hash == (move.init.hash if move.init else "")], "two at once"
    if isinstance(move, Pass):
        assert move.candidate is None or not move.candidate.tainted


@given(VIEWS)
def test_no_gate_is_passed_without_its_metrics_or_a_persons_word(seen: PlanView) -> None:
    move = decide(seen)
    if isinstance(move, Pass) and move.stage == "a":
        word = next((one for one in seen.stage("a").words if one.id == move.word), None)
        assert move.word is not None and word is not None
        assert move.candidate is not None and word.verdict == "approved"
        assert any(one.checkpoint_hash == move.candidate.hash for one in seen.stage("a").words)


@given(stage_views("a"), st.booleans())
def test_no_retry_trains_before_every_preparation_is_done(seen: StageView, fresh: bool) -> None:
    again = move(replace(seen, state="held"), Again("bob", fresh=fresh))
    text = seen.newest("prepare", "text")
    if isinstance(again, StartRun):
        assert (again.role == "prepare") == (text is None or text.status != "succeeded")


def test_a_stage_begins_when_those_before_it_have_passed() -> None:
    assert decide(view()) == Begin("a", "preparing", None, "Stage a begins.")
    done = Kept(HASH, "/p", 10)
    move = decide(view(a={"state": "passed", "candidate": done}))
    assert isinstance(move, Begin) and (move.stage, move.state, move.init) == ("b", "training", done)
    assert decide(view("pause", a={"state": "passed", "candidate": done})) == SetLifecycle(
        "paused", "walk is paused by a person."
    )


def test_what_an_ended_run_left_is_read_before_it_is_judged() -> None:
    ready = {"state": "training", "runs": (tried(settled=False, found=Found({}, "")),)}
    assert decide(view(a=ready)) == Keep("train-run")
    assert decide(view(a={"state": "training", "runs": (tried(),)})) == Keep("train-run")


def test_a_stage_whose_upstream_failed_is_cancelled() -> None:
    move = decide(view(a={"state": "failed"}))
    assert isinstance(move, MoveStage) and (move.stage, move.state) == ("b", "cancelled")
    assert "stage a, for which it waited, is failed" in move.sentence


def test_a_run_that_cannot_be_looked_into_yet_is_waited_for() -> None:
    for status in ("queued", "active", "paused"):
        assert decide(view(a={"state": "training", "runs": (tried(status=status),)})) == Rest()


@pytest.mark.parametrize(
    ("stage", "wish", "said"),
    [
        ({"state": "training"}, Again("bob"), "only a held stage can be tried again"),
        (
            {"state": "held", "init": Kept(HASH, "/p", tainted=True)},
            Again("bob"),
            "is tainted: clone the lifecycle from",
        ),
        ({"state": "held"}, Again("bob", fresh=True, evaluation=True), "ask for one of the two"),
        ({"state": "held"}, Again("bob", evaluation=True), "has no evaluation to repeat"),
        (
            {"state": "held", "candidate": Kept(HASH, "/p", tainted=True), "runs": (tried("evaluate"),)},
            Again("bob", evaluation=True),
            "is tainted: it needs no evaluation",
        ),
    ],
)
def test_a_retry_that_cannot_be_is_refused_in_words(stage: dict[str, Any], wish: Again, said: str) -> None:
    assert said in refuses(view(a=stage).stage("a"), wish)


# --- gates ---

GOOD = Found({"loss": 2.5, "pass@1": 0.5, "constant_baseline": 0.3}, HASH)


@pytest.mark.parametrize(
    ("required", "found", "ok", "said"),
    [
        (["loss < 2.6"], GOOD, True, "Its requirement holds: loss is 2.5, loss < 2.6 holds."),
        (["loss < 2.5"], GOOD, False, "The gate refuses: loss is 2.5, loss < 2.5 does not hold."),
        (["loss <= 2.5", "pass@1 > constant_baseline"], GOOD, True, "All 2 requirements hold."),
        (["pass@1 >= 0.5", "loss == 2.5"], GOOD, True, "All 2 requirements hold."),
        (["constant_baseline > pass@1"], GOOD, False, "constant_baseline is 0.3 (pass@1 0.5)"),
        (["maj > 0.1"], GOOD, False, "maj > 0.1 cannot be judged: the result has no maj"),
        (["pass@1 > rsa"], GOOD, False, "the result has no rsa"),
        (
            ["loss < 9"],
            Found({"loss": 1.0}, OTHER),
            False,
            "the result is of checkpoint cdcdcdcdcdcd, not of abababababab",
        ),
        (["loss < 9"], Found({"loss": 1.0}, ""), False, "the result is of checkpoint none, not of abababababab"),
        (["loss < 9"], Found({}, "", "it left no result"), False, "The gate refuses: it left no result."),
        ([], Found({}, ""), True, "Nothing is required of metrics."),
    ],
)
def test_a_gate_passes_only_what_was_measured_on_the_candidate(
    required: list[str], found: Found, ok: bool, said: str
) -> None:
    verdict = judge(required, found, HASH)
    assert verdict.ok is ok and said in verdict.sentence
    assert len(verdict.requirements) == len(required)
    assert all(one.ok for one in verdict.requirements) is ok


# --- tables ---


def test_the_tables_name_the_states_of_the_store() -> None:
    assert tuple(STAGE) == STAGE_STATES and tuple(LIFECYCLE) == LIFECYCLE_STATUSES
    assert {state for state, after in STAGE.items() if not after} == set(STAGE_ENDED)
    assert set(AT_WORK.values()) < set(STAGE)
    for check, before, after in ((check_stage, "passed", "held"), (check_lifecycle, "failed", "active")):
        with pytest.raises(IllegalTransition, match="terminal"):
            check(before, after)
