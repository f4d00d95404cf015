"""What the lifecycle demo claims: read back through the public API, then judged, each claim by a named check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from controlplane.cli.demo_drills import Drill
from controlplane.cli.demo_lifecycle_learning import TOLERANCE, compared, held_out, line_of, rose
from controlplane.client import ApiError, Client

Json = dict[str, Any]
WINDOW = 16
TAUGHT = ("rl-1", "rl-2", "rl-3")
"""The stages that are to raise accuracy; rl-4 learns to behave, which its gold score tells."""


def gather(client: Client, lifecycle_id: str, drills: Sequence[Drill], runs: Path, seconds: Json) -> Json:
    """The JSON object of the demo's last line. What did not happen is None."""
    told = client.get(f"lifecycles/{lifecycle_id}")
    lineage = client.get(f"lifecycles/{lifecycle_id}/lineage")
    return {
        "lifecycle": {"id": told["id"], "name": told["name"], "status": told["status"], "cost": told["cost"]},
        "stages": [_stage(client, one, lineage, compared(told, one)) for one in told["stages"]],
        "drills": [one.told(client) for one in drills],
        "rsa": _rsa(told),
        "release": _release(told, runs),
        "seconds": seconds,
    }


def _own(stage: Json) -> list[Json]:
    """The runs of a stage's own job, oldest first."""
    return [one for one in stage["runs"] if one["role"] == stage["role"]]


def learned(outcome: Json) -> list[str]:
    """A line for people about each stage that is compared on held-out problems."""
    return [line for line in map(line_of, outcome["stages"]) if line]


def _stage(client: Client, stage: Json, lineage: Json, learning: Json | None) -> Json:
    own = [client.run(one["id"]) for one in _own(stage)]
    row: Json = next((one for one in lineage["stages"] if one["stage"] == stage["name"]), {})
    metric, first, last = _metric(client, stage, learning)
    return {
        "stage": stage["name"],
        "state": stage["state"],
        "metric": metric,
        "first": first,
        "last": last,
        "max_vio": _max_vio(client, own) if stage["role"] == "train" else None,
        "held_out": held_out(stage),
        "learning": learning,
        **_sampled(stage),
        "attempts": sum(len(run["attempts"]) for run in own),
        **_restarted(client, own),
        "gate": stage["gate"]["state"] if stage["gate"] else None,
        "checkpoint_hash": stage["candidate"]["hash"] if stage["candidate"] else None,
        "parent_hash": row.get("parent_hash") or None,
        "init_hash": stage["init"]["hash"] if stage["init"] else None,
        "lost_seconds": round(sum(_lost_s(run) for run in own), 3),
    }


def _lost_s(run: Json) -> float:
    """Wall time between the end of an attempt's training and the next one's first step."""
    pairs = zip(run["attempts"], run["attempts"][1:], strict=False)
    ended = [(before["ended_s"], after["first_step_s"]) for before, after in pairs]
    return float(sum(max(0.0, after - before) for before, after in ended if before is not None and after is not None))


def _sampled(stage: Json) -> Json:
    """What an RL stage measured while it learned, over its first and last steps: accuracy, and the difficulty that its
    curriculum drew, the bound of each environment beside it. None each where a stage has no such thing."""
    own = _own(stage)
    metrics = own[-1]["metrics"] if own else {}

    def pair(name: str) -> Json | None:
        environment, slash, word = name.rpartition("/")
        first = metrics.get(f"{environment}{slash}first_{word}")
        return None if first is None or name not in metrics else {"first": first, "last": metrics[name]}

    bounds = {name.removesuffix("/bound"): pair(name) for name in sorted(metrics) if name.endswith("/bound")}
    told = pair("difficulty")
    return {"sampled_accuracy": pair("sampled_accuracy"), "difficulty": told and told | {"bounds": bounds}}


def _metric(client: Client, stage: Json, learning: Json | None) -> tuple[str | None, float | None, float | None]:
    """(name, over the first steps, over the last) of what the stage is to better."""
    own = _own(stage)
    metrics = own[-1]["metrics"] if own else {}
    if stage["role"] != "train":
        name = next((one for one in ("rsa", "loads") if one in metrics), None)
        return name, metrics.get("pass@1") if name == "rsa" else None, metrics.get(name) if name else None
    if learning is not None and learning["before"] is not None:
        return "held_out_pass@1", learning["before"], learning["after"]
    for name in ("gold", "sampled_accuracy"):
        if f"first_{name}" in metrics:
            return name, metrics[f"first_{name}"], metrics[name]
    losses = [
        [value for value in part["loss"] if value is not None]
        for one in own
        for part in client.get(f"runs/{one['id']}/steps", points=5000)["attempts"]
    ]
    losses = [one for one in losses if one]
    if not losses:
        return "loss", None, None
    return "loss", fmean(losses[0][:WINDOW]), fmean(losses[-1][-WINDOW:])


def _max_vio(client: Client, own: Sequence[Json]) -> Json | None:
    """Mean MaxVio over layers in the first and the last steps of the stage's last run."""
    try:
        told: Json = client.get(f"runs/{own[-1]['id']}/experts/summary")["maxvio"] if own else {}
    except ApiError:
        return None
    return {"first": told.get("first_window"), "last": told.get("last_window")}


def _restarted(client: Client, own: Sequence[Json]) -> Json:
    """Where the stage's first restarted attempt went on: of the first that did so wrongly, if one did."""
    found = [
        {
            "first_step_after_restart": attempt["first_step"],
            "resume_step": attempt["resume_step"],
            "manifest_step": _manifest_step(client, run, attempt),
        }
        for run in own
        for attempt in run["attempts"]
        if attempt["no"] > 1 and attempt["first_step"] is not None
    ]
    none = dict.fromkeys(("first_step_after_restart", "resume_step", "manifest_step"))
    return next((one for one in found if not _went_on(one)), found[0] if found else none)


def _went_on(one: Json) -> bool:
    """Whether a restarted attempt went on at its manifest's step + 1; one that began from scratch did not."""
    at = one["manifest_step"]
    return at is not None and one["resume_step"] == at and one["first_step_after_restart"] == at + 1


def _manifest_step(client: Client, run: Json, attempt: Json) -> int | None:
    """The step that a restarted attempt really went on from: its first checkpoint names its parent in its manifest,
    and the parent's manifest, read from disk, says its step. Of one that saved nothing: what the checkpoint says that
    it was given."""
    known = [one for one in run["checkpoints"] if one["state"] == "validated"]

    def manifest(one: Json) -> Json:
        told: Json = client.get(f"runs/{run['id']}/checkpoints/{one['id']}/manifest")
        return told

    try:
        first = min(
            (one for one in known if one["attempt"] == attempt["no"]), key=lambda one: one["step"], default=None
        )
        if first is not None:
            parent = manifest(first)["parent"]
            source = next(one for one in run["checkpoints"] if one["path"] == parent)
        else:
            source = next(
                one for one in known if (one["step"], one["attempt"] < attempt["no"]) == (attempt["resume_step"], True)
            )
        return int(manifest(source)["step"])
    except (ApiError, StopIteration):
        return None


def _rsa(told: Json) -> Json:
    """pass@1, majority and Markovian RSA of the evaluation stage, at equal generated tokens."""
    stage = next((one for one in told["stages"] if one["role"] == "evaluate"), None)
    own = _own(stage) if stage else []
    names = ("tokens_per_problem", "plain_tokens_per_problem", "pass@1", "maj", "rsa", "problems", "constant_baseline")
    return {name: own[-1]["metrics"].get(name) if own else None for name in names}


def _release(told: Json, runs: Path) -> Json:
    stage = next((one for one in told["stages"] if one["role"] == "release"), None)
    own = _own(stage) if stage else []
    if stage is None or not own:
        return {"path": None, "checkpoint_hash": None, "loads": False}
    path = runs / own[-1]["id"] / "release"
    loads = own[-1]["metrics"].get("loads") == 1.0 and (path / "model.safetensors").is_file()
    difference = own[-1]["metrics"].get("logit_difference")
    hash_ = stage["candidate"]["hash"] if stage["candidate"] else None
    return {"path": str(path), "checkpoint_hash": hash_, "loads": loads, "logit_difference": difference}


# --- checks ----------------------------------------------------------------------------------------------------------


def _by(outcome: Json, name: str) -> Json:
    return next(one for one in outcome["stages"] if one["stage"] == name)


def _learned(outcome: Json) -> bool:
    texts = [one for one in outcome["stages"] if one["metric"] == "loss" and one["stage"] != "midtrain"]
    return bool(texts) and all(one["last"] < 0.9 * one["first"] for one in texts)


def _spike_left(outcome: Json) -> bool:
    """Midtraining begins with a text that it has not seen: its loss is to end below the shard's, and finite."""
    stage = _by(outcome, "midtrain")
    return stage["last"] is not None and stage["last"] < 1.2 * stage["first"]


def _raised(stage: str) -> tuple[str, tuple[str, ...], Callable[[Json], bool]]:
    """The check that a stage of reinforcement learning has raised accuracy."""
    words = (
        f"{stage} ended {TOLERANCE:g} standard errors above where its learning began and the best constant answer, "
        "on held-out problems"
    )
    return words, ("sft", stage), lambda outcome: rose(_by(outcome, stage)["learning"])


def _chained(outcome: Json) -> bool:
    """Each stage started from exactly the checkpoint with which the one before it passed."""
    hashes = [one["checkpoint_hash"] for one in outcome["stages"]]
    starts = [one["init_hash"] for one in outcome["stages"]]
    return starts[0] is None and None not in hashes and starts[1:] == hashes[:-1]


def _resumed(outcome: Json) -> bool:
    restarted = [one for one in outcome["stages"] if one["first_step_after_restart"] is not None]
    return bool(restarted) and all(map(_went_on, restarted))


CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Json], bool]], ...] = (
    ("the lifecycle succeeded", (), lambda o: o["lifecycle"]["status"] == "succeeded"),
    ("every stage passed", (), lambda o: all(one["state"] == "passed" for one in o["stages"])),
    ("each stage started from the checkpoint with which the one before passed", (), _chained),
    ("every restarted attempt went on at its manifest's step + 1", ("pretrain",), _resumed),
    ("the loss fell in pretraining and fine-tuning", ("pretrain", "sft"), _learned),
    ("midtraining left the bad shard behind", ("midtrain",), _spike_left),
    (
        "MaxVio fell in pretraining: the experts were balanced",
        ("pretrain",),
        lambda o: _by(o, "pretrain")["max_vio"]["last"] < 0.7 * _by(o, "pretrain")["max_vio"]["first"],
    ),
    *map(_raised, TAUGHT),
    ("every drill was got over", (), lambda o: bool(o["drills"]) and all(one["recovered"] for one in o["drills"])),
    ("a node fault excluded its node", ("sft",), lambda o: _decision(o, "node fault") == "restart_exclude"),
    (
        "a loss spike rolled back and skipped its data",
        ("midtrain",),
        lambda o: _decision(o, "loss spike") == "restart_rollback",
    ),
    (
        "methods were compared at equal generated tokens",
        ("evaluate",),
        lambda o: (
            o["rsa"]["rsa"] is not None
            and abs(o["rsa"]["tokens_per_problem"] - o["rsa"]["plain_tokens_per_problem"])
            <= 0.1 * o["rsa"]["tokens_per_problem"]
        ),
    ),
    (
        "the released model loads in transformers in a fresh process",
        ("release",),
        lambda o: bool(o["release"]["loads"]),
    ),
    (
        "the release is of the checkpoint that was evaluated",
        ("evaluate", "release"),
        lambda o: o["release"]["checkpoint_hash"] == _by(o, "evaluate")["checkpoint_hash"],
    ),
)
"""(sentence, the stages that it is about, whether it holds); a plan cut to some stages is asked about those alone."""


def _decision(outcome: Json, kind: str) -> str | None:
    return next((one["decision"] for one in outcome["drills"] if one["kind"] == kind), None)


def failures(outcome: Json) -> list[str]:
    """The sentences of the checks that do not hold."""
    failed = []
    there = {one["stage"] for one in outcome["stages"]}
    for sentence, about, holds in CHECKS:
        if not there.issuperset(about):
            continue
        try:
            good = holds(outcome)
        except (TypeError, KeyError, IndexError, StopIteration, ValueError):
            good = False
        if not good:
            failed.append(sentence)
    return failed
