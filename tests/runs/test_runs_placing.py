"""Attempts that a platform places by itself: where they went is learned, and who cannot be reached is given up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.runs.plan import Candidate
from controlplane.runs.view import (
    Advance,
    Conclude,
    Decide,
    EndAttempt,
    Look,
    MemberView,
    PlanAttempt,
    Press,
    View,
    Wait,
)
from tests.runs.situations import FREE, NOW, Case, answers, attempt, beats, decision, failed, trouble, view

EVICTED = MemberView("a", False, None, None, reason="EvictionByEvictionAPI: node drain", disrupted=True)
PEER = {"class": "peer_lost", "message": "it saw its peer go", "code": 1}
OUSTED = Look("failed", (EVICTED, MemberView("b", False, 1, PEER)), True)
SAVED = {"class": "saved", "message": "saved and stopped", "code": 75}
ERROR = {"class": "error", "message": "boom", "code": 1, "at_s": 1.0}
OUSTED_WORDS = "the platform took its member on a (EvictionByEvictionAPI: node drain)"
UNPLACED = attempt(state="pending", nodes=(), first_step=None, last_step=None)
SECOND = attempt(2, state="pending", decision_id="d1", nodes=(), first_step=None, last_step=None)


def members(*nodes: str, state: str = "running", **changes: Any) -> Look:
    found = [MemberView(node, True, None, None, running=state == "running") for node in nodes]
    return Look(state, tuple(replace(one, **changes) for one in found), False)


def placing(*attempts: Any, **changes: Any) -> View:
    return view(*attempts, **{"pins_nodes": False, "beats": (), **changes})


STUCK = Look("running", (MemberView("a", False, 1, None), MemberView("b", True, None, None, stuck=True)), False)
LEFT = Look("failed", STUCK.members, False)

ILL = (
    *FREE,
    Candidate("cordoned", 8, True, True, "healthy", 0.0),
    Candidate("faulty", 8, True, False, "healthy", 0.0, fault="hbm-uncorrectable"),
    Candidate("quarantined", 8, True, False, "quarantined", 0.0),
    Candidate("silent", 8, True, False, "healthy", 60.0),
    Candidate("z", 8, True, True, "healthy", 0.0),
)
MANY = tuple(Candidate(f"n{number:03d}", 8, True, True, "healthy", 0.0) for number in range(100))

CASES: dict[str, Case] = {
    "a plan names no node, only those to leave out": (
        placing(excluded=("z",)),
        PlanAttempt,
        {"nodes": (), "excluded": ("z",)},
    ),
    "nor is it given what is known to be out of service, cordoned in the cluster or not": (
        placing(nodes=1, excluded=("z",), candidates=ILL),
        PlanAttempt,
        {
            "nodes": (),
            "excluded": ("cordoned", "faulty", "quarantined", "silent", "z"),
            "sentence": "Attempt 1 is to be placed on 1 nodes by the cluster, never z, "
            "without 4 that are out of service, and starts from step 0.",
        },
    ),
    "what is in use or out of reach is the cluster's own affair": (
        placing(nodes=1, candidates=(*FREE, Candidate("busy", 8, False, False, "healthy", 0.0, reachable=False))),
        PlanAttempt,
        {"excluded": ()},
    ),
    "no more nodes are named than a scheduler bears, those of decisions first": (
        placing(excluded=("z",), candidates=(*FREE, *MANY)),
        PlanAttempt,
        {"excluded": (*(one.name for one in MANY[:63]), "z")},
    ),
    "too few nodes are not asked for": (placing(nodes=9), Wait, {}),
    "half a gang is nowhere yet": (placing(UNPLACED, look=members("a", "", state="pending")), Wait, {}),
    "a whole gang has its nodes": (placing(UNPLACED, look=members("b", "a")), Advance, {"nodes": ("a", "b")}),
    "it is said once": (
        placing(attempt(), look=members("b", "a"), troubles=(trouble(),)),
        Decide,
        {"choice.excluded": ("b",)},
    ),
    "a fault on a node of a gang that was placed before the fault was known": (
        placing(UNPLACED, look=members("b", "a"), troubles=(trouble(),)),
        Advance,
        {"nodes": ("a", "b")},
    ),
    "an excluded node is not accepted": (
        placing(
            failed(), attempt(2, decision_id="d1", excluded=("b",), first_step=None), decision=decision(excluded=())
        ),
        Conclude,
        {"ok": False, "stop": True},
    ),
    "half a gang proves no restart, at the lowest level": (
        placing(failed(), SECOND, contract_level=0, decision=decision(), look=members("a", "", state="pending")),
        Wait,
        {},
    ),
    "nor at the next": (
        placing(failed(), SECOND, contract_level=1, decision=decision(), look=members("a", "", state="pending")),
        Wait,
        {},
    ),
    "nor by a step, as long as nobody knows where it was taken": (
        placing(failed(), SECOND, decision=decision(), beats=beats(1, 1), look=members("a", "", state="running")),
        Advance,
        {"state": "training"},
    ),
    "a gang from which the cluster took a member failed by nobody's fault": (
        placing(attempt(), look=OUSTED),
        EndAttempt,
        {"state": "preempted", "end_class": "preempted", "node": "", "message": OUSTED_WORDS},
    ),
    "one that saved before it went is charged to nobody": (
        placing(attempt(), look=replace(OUSTED, members=(EVICTED, MemberView("b", False, 75, SAVED)))),
        EndAttempt,
        {"state": "preempted", "end_class": "saved"},
    ),
    "an error of its own comes before what the cluster did afterwards": (
        placing(attempt(), look=replace(OUSTED, members=(EVICTED, MemberView("b", False, 1, ERROR)))),
        EndAttempt,
        {"state": "failed", "end_class": "error", "node": "b"},
    ),
    "a member on a dead node is killed first": (
        placing(attempt(state="stopping"), look=STUCK, decision=decision(corrupting_since_s=None)),
        Wait,
        {},
    ),
    "who is left on a node that nobody hears is given no more time to save": (
        placing(
            attempt(state="draining", state_since_s=NOW - 6),
            look=STUCK,
            decision=decision(corrupting_since_s=None),
            unheard=frozenset({"b"}),
        ),
        Press,
        {"mode": "kill", "state": "stopping"},
    ),
    "who saves on a node that is heard has the time": (
        placing(
            attempt(state="draining", state_since_s=NOW - 6),
            look=STUCK,
            decision=decision(corrupting_since_s=None),
            unheard=frozenset({"a"}),
        ),
        Wait,
        {},
    ),
    "and given up when that does not help": (
        placing(attempt(state="stopping", state_since_s=NOW - 60), look=STUCK, decision=decision()),
        EndAttempt,
        {"state": "abandoned", "end_class": "node_lost"},
    ),
    "one that lives is never given up": (
        placing(
            attempt(state="stopping", state_since_s=NOW - 60),
            look=Look("running", (STUCK.members[1], MemberView("a", True, None, None)), False),
            decision=decision(),
        ),
        Press,
        {"mode": "kill"},
    ),
    "a gang that failed by itself waits for no dead node": (
        placing(attempt(), look=LEFT),
        EndAttempt,
        {"state": "abandoned"},
    ),
    "what cannot be looked at is given up by nobody": (
        placing(attempt(state="stopping", state_since_s=NOW - 6000), look=replace(STUCK, state="unknown")),
        Press,
        {"mode": "kill"},
    ),
    "a gang that never became whole names who is missing and why": (
        placing(
            replace(UNPLACED, submitted_s=NOW - 700),
            look=Look(
                "pending",
                (
                    MemberView("a", False, None, None),
                    MemberView("", False, None, None, running=False, reason="Unschedulable: 0/4 nodes are available"),
                ),
                True,
            ),
        ),
        EndAttempt,
        {
            "end_class": "never_started",
            "message": "the member on no node (Unschedulable: 0/4 nodes are available) did not start within 600 s",
        },
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_where_a_platform_places_an_attempt(situation: str) -> None:
    answers(*CASES[situation])
