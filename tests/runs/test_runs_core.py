"""The controller's pure parts: transition tables, placement, checkpoints, budgets, the GPU-hour ledger."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.runs import states
from controlplane.runs.checkpoints import Saved, lineage, refuses, resumable
from controlplane.runs.goodput import Span, Spent, ledger
from controlplane.runs.ledger import (
    FREE,
    INFRASTRUCTURE,
    INFRASTRUCTURE_PER_HOUR,
    LONGEST_WAIT_S,
    QUIET_RESET_S,
    Failure,
    budget,
)
from controlplane.runs.plan import Candidate, fit, place
from controlplane.runs.states import ENDED, LIVE, RUN_ENDED, IllegalTransition
from controlplane.store import base

# --- states ---


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (states.ATTEMPT, base.ATTEMPT_STATES),
        (states.RUN, base.RUN_STATUSES),
        (states.DECISION, base.DECISION_STATES),
    ],
)
def test_each_table_knows_exactly_the_words_of_the_database(
    table: dict[str, frozenset[str]], words: tuple[str, ...]
) -> None:
    assert set(table) == set(words)
    assert set().union(*table.values()) <= set(words)


@pytest.mark.parametrize(
    ("table", "check"),
    [
        (states.ATTEMPT, states.check_attempt),
        (states.RUN, states.check_run),
        (states.DECISION, states.check_decision),
    ],
)
def test_every_pair_of_states_is_let_through_or_refused_as_the_table_says(table, check) -> None:  # type: ignore[no-untyped-def]  # a table
    for before, after in itertools.product(table, table):
        if after in table[before]:
            check(before, after)
        else:
            with pytest.raises(IllegalTransition, match=f"{before} cannot become {after}"):
                check(before, after)


def test_terminal_is_terminal_and_every_live_state_can_end() -> None:
    for state in ENDED:
        assert states.ATTEMPT[state] == frozenset()
    for state in RUN_ENDED:
        assert states.RUN[state] == frozenset()
    for state in LIVE:
        assert states.ATTEMPT[state] & set(ENDED), state
        assert state in ("draining", "stopping") or "stopping" in states.ATTEMPT[state], f"{state} cannot be stopped"
    for state in set(states.RUN) - set(RUN_ENDED):
        assert "cancelled" in states.RUN[state], f"{state} cannot be cancelled"


def test_no_live_attempt_goes_back_to_before_it_was_submitted() -> None:
    for before, after in states.ATTEMPT.items():
        assert "planned" not in after
        assert before == "planned" or "submitting" not in after


def test_a_table_is_rendered_with_all_its_rows() -> None:
    text = states.as_markdown(states.DECISION)
    assert text.splitlines()[2] == "| proposed | approved, executing, superseded, expired |"
    assert "| verified | – (terminal) |" in text and len(text.splitlines()) == 2 + len(states.DECISION)


# --- placement ---


def node(name: str, **changes: object) -> Candidate:
    values = {"gpus": 8, "free": True, "cordoned": False, "state": "healthy", "silent_s": 0.0, **changes}
    return Candidate(name, **values)  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (node("n"), ""),
        (node("n", state="probation"), ""),
        (node("x"), "excluded by a decision"),
        (node("n", cordoned=True), "cordoned"),
        (node("n", state="quarantined"), "quarantined"),
        (node("n", state="suspect"), "suspect"),
        (node("n", silent_s=15.1), "silent for 15 s"),
        (node("n", gpus=7), "has 7 GPUs, 8 are asked for"),
        (node("n", reachable=False), "out of the backend's reach"),
        (node("n", free=False), "in use by another run"),
        (node("n", fault="gpu-lost"), "has a fault (gpu-lost)"),
    ],
)
def test_a_node_is_used_or_refused_with_a_reason(candidate: Candidate, reason: str) -> None:
    found = fit(candidate, 8, {"x"})
    assert (found.ok, found.reason) == (not reason, reason)


def test_warm_nodes_come_first_then_names() -> None:
    names = [node(name) for name in ("a", "b", "c", "d")]
    assert place(names, nodes=2, gpus=8, excluded=()).nodes == ("a", "b")
    assert place(names, nodes=2, gpus=8, excluded=("c",), before=("c", "d")).nodes == ("a", "d")


def test_what_is_lacking_is_said() -> None:
    assert place([], nodes=1, gpus=8, excluded=()).missing == "1 more node of 1 needed: no other node is known"
    found = place([node("a", free=False), node("b")], nodes=3, gpus=8, excluded=())
    assert found.nodes == () and found.missing == "2 more nodes of 3 needed: a in use by another run"


NODES = st.lists(
    st.builds(
        node,
        st.sampled_from([f"n{index}" for index in range(8)]),
        gpus=st.sampled_from([0, 4, 8]),
        free=st.booleans(),
        cordoned=st.booleans(),
        state=st.sampled_from(base.NODE_STATES),
        silent_s=st.sampled_from([0.0, 14.0, 60.0]),
        fault=st.sampled_from(["", "", "hbm"]),
    ),
    unique_by=lambda one: one.name,
    max_size=8,
)


@given(NODES, st.integers(1, 4), st.sets(st.sampled_from([f"n{index}" for index in range(8)])))
def test_placement_uses_only_good_nodes_and_all_or_none(found: list[Candidate], wanted: int, out: set[str]) -> None:
    by_name = {one.name: one for one in found}
    placed = place(found, nodes=wanted, gpus=8, excluded=out)
    assert len(placed.nodes) in (0, wanted) and len(set(placed.nodes)) == len(placed.nodes)
    assert bool(placed.nodes) != bool(placed.missing)
    for name in placed.nodes:
        one = by_name[name]
        assert name not in out and one.free and not one.cordoned and one.gpus >= 8 and not one.fault
        assert one.state in ("healthy", "probation") and one.silent_s <= 15
    assert placed == place(list(reversed(found)), nodes=wanted, gpus=8, excluded=out) or not placed.nodes


# --- checkpoints ---


def saved(step: int, attempt: int = 1, state: str = "validated", at: float | None = 0.0) -> Saved:
    return Saved(f"{attempt}/{step}", attempt, attempt, step, f"/{attempt}/{step}", state, at)


SAVED = st.lists(
    st.builds(
        saved,
        st.integers(0, 50),
        st.integers(1, 4),
        st.sampled_from(base.CHECKPOINT_STATES),
        st.none() | st.floats(0, 100),
    )
)


@given(SAVED, st.none() | st.integers(0, 60))
def test_what_is_resumed_from_is_verified_and_the_newest(found: list[Saved], below: int | None) -> None:
    best = resumable(found, below_step=below)
    good = [one for one in found if one.state == "validated" and (below is None or one.step < below)]
    assert (best is None) == (not good)
    if best is not None:
        assert best.state == "validated" and best.step == max(one.step for one in good)
        assert best.attempt_no == max(one.attempt_no for one in good if one.step == best.step)


def test_what_a_restart_gave_up_is_not_come_back_to() -> None:
    found = [saved(10), saved(20), saved(15, 2), saved(12, 3)]
    assert resumable(lineage(found, [(1, 0)])) == saved(20)
    assert resumable(lineage(found, [(1, 0), (2, 10)])) == saved(15, 2)
    # attempt 3 went back to 10: 20 of the first and 15 of the second lie on paths that were left
    assert lineage(found, [(1, 0), (2, 10), (3, 10)]) == [saved(10), saved(12, 3)]
    assert lineage(found, [(1, 0), (2, 0)]) == [saved(15, 2)], "an attempt that began afresh gave up everything"
    assert lineage(found, []) == []


def test_a_manifest_counts_under_its_attempts_own_epoch_only() -> None:
    assert refuses(3, 3) == ""
    assert refuses(2, 3) == "it was written under epoch 2, its attempt holds 3"
    assert "no attempt" in refuses(2, None)


# --- budgets ---


def failure(
    no: int, at: float, mark: str = "boom", step: int | None = 7, kind: str = "error", node: str = ""
) -> Failure:
    return Failure(no, at, kind, mark, node, step)


def same(count: int, **values: object) -> list[Failure]:
    return [failure(no, no * 10.0, **values) for no in range(count)]  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize(
    ("failures", "word"),
    [
        ([], ""),
        (same(2), ""),
        (same(3), "3 times without progress past step 7"),
        ([failure(0, 0, step=5), failure(1, 1, step=6), failure(2, 2, step=7)], ""),
        ([failure(0, 0, "a"), failure(1, 1, "b"), failure(2, 2, "a")], ""),
        (same(8, step=None), ""),
        (same(9, step=None), "budget of 8 restarts"),
        (same(20, kind="saved"), ""),
        (same(21, kind="saved"), "21 attempts ended within an hour"),
        ([failure(no, no * 300, kind="saved") for no in range(40)], ""),
        ([*same(9, step=None), failure(9, 99, "lost", kind="killed")], ""),
        ([failure(no, no, f"f{no}", kind="hardware") for no in range(6)], ""),
        ([failure(no, no, f"f{no}", kind="hardware") for no in range(7)], "7 restarts for the machines' sake"),
        ([failure(no, no * 1200, f"f{no}", kind="hardware") for no in range(20)], ""),
        ([failure(no, no * (QUIET_RESET_S + 1)) for no in range(9)], ""),
    ],
)
def test_the_ledger_asks_for_a_person(failures: list[Failure], word: str) -> None:
    found = budget(failures, restarts=8, now=failures[-1].at_s if failures else 0.0)
    assert (word in found.exhausted) if word else found.exhausted == ""


def test_six_quiet_hours_begin_the_ledger_anew() -> None:
    assert budget(same(3), restarts=8, now=30).exhausted
    assert budget(same(3), restarts=8, now=30 + QUIET_RESET_S).restarts_used == 0


def test_the_first_failure_is_answered_at_once_and_repetition_waits_longer() -> None:
    waits = [budget(same(count, step=None), restarts=99, now=count * 10.0).wait_s for count in range(1, 12)]
    assert waits[0] == 0.0 and 2.0 <= waits[1] <= 4.0 and waits[2] > waits[1] and waits[-1] <= LONGEST_WAIT_S


def test_who_saves_and_leaves_without_a_step_waits_longer_each_time() -> None:
    def wait(*steps: int | None) -> float:
        return budget(
            [failure(no, no, kind="saved", step=step) for no, step in enumerate(steps)], restarts=8, now=9
        ).wait_s

    assert wait(5) == wait(5, 6) == wait(5, 6, 7) == 0.0
    assert 2.0 <= wait(5, 5) <= 4.0 < wait(5, 5, 5) and wait(None, None) > 0.0


def test_a_node_is_suspect_once_the_same_root_struck_there_twice() -> None:
    def suspect(*found: tuple[str, str]) -> str:
        failures = [failure(no, no, mark, step=no, node=node) for no, (mark, node) in enumerate(found)]
        return budget(failures, restarts=8, now=9).suspect

    assert suspect(("nic", "a")) == suspect(("nic", "a"), ("nic", "b")) == suspect(("nic", "a"), ("oom", "a")) == ""
    assert suspect(("nic", ""), ("nic", "")) == ""
    assert suspect(("nic", "a"), ("nic", "b"), ("nic", "a")) == "a"


FAILURES = st.lists(
    st.builds(
        failure,
        st.integers(1, 99),
        st.floats(0, 1e5),
        st.sampled_from(["a", "b"]),
        st.none() | st.integers(0, 20),
        st.sampled_from([*FREE, *INFRASTRUCTURE, "error", "numerics"]),
        st.sampled_from(["", "n1", "n2"]),
    ),
    max_size=30,
)


@given(FAILURES, st.integers(0, 10), st.floats(0, 2e5))
def test_budgets_are_never_negative_and_never_lie(failures: list[Failure], restarts: int, now: float) -> None:
    found = budget(failures, restarts=restarts, now=now)
    numbers = [found.restarts_used, found.same_root, found.infrastructure, found.wait_s]
    assert all(value >= 0 for value in numbers) and found.wait_s <= LONGEST_WAIT_S
    assert found.restarts_used <= len([one for one in failures if one.failure_class not in FREE | INFRASTRUCTURE])
    newest = sorted(failures, key=lambda one: one.at_s)[-1] if failures else None  # of two at once, the later told
    kind = newest.failure_class if newest is not None else "saved"
    if found.restarts_used > restarts and kind not in FREE | INFRASTRUCTURE:
        assert found.exhausted
    if found.infrastructure > INFRASTRUCTURE_PER_HOUR and kind in INFRASTRUCTURE:
        assert found.exhausted
    assert not found.suspect or found.suspect in {one.entity for one in failures}
    assert found == budget(list(reversed(failures)), restarts=restarts, now=now) or len(
        {one.at_s for one in failures}
    ) < len(failures)
    assert all(isinstance(value, int | float | str) for value in found.as_dict().values())


# --- goodput ---


def test_nothing_placed_has_no_percentage() -> None:
    found = ledger([Spent((), 0.0, 0.0)], now=5.0)
    assert (found.wall_s, found.percent, found.unattributed_percent, found.lost) == (0.0, None, None, ())


def test_every_second_of_a_restart_has_a_cause() -> None:
    first = Spent(
        (Span("pending", 0, 2), Span("init", 2, 10), Span("training", 10, 60), Span("stopping", 60, 65)), 40, 8
    )
    second = Spent((Span("pending", 70, 72), Span("init", 72, 80), Span("training", 80, 200)), 60, 0)
    found = ledger([first, second], now=140.0)
    lost = {(one.cause, one.phase): one.seconds for one in found.lost}
    assert found.wall_s == 140 and found.productive_s == 100
    assert lost["restart", "queue, place"] == 4 and lost["restart", "load"] == 16
    assert lost["restart", "teardown"] == 5 and lost["restart", "decide"] == 5
    assert lost["redone", "steps again"] == 8
    assert lost["checkpoint", "checkpoint, between steps"] == 2
    assert found.percent == pytest.approx(100 * 100 / 140) and found.unattributed_percent == 0


PHASES = ("planned", "pending", "starting", "init", "training", "stopping")


@st.composite
def spent(draw: st.DrawFn) -> list[Spent]:
    at, found = 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        spans, training = [], 0.0
        for phase in PHASES:
            length = draw(st.floats(0, 100))
            spans.append(Span(phase, at, at + length))
            training += length if phase == "training" else 0.0
            at += length
        productive = training * draw(st.floats(0, 1))
        found.append(Spent(tuple(spans), productive, (training - productive) * draw(st.floats(0, 1))))
        at += draw(st.floats(0, 50))
    return found


@given(spent())
def test_productive_and_lost_seconds_make_up_the_wall(found: list[Spent]) -> None:
    end = found[-1].spans[-1].to_s
    made = ledger(found, now=end + 1)
    if made.wall_s < 1e-3:
        return
    assert all(loss.seconds > 0 for loss in made.lost)
    assert made.productive_s + sum(loss.seconds for loss in made.lost) == pytest.approx(made.wall_s, abs=1e-6)
    assert made.unattributed_percent == pytest.approx(0.0, abs=1e-6)
    assert made.percent is not None and 0 <= made.percent <= 100 + 1e-9
