"""Views of a run on nodes a and b, made by hand: what the table of decisions is asked about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controlplane.runs.checkpoints import Saved
from controlplane.runs.decide import decide
from controlplane.runs.plan import Candidate
from controlplane.runs.view import (
    AttemptView,
    Beat,
    Corruption,
    Decide,
    Look,
    MemberView,
    Move,
    OpenDecision,
    Trouble,
    View,
)

Case = tuple[View, type[Move], dict[str, Any]]
"""A view, the kind of move that it leads to, and values in it by path."""

NOW = 10_000.0
NODES = ("a", "b")


def attempt(no: int = 1, state: str = "training", **changes: Any) -> AttemptView:
    """An attempt on a and b that trained from 1 to 20 and entered its state a second ago."""
    ended = state in ("succeeded", "failed", "superseded", "stopped")
    base = AttemptView(
        no=no,
        name=f"trial-{no}",
        state=state,
        state_since_s=NOW - 1,
        nodes=NODES,
        excluded=(),
        epoch=no,
        resume_step=None,
        decision_id=None,
        created_s=NOW - 300,
        submitted_s=NOW - 299,
        first_step=1,
        last_step=20,
        ended_s=NOW - 1 if ended else None,
        end_class="",
    )
    return replace(base, **changes)


def failed(end_class: str = "error", no: int = 1, **changes: Any) -> AttemptView:
    """An attempt that ended by itself, saying this."""
    end = {"class": end_class, "message": f"it said {end_class}", "fingerprint": end_class}
    return attempt(no, "failed", **{"end_class": end_class, "end": end, **changes})


def beats(first: int | None = 1, last: int | None = 20, phase: str = "train", silent: float = 1.0) -> tuple[Beat, ...]:
    return tuple(Beat(rank, node, phase, first, last, silent) for rank, node in enumerate(NODES))


def look(state: str = "running", fenced: bool = False, *codes: int | None) -> Look:
    alive = state in ("running", "pending")
    told = [None if code is None else {"code": code, "class": "saved", "at_s": 1.0} for code in codes or (None, None)]
    members = tuple(
        MemberView(node, alive, code, word) for node, code, word in zip(NODES, codes or (None, None), told, strict=True)
    )
    return Look(state, members, fenced)


def trouble(node: str = "b", corrupting: bool = True, **changes: Any) -> Trouble:
    rule = "hbm-uncorrectable" if corrupting else "hang"
    base = Trouble(
        "i1",
        7,
        rule,
        "restart",
        node,
        3,
        "gpu3",
        "trial-1",
        1,
        NOW - 3,
        NOW - 4,
        corrupting,
        f"GPU 3 of {node} erred",
        ("f1",),
    )
    return replace(base, **changes)


def corruption(node: str = "b", **changes: Any) -> Corruption:
    """A memory fault on a node, clean until 4 s ago, as a run sees it that has not decided on it."""
    whole = {name: changes.pop(name) for name in ("end_s", "decided", "told_s") if name in changes}
    changes["over"] = whole.get("end_s") is not None
    return Corruption(trouble(node, **changes), **{"end_s": None, "decided": False, "told_s": NOW - 2, **whole})


def saved(step: int, no: int = 1, state: str = "validated", at: float | None = 0.0) -> Saved:
    """A checkpoint; if nothing else is said, one that was computed well before NOW, steps a second apart."""
    return Saved(f"c{no}-{step}", no, no, step, f"/{no}/{step}", state, NOW - 200 + step if at == 0.0 else at)


def decision(**changes: Any) -> OpenDecision:
    base = OpenDecision("d1", "restart_exclude", 1, ("b",), NOW - 4, None, False, NOW - 2, "hbm-uncorrectable")
    return replace(base, **changes)


FREE = tuple(Candidate(name, 8, True, False, "healthy", 0.0) for name in ("a", "b", "c"))


def view(*attempts: AttemptView, **changes: Any) -> View:
    base = View(
        run_id="trial-1",
        name="trial",
        desired="run",
        status="active" if attempts else "queued",
        nodes=2,
        gpus_per_node=8,
        ranks_per_node=1,
        steps=100,
        mode="act",
        restarts=8,
        grace_s=30.0,
        contract_level=2,
        attempts=attempts,
        decision=None,
        saved=(),
        troubles=(),
        beats=beats() if attempts else (),
        look=look() if attempts else None,
        candidates=FREE,
        excluded=(),
        wish=None,
        now=NOW,
    )
    return replace(base, **changes)


SECOND = (
    attempt(1, "superseded", end_class="hardware"),
    attempt(2, decision_id="d1", resume_step=10, nodes=("a", "c")),
)
"""Attempt 1 has left node b for a fault; attempt 2 is to go on from step 10 on a and c."""


def answers(given: View, kind: type[Move], wanted: dict[str, Any]) -> None:
    """Holds one line of a table against the policy."""
    move = decide(given)
    assert isinstance(move, kind), move
    found = {}
    for path in wanted:
        found[path] = move
        for name in path.split("."):
            found[path] = getattr(found[path], name)
    assert found == wanted
    assert decide(given) == move, "the same view gives the same move"
    if isinstance(move, Decide):
        assert move.choice.evidence and move.choice.reason.endswith(".") and move.choice.rule
