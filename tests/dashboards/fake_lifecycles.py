"""Lifecycles as the API tells them, in the states that the pages must show; answers for the fake API of fake_runs.

The plain one is a real answer of the engine, cut short: a stage that passed, one whose gate refuses, one that waits.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Any

BEGUN = 1_789_997_600.0
ID = "01a3185c-5000-76e3-8f30-1777f201d26d"
BASE, NEXT, BAD = "cb2b7fd50c08" + "b8" * 26, "69c6f8f12c48" + "fd" * 26, "0bad0bad0bad" + "ee" * 26
HOSTILE = '<img src=x onerror="window.pwned=1">{b}\'&'
YAML = "apiVersion: trimtab/v1\nkind: Lifecycle\nmetadata:\n  name: walk\nspec:\n  stages:\n  - name: pretrain\n"
Row = dict[str, Any]


def requirement(text: str, value: float | None, bound: float | None, ok: bool | None) -> Row:
    metric, op, _ = text.split(" ")
    return {"requirement": text, "metric": metric, "op": op, "value": value, "bound": bound, "ok": ok, "sentence": ""}


def run(stage: str, role: str, no: int, **changes: Any) -> Row:
    row: Row = {
        "id": f"walk-{stage}-{role}-{no}", "role": role, "item": None, "no": no, "round": 1,
        "status": "succeeded", "reason": "its command returned 0", "step": 1000 if role == "train" else None,
        "steps": 1000, "attempt": 1, "attempt_state": "succeeded", "created_s": BEGUN + no, "ended_s": BEGUN + no + 90,
        "init_hash": BASE, "continues": None, "metrics": {}, "result_hash": None, "missing": None,
    }  # fmt: skip
    return {**row, **changes}


def stage(name: str, state: str, **changes: Any) -> Row:
    row: Row = {
        "name": name, "role": "train", "after": [], "from": None, "state": state, "hold": None, "reason": "",
        "state_since_s": BEGUN, "began_s": None, "ended_s": None, "round": 1, "retries": {"used": 0, "allowed": 1},
        "inherited": False, "init": None, "candidate": None, "promote": None, "gate": None, "unread": None,
        "progress": {"run": None, "role": "train", "item": None, "step": None, "steps": 1000, "share": None},
        "runs": [], "can": [], "budget": {"gpu_hours": None, "used": None},
        "cost": {"used_gpu_h": 0.0, "productive_gpu_h": 0.0, "lost_gpu_h": 0.0, "queued_gpu_h": 0.0},
    }  # fmt: skip
    return {**row, **changes}


def cost(productive: float, lost: float, queued: float) -> Row:
    used = productive + lost
    return {"used_gpu_h": used, "productive_gpu_h": productive, "lost_gpu_h": lost, "queued_gpu_h": queued}


def candidate(checkpoint_hash: str, run_id: str, tainted: bool = False) -> Row:
    path = f"/data/runs/{run_id}/attempt-0001/step-00001000"
    return {"hash": checkpoint_hash, "step": 1000, "run": run_id, "path": path, "tainted": tainted}


REFUSES = "pass@1 is 0.2 (constant_baseline 0.31), pass@1 > constant_baseline does not hold."


def stages() -> list[Row]:
    """Pretraining passed, fine-tuning is refused by its gate and waits for a person, the release waits."""
    pretrain_runs = [run("pretrain", "train", 1, init_hash=None), run("pretrain", "evaluate", 2, metrics={"loss": 2.0})]
    sft_runs = [
        run("sft", "prepare", 3, item="text"),
        run("sft", "train", 4),
        run("sft", "evaluate", 5, metrics={"loss": 1.9, "pass@1": 0.2, "constant_baseline": 0.31}),
    ]
    passed = {"state": "passed", "requirements": [requirement("loss < 2.6", 2.0, 2.6, True)], "approval": False}
    refused = {
        "state": "refused",
        "requirements": [
            requirement("loss < 2.6", 1.9, 2.6, True),
            requirement("pass@1 > constant_baseline", 0.2, 0.31, False),
        ],
        "approval": True,
    }
    opened = {"state": "open", "requirements": [requirement("loads == 1", None, 1.0, None)], "approval": False}
    return [
        stage(
            "pretrain", "passed", reason="Stage pretrain passed with checkpoint cb2b7fd50c08.", runs=pretrain_runs,
            began_s=BEGUN, ended_s=BEGUN + 7380, candidate=candidate(BASE, "walk-pretrain-train-1"), promote="base",
            gate={**passed, "sentence": "Its requirement holds.", "checkpoint_hash": BASE}, cost=cost(30.1, 1.4, 0.2),
            budget={"gpu_hours": 40.0, "used": 31.5},
        ),
        stage(
            "sft", "held", hold="refused", reason=f"Stage sft is held. The gate refuses: {REFUSES}", runs=sft_runs,
            after=["pretrain"], began_s=BEGUN + 7380, candidate=candidate(NEXT, "walk-sft-train-4"), promote="chat",
            gate={**refused, "sentence": f"The gate refuses: {REFUSES}", "checkpoint_hash": NEXT},
            init={"hash": BASE, "tainted": False}, can=["approve", "refuse", "retry"], cost=cost(3.2, 0.004, 0.6),
            **{"from": "pretrain"},
        ),
        stage(
            "release", "waiting", role="release", after=["sft"],
            gate={**opened, "sentence": "", "checkpoint_hash": None}, **{"from": "sft"},
        ),
    ]  # fmt: skip


def event(at: float, sentence: str, of: str | None, level: str = "info", run_id: str | None = None) -> Row:
    return {"at_s": BEGUN + at, "kind": "x", "sentence": sentence, "stage": of, "level": level, "run": run_id}


def row(**changes: Any) -> Row:
    """A row of the list."""
    found = {
        "id": ID, "name": "walk", "status": "active", "desired": "run", "waits_for_person": True, "stage": "sft",
        "reason": f"Stage sft is held. The gate refuses: {REFUSES}", "passed": 1, "created_s": BEGUN,
        "stages": [{name: one[name] for name in ("name", "state", "hold")} for one in stages()],
        "created_by": "ada", "ended_s": None, "parent": None, "waits_for_disk": False,
        "progress": {"run": "walk-sft-evaluate-5", "role": "evaluate", "item": None, "step": None, "steps": 1000,
                     "share": 1.0},
        "cost": cost(33.3, 1.404, 0.8),
    }  # fmt: skip
    return {**found, **changes}


def message(channel: str, state: str, **changes: Any) -> Row:
    """What a channel was told of the held stage, or is to be told."""
    found = {"channel": channel, "seq": 1, "type": "lifecycle.held", "stage": "sft", "state": state, "told_s": None}
    return {**found, "tries": 1, "last_error": None, **changes}


def view(**changes: Any) -> Row:
    """A lifecycle, whole."""
    spec = [
        {"name": "pretrain", "prepare": [], "gate": {"evaluation": {"stage": "pretrain"}}},
        {"name": "sft", "prepare": [{"name": "text"}], "gate": {"evaluation": {"stage": "sft"}}},
        {"name": "release", "prepare": [], "gate": {"evaluation": None}},
    ]
    found = {
        **row(),
        "stages": stages(),
        "edges": [
            {"from": "pretrain", "to": "sft", "kind": "from"},
            {"from": "sft", "to": "release", "kind": "from"},
        ],
        "cost": cost(33.3, 1.404, 0.8),
        "aliases": [
            {
                "alias": "base",
                "checkpoint_hash": BASE,
                "stage": "pretrain",
                "at_s": BEGUN + 7380,
                "by": "controller",
                "tainted": False,
            }
        ],
        "approvals": [],
        "deliveries": [
            message("ops", "told", told_s=BEGUN + 9001),
            message("pager", "ready", tries=2, last_error="HTTP 503"),
        ],
        "timeline": [
            event(0, "ada submitted walk: 3 stages, pretrain, sft, release.", None),
            event(7380, "Stage pretrain passed with checkpoint cb2b7fd50c08.", "pretrain", "ok"),
            event(7381, "Stage sft begins to train.", "sft", run_id="walk-sft-train-4"),
            event(9000, f"Stage sft is held. The gate refuses: {REFUSES}", "sft", "warn"),
        ],
        "yaml": YAML,
        "spec": {"spec": {"stages": spec}},
    }
    return {**found, **changes}


def training_view() -> Row:
    """The same one earlier: fine-tuning trains, so nobody is asked."""
    before = stages()
    open_ = [requirement("loss < 2.6", None, 2.6, None), requirement("pass@1 > constant_baseline", None, None, None)]
    before[1] = stage(
        "sft", "training", after=["pretrain"], began_s=BEGUN + 7380, init={"hash": BASE, "tainted": False},
        gate={**before[1]["gate"], "state": "open", "checkpoint_hash": None, "requirements": open_},
        cost=cost(1.2, 0.0, 0.6),
        progress={"run": "walk-sft-train-4", "role": "train", "item": None, "step": 640, "steps": 1000, "share": 0.64},
        runs=[*before[1]["runs"][:1], run("sft", "train", 4, status="active", attempt_state="training", step=640)],
        **{"from": "pretrain"},
    )  # fmt: skip
    return view(stages=before, waits_for_person=False, reason="")


def node(checkpoint_hash: str, of: str, step: int, at: float, **changes: Any) -> Row:
    found = {
        "hash": checkpoint_hash, "checkpoint_id": f"c-{step}", "stage": of, "lifecycle_id": ID, "step": step,
        "run": f"walk-{of}-train-1", "attempt": 1, "state": "validated", "tainted": False, "reason": "",
        "at_s": BEGUN + at, "path": f"/data/{of}/{step}", "aliases": [], "candidate": False, "passed": False,
    }  # fmt: skip
    return {**found, **changes}


def lineage() -> Row:
    """Five plain checkpoints, a tainted branch, the attempt that went on before it, and the stage after."""
    plain = [node(f"{number:064x}", "pretrain", number * 100, number * 60.0) for number in range(1, 6)]
    spoilt = [
        node(BAD, "pretrain", 600, 360.0, state="tainted", tainted=True, reason="a bad data shard"),
        node("f" * 64, "pretrain", 700, 420.0, state="tainted", tainted=True, reason="made from tainted"),
    ]
    again = node(BASE, "pretrain", 1000, 900.0, attempt=2, aliases=["base"], candidate=True, passed=True)
    after = node(NEXT, "sft", 1000, 1800.0, candidate=True)
    chain = [*plain, *spoilt]
    edges = [{"from": old["hash"], "to": new["hash"], "kind": "parent"} for old, new in pairwise(chain)]
    edges += [
        {"from": plain[-1]["hash"], "to": BASE, "kind": "resumed"},
        {"from": BASE, "to": NEXT, "kind": "init"},
    ]
    aliases = [{"alias": "base", "checkpoint_hash": BASE}]
    return {"lifecycle": {"id": ID, "name": "walk"}, "nodes": [*chain, again, after], "edges": edges,
            "stages": [], "aliases": aliases}  # fmt: skip


def planned(name: str, **changes: Any) -> Row:
    found = {
        "name": name, "role": "train", "state": "waiting", "work": "training", "after": [], "from": None,
        "steps": 1000, "nodes": 1, "gpus": 8, "prepare": [], "require": [], "approval": False, "promote": None,
        "retries": 1, "gpu_hours": None, "runs": [f"walk-{name}"],
    }  # fmt: skip
    return {**found, **changes}


VALID: Row = {
    "problems": [],
    "sentence": "2 stages on up to 1 node, 1 with a gate.",
    "stages": [
        planned("pretrain", require=["loss < 2.6"], promote="base"),
        planned("sft", after=["pretrain"], prepare=["text"], **{"from": "pretrain"}),
    ],
    "edges": [{"from": "pretrain", "to": "sft", "kind": "from"}],
    "against": {"id": ID, "name": "walk", "created_s": BEGUN},
    "diff": [
        {"path": "stages.pretrain.budget.retries", "before": 2, "after": 1},
        {"path": "stages.pretrain.promote", "before": None, "after": "base"},
    ],
    "yaml": YAML,
}
TEMPLATES: Row = {
    "templates": [
        {"name": "toy", "lifecycle": "zaya-toy", "stages": ["pretrain", "sft", "release"], "spec": {}, "yaml": YAML},
        {"name": "zaya1-8b", "lifecycle": "zaya1-8b", "stages": ["pretrain-1", "rl-4"], "spec": {}, "yaml": YAML},
    ]
}


def answers() -> dict[str, Any]:
    """What the fake API answers about lifecycles."""
    asked = {"lifecycle": ID, "name": "walk", "asked": "x"}
    found: dict[str, Any] = {
        "GET lifecycles": {"lifecycles": [row()], "next": None},
        f"GET lifecycles/{ID}": view(),
        f"GET lifecycles/{ID}/lineage": lineage(),
        f"GET lifecycles/{ID}/diff": {"lifecycle": ID, "against": VALID["against"], "diff": VALID["diff"]},
        "GET lifecycle-templates": TEMPLATES,
        "GET lifecycle-templates/toy": TEMPLATES["templates"][0],
        "POST lifecycles/validate": VALID,
        "POST lifecycles": (201, view()),
        f"POST lifecycles/{ID}/clone": (201, view(id="clone-1")),
        f"POST lifecycles/{ID}/promote": {"alias": "best", "owner": "walk", "checkpoint_hash": NEXT, "before": None},
        "GET runs/walk-sft-train-4": {"id": "walk-sft-train-4", "status": "active", "age_s": 0.8, "simulated": True},
        "GET runs/walk-sft-evaluate-5": {"id": "walk-sft-evaluate-5", "status": "succeeded", "simulated": True},
    }
    for verb in ("pause", "resume", "cancel", *(f"stages/sft/{word}" for word in ("approve", "refuse", "retry"))):
        found[f"POST lifecycles/{ID}/{verb}"] = asked
    return deepcopy(found)
