"""What a run over a thousand nodes may not cost: work that grows with the square of its nodes. Counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.runs import plan, taint
from controlplane.runs.decide import decide
from controlplane.runs.plan import Candidate
from controlplane.runs.view import Decide
from tests.runs.situations import NOW, attempt, corruption, failed, saved, view

NODES = tuple(f"n{index:04d}" for index in range(1_024))
FREE = tuple(Candidate(name, 8, True, False, "healthy", 0.0) for name in (*NODES, "spare"))
TWICE = {"class": "error", "message": "boom", "fingerprint": "boom", "node": NODES[7]}


def test_a_failure_asks_where_it_could_go_for_the_suspect_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    real = plan.place

    def counted(*arguments: Any, **named: Any) -> plan.Placement:
        asked.append(tuple(named["excluded"]))
        return real(*arguments, **named)

    monkeypatch.setattr(plan, "place", counted)
    once = view(failed(nodes=NODES, end=TWICE), nodes=1_024, candidates=FREE)
    move = decide(once)
    assert isinstance(move, Decide) and move.choice.action == "restart" and asked == []
    before = failed(nodes=NODES, end=TWICE, ended_s=NOW - 600, last_step=10)
    again = view(before, failed(no=2, nodes=NODES, end=TWICE), nodes=1_024, candidates=FREE)
    move = decide(again)
    assert isinstance(move, Decide) and move.choice.excluded == (NODES[7],) and asked == [(NODES[7],)]


def test_a_placement_compares_each_node_once() -> None:
    class Name(str):
        compared = 0
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    before = tuple(Name(name) for name in NODES)
    placed = plan.place(FREE, nodes=1_024, gpus=8, excluded=("n9999",), before=before)
    assert placed.nodes == NODES
    assert Name.compared <= 4 * len(NODES)


def test_what_is_spoilt_is_found_without_reading_every_checkpoint_for_each_attempt() -> None:
    class Counted(tuple):  # type: ignore[type-arg]  # of checkpoints
        read = 0

        def __iter__(self) -> Any:
            Counted.read += 1
            return super().__iter__()

    attempts = [attempt(no, "failed", epoch=no) for no in range(1, 200)]
    checkpoints = Counted(saved(step, no) for no in range(1, 200) for step in (10, 20))
    spoilt = taint.spoils(attempts, checkpoints, [corruption()])
    assert spoilt and Counted.read <= 2
