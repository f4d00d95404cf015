"""A run under everything at once, in any order: faults, ends, wishes, blindness, time; what must hold always holds."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import (
    INVARIANT_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from controlplane.runs.states import ENDED, RUN_ENDED
from controlplane.services import incidents as incident_service
from controlplane.services import runs as service
from controlplane.services.runs import RunRefused
from controlplane.store import incidents, nodes
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Checkpoint
from tests.runs.history import wrongs
from tests.runs.piloting import Pilot

RESTARTS = 2


@dataclass
class Hit:
    """A data-corrupting fault as the world knows it: where, since when, and when a person called it mended."""

    node: str
    clean_s: float
    mended_s: float | None = None

    def strikes(self, attempt: Attempt) -> bool:
        """Whether the attempt was on the node before it was mended and after its last clean sample."""
        before = self.mended_s is None or attempt.created_s < self.mended_s
        return self.node in attempt.nodes and before and (attempt.ended_s is None or attempt.ended_s >= self.clean_s)


class Life(RuleBasedStateMachine):
    """One run on four nodes."""

    template = Path()
    restarts = RESTARTS

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        shutil.copy(self.template, self.folder / "store.db")
        self.store = Store(f"sqlite:///{self.folder / 'store.db'}", synchronous="OFF")
        self.pilot = Pilot(self.store, self.folder, node_count=8)
        self.pilot.strict = True
        self.ended: dict[tuple[str, int], tuple[str, float | None]] = {}
        self.status = ""
        self.run_id, self.mode = "", "act"
        self.saved_steps: set[tuple[int, int]] = set()
        self.hits: list[Hit] = []
        self.seen: set[int] = set()

    def teardown(self) -> None:
        """At its end the whole history is read: budgets, above all (tests/runs/history.py)."""
        found = wrongs(self.store)
        self.store.close()
        shutil.rmtree(self.folder)
        assert not found

    @initialize(mode=st.sampled_from(["act", "act", "act", "advise"]), level=st.sampled_from([2, 2, 1, 0]))
    def submit(self, mode: str, level: int) -> None:
        self.mode = mode
        self.run_id = self.pilot.submit(mode=mode, level=level, restarts=self.restarts)
        self.pilot.round()

    # --- the world ---

    def attempt(self):  # type: ignore[no-untyped-def]  # the newest one that the backend has
        return list(self.pilot.backend.attempts.values())[-1]

    def runs(self) -> bool:
        return bool(self.pilot.backend.attempts) and self.attempt().state in ("pending", "running")

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.pilot.round(seconds)
        self.nothing_spoilt_is_kept_for_use()

    @precondition(runs)
    @rule()
    def ranks_start(self) -> None:
        self.pilot.backend.run(self.attempt().plan.name)

    @precondition(runs)
    @rule(steps=st.integers(1, 5), silent=st.booleans())
    def ranks_train(self, steps: int, silent: bool) -> None:
        """From where they were told to; `silent`: from scratch, which they must not."""
        found = self.attempt()
        found.state = "running"
        number = found.plan.attempt_no
        resumed = found.plan.environment["TRIMTAB_RESUME_FROM"].rpartition("-")[2]
        first = 1 if silent or not resumed else int(resumed) + 1
        known = self.pilot.attempts(self.run_id)[number - 1]
        last = max(known.last_step or 0, first) + steps
        self.pilot.beat(self.run_id, known.first_step or first, last, no=number)

    @precondition(runs)
    @rule(at=st.sampled_from([0.0, -60.0]), good=st.booleans())
    def a_checkpoint_is_written(self, at: float, good: bool) -> None:
        number = self.attempt().plan.attempt_no
        step = self.pilot.attempts(self.run_id)[number - 1].last_step
        if step is None or (number, step) in self.saved_steps:
            return
        self.saved_steps.add((number, step))
        folder = self.pilot.save(self.run_id, step, no=number, at=at)
        if not good:
            (folder / "model.bin").write_bytes(b"")

    @precondition(runs)
    @rule(
        how=st.sampled_from(["killed", "error", "configuration", "numerics", "bad_node", "saved", "done", "finished"])
    )
    def the_attempt_ends(self, how: str) -> None:
        found = self.attempt()
        if how == "finished":
            self.pilot.beat(self.run_id, self.pilot.attempts(self.run_id)[-1].first_step or 1, 100)
        state = "succeeded" if how in ("done", "finished") else "failed"
        told = {0: {"class": how, "message": how, "fingerprint": how, "at_s": 1.0}} if how != "killed" else None
        self.pilot.backend.end(found.plan.name, state, told)  # type: ignore[arg-type]  # one of its words

    @precondition(runs)
    @rule(how=st.sampled_from(["error", "killed"]), times=st.sampled_from([3, 8]))
    def it_fails_time_and_again(self, how: str, times: int) -> None:
        """Each time a few steps further on, from a checkpoint: nothing but the budgets can end it."""
        for _ in range(times):
            if not self.runs():
                return
            self.ranks_start()
            self.ranks_train(2, False)
            self.pilot.round(1.1)
            if self.runs():
                self.a_checkpoint_is_written(0.0, True)
                self.pilot.round(1.1)
            if self.runs():
                self.the_attempt_ends(how)
            for _ in range(3):
                self.pilot.round(100.0)

    @precondition(runs)
    @rule()
    def processes_hang_on(self) -> None:
        self.attempt().stuck = True

    @rule()
    def processes_go(self) -> None:
        for one in self.pilot.backend.attempts.values():
            if one.stuck and one.stopped:
                one.stuck, one.state = False, "failed"

    @precondition(runs)
    @rule(index=st.integers(0, 3), corrupting=st.booleans(), late=st.sampled_from([0.0, 0.0, 3.0, 50.0]))
    def a_fault(self, index: int, corrupting: bool, late: float) -> None:
        """On a node of the newest attempt, of one before it, or on a free one; told `late` seconds after it began."""
        used = [name for one in reversed(self.pilot.backend.attempts.values()) for name in one.plan.nodes]
        node = list(dict.fromkeys([*used, *self.pilot.names]))[index]
        onset = self.pilot.clock.now() - 1 - late
        rule = "hbm-uncorrectable" if corrupting else "gpu-lost"
        self.pilot.hit(node, rule=rule, onset_s=onset, last_clean_s=onset - 1)
        if corrupting:
            self.hits.append(Hit(node, onset - 1))

    @rule(up=st.sampled_from([True, True, True, False]))
    def the_backend_answers_or_not(self, up: bool) -> None:
        self.pilot.backend.reachable = up

    @rule()
    def an_answer_will_be_lost(self) -> None:
        self.pilot.backend.lose_next_answer = True

    @rule()
    def the_server_restarts(self) -> None:
        self.pilot.lead()

    # --- people ---

    @rule(verb=st.sampled_from(["pause", "resume", "resume", "restart"]), older=st.booleans())
    def a_person_asks(self, verb: str, older: bool) -> None:
        wish = {"actor": "ada", "now": self.pilot.clock.now()}
        good = [one.id for one in self.pilot.checkpoints(self.run_id) if one.state == "validated"]
        if verb == "restart" and older and good:
            wish["checkpoint_id"] = good[0]
        try:
            getattr(service, verb)(self.store, self.run_id, **wish)
        except RunRefused:
            return

    @precondition(lambda self: self.pilot.clock.now() % 7 > 5)
    @rule()
    def a_person_cancels(self) -> None:
        if self.pilot.run(self.run_id).status not in RUN_ENDED:
            service.stop(self.store, self.run_id, actor="ada", now=self.pilot.clock.now())

    @rule(node=st.integers(0, 7))
    def a_person_returns_a_node(self, node: int) -> None:
        """What it had reported is over, and it takes ranks again."""
        now, name = self.pilot.clock.now(), f"node-{node}"
        with self.store.read() as session:
            open_ones = [one.number for one in incidents.listed(session) if one.node == name and one.state == "open"]
        for number in open_ones:
            incident_service.resolve(self.store, number, actor="ada", reason="mended", now=now)
        with self.store.write() as session:
            nodes.uncordon(session, name, reason="looked at", now=now)
        if open_ones:
            for hit in self.hits:
                if hit.node == name and hit.mended_s is None:
                    hit.mended_s = now

    # --- what always holds ---

    @invariant()
    def never_two_at_once(self) -> None:
        assert len(self.pilot.live(self.run_id)) <= 1
        alive = [one for one in self.pilot.backend.attempts.values() if one.state in ("pending", "running")]
        assert len(alive) <= 1
        names = self.pilot.submissions()
        assert len(names) == len(set(names))

    @invariant()
    def the_next_begins_only_when_the_old_one_is_fenced(self) -> None:
        found = list(self.pilot.backend.attempts.values())
        assert not any(one.stuck or one.state in ("pending", "running") for one in found[:-1])

    @invariant()
    def terminal_is_terminal(self) -> None:
        for one in self.pilot.attempts(self.run_id) if self.run_id else ():
            key = (one.run_id, one.no)
            if key in self.ended:
                assert (one.state, one.ended_s) == self.ended[key]
            elif one.state in ENDED:
                self.ended[key] = (one.state, one.ended_s)
        if self.run_id:
            if self.status in RUN_ENDED:
                assert self.pilot.run(self.run_id).status == self.status
            self.status = self.pilot.run(self.run_id).status

    @invariant()
    def every_decision_says_why(self) -> None:
        for one in self.pilot.decisions(self.run_id):
            assert one.evidence and one.reason and one.rule and one.policy_version
            if one.mode != "act":
                assert one.executed_s is None

    def spoilt(self, checkpoint: Checkpoint) -> bool:
        """Whether any state on the way to it was computed on a node inside a corrupting window, as far as is known."""
        attempt = self.pilot.attempts(self.run_id)[checkpoint.attempt_no - 1]
        if any(hit.strikes(attempt) and checkpoint.state_at_s >= hit.clean_s for hit in self.hits):
            return True
        known = {one.id: one for one in self.pilot.checkpoints(self.run_id)}
        return attempt.resume_checkpoint_id is not None and self.spoilt(known[attempt.resume_checkpoint_id])

    @invariant()
    def nothing_spoilt_is_gone_on_from_and_no_excluded_node_is_used(self) -> None:
        """Judged when the attempt is first seen: what is told later cannot have been known."""
        known = {one.id: one for one in self.pilot.checkpoints(self.run_id)}
        for one in self.pilot.attempts(self.run_id) if self.run_id else ():
            if one.no in self.seen:
                continue
            self.seen.add(one.no)
            assert not set(one.nodes) & set(one.excluded_nodes)
            if one.resume_checkpoint_id is not None:
                assert known[one.resume_checkpoint_id].state == "validated"
                assert not self.spoilt(known[one.resume_checkpoint_id])

    def nothing_spoilt_is_kept_for_use(self) -> None:
        """After a round: it is marked, in every mode, and where the policy acts nobody trains on it."""
        known = {one.id: one for one in self.pilot.checkpoints(self.run_id)}
        assert not [one.path for one in known.values() if one.state == "validated" and self.spoilt(one)]
        for one in self.pilot.live(self.run_id) if self.mode == "act" else ():
            if one.state not in ("submitting", "draining", "stopping"):
                assert not any(hit.strikes(one) for hit in self.hits)
                assert one.resume_checkpoint_id is None or not self.spoilt(known[one.resume_checkpoint_id])


class Story(Life):
    """The same life, told rather than found: of what may happen only what has to do with corrupted memory, and much."""

    restarts = 99

    def a_good_while(self, steps: int, at: float) -> None:
        if not self.runs():
            return
        self.ranks_start()
        self.ranks_train(steps, False)
        self.time_passes(1.0)
        if self.runs():
            self.a_checkpoint_is_written(at, True)
            self.time_passes(1.0)

    def a_death_whose_cause_is_told_late(self, looks: int, elsewhere: bool) -> None:
        """The memory fails, a state is saved, the rank dies; the fault is told so many of the controller's looks later.

        It has then ended, is decided on, planned anew, submitted; and with the fifth look the next one has trained.
        `elsewhere`: somebody has taken the node out meanwhile.
        """
        if not self.runs():
            return
        node, clean = self.attempt().plan.nodes[0], self.pilot.clock.now()
        self.a_good_while(2, 0.0)
        if self.runs():
            self.the_attempt_ends("killed")
        if elsewhere:
            with self.store.write() as session:
                nodes.cordon(session, node, reason="it looks odd", now=self.pilot.clock.now())
        for _ in range(looks):
            self.pilot.clock.advance(0.3)
            self.pilot.greet()
            self.pilot.controller.step(self.run_id, self.pilot.epoch, self.pilot.clock.now())
        if looks == 5:
            self.a_good_while(2, 0.0)
        self.holds()
        self.pilot.hit(node, onset_s=clean + 0.5, last_clean_s=clean)
        self.hits.append(Hit(node, clean))

    def holds(self) -> None:
        """Every invariant."""
        for name, check in vars(Life).items():
            if hasattr(check, INVARIANT_MARKER):
                getattr(self, name)()


def act(name: str, *drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *drawn)


FLAG, LOOKS = st.sampled_from([True, False]), st.sampled_from([5, 4, 3, 2, 1, 0])
ACTS = st.one_of(
    act("a_good_while", st.integers(1, 5), st.sampled_from([0.0, -60.0])),
    act("a_death_whose_cause_is_told_late", LOOKS, FLAG),
    act("a_death_whose_cause_is_told_late", LOOKS, FLAG),
    act("a_fault", st.integers(0, 3), FLAG, st.sampled_from([0.0, 3.0, 50.0])),
    act("time_passes", st.sampled_from([1.0, 5.0, 700.0])),
    act("a_person_asks", st.sampled_from(["pause", "resume", "restart"]), FLAG),
    act("a_person_returns_a_node", st.integers(0, 3)),
    act("the_server_restarts"),
)


@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["act", "act", "advise"]), st.lists(ACTS, min_size=3, max_size=6))
def test_nothing_spoilt_is_gone_on_from_whenever_it_is_told(
    sqlite_url: str, mode: str, acts: list[tuple[Any, ...]]
) -> None:
    Life.template = Path(sqlite_url.removeprefix("sqlite:///"))
    told = Story()
    try:
        told.submit(mode, 2)
        told.a_good_while(3, -60.0)
        for name, *drawn in acts:
            getattr(told, name)(*drawn)
            told.holds()
        told.time_passes(1.0)
    finally:
        told.teardown()


@pytest.mark.timeout(300)
def test_whatever_happens_in_whatever_order(sqlite_url: str) -> None:
    Life.template = Path(sqlite_url.removeprefix("sqlite:///"))
    slow = settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(Life, settings=slow)
