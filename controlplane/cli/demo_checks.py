"""What the demo claims: read back through the public API, then judged, each claim by a named check with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from controlplane.client import ApiError, Client

Json = dict[str, Any]
WINDOW = 16


def gather(client: Client, run: Json, seconds: Json) -> Json:
    """The JSON object of the demo's last line. What did not happen is None."""
    run_id = run["id"]
    why = client.why(run_id)
    restart = why["restarts"][0] if why["restarts"] else None
    decision = next((one for one in run["decisions"] if one["incident"] is not None), None)
    number = decision["incident"] if decision else _any_incident(client)
    incident = client.get(f"incidents/{number}") if number is not None else None
    attempts = run["attempts"]
    after = attempts[1] if len(attempts) > 1 else None
    fault_s = restart["fault"]["onset_s"] if restart and restart["fault"] else None
    return {
        "run": {"id": run_id, "status": run["status"]},
        "attempts": [
            {
                "no": a["no"],
                "first_step": a["first_step"],
                "last_step": a["last_step"],
                "nodes": a["nodes"],
                "end": a["state"],
            }
            for a in attempts
        ],
        "resume": {"step": after["resume_step"] if after else None, "manifest_step": _manifest_step(client, run)},
        "decision": _decision(decision),
        "incident": _incident(incident),
        "maxvio": _maxvio(client, run_id),
        "loss": _loss(client.get(f"runs/{run_id}/steps", points=5000)),
        "stored": client.get(f"runs/{run_id}/stored"),
        "checkpoints": {state: _steps(run, state) for state in ("validated", "tainted")},
        "goodput": {name: run["goodput"][name] for name in ("percent", "unattributed_percent")},
        "seconds": {**seconds, **_delays(fault_s, incident, decision, after)},
    }


def _any_incident(client: Client) -> int | None:
    found = client.get("incidents")["incidents"]
    return int(found[0]["number"]) if found else None


def _manifest_step(client: Client, run: Json) -> int | None:
    """The step that attempt 2 really went on from, on a path of its own: the newest checkpoint of attempt 2 names its
    parent in its manifest, and the parent's manifest, read from disk, says its step. No row of the controller's choice
    is looked at.
    """
    own = next((one for one in run["checkpoints"] if one["attempt"] == 2 and one["state"] == "validated"), None)
    try:
        parent = _manifest(client, run, own)["parent"] if own else None
        source = next((one for one in run["checkpoints"] if one["path"] == parent), None)
        return int(_manifest(client, run, source)["step"]) if source else None
    except ApiError:
        return None


def _manifest(client: Client, run: Json, checkpoint: Json) -> Json:
    found: Json = client.get(f"runs/{run['id']}/checkpoints/{checkpoint['id']}/manifest")
    return found


def _steps(run: Json, state: str) -> list[int]:
    return sorted(one["step"] for one in run["checkpoints"] if one["state"] == state)


def _decision(found: Json | None) -> Json:
    names = ("action", "reason", "excluded_nodes", "state", "verification")
    return {name: found[name] if found else None for name in names}


def _incident(found: Json | None) -> Json:
    return {name: found[name] if found else None for name in ("rule", "state", "node", "gpu", "number")}


def _maxvio(client: Client, run_id: str) -> Json:
    try:
        told = client.get(f"runs/{run_id}/experts/summary")["maxvio"]
    except ApiError:
        told = {}
    return {"first_window": told.get("first_window"), "last_window": told.get("last_window")}


def _loss(series: Json) -> Json:
    """Mean loss of the first 16 steps of attempt 1 and of the last 16 of the run, in nats a byte."""
    parts = [[value for value in part["loss"] if value is not None] for part in series["attempts"]]
    if not parts or not all(parts):
        return {"first_window": None, "last_window": None}
    return {"first_window": fmean(parts[0][:WINDOW]), "last_window": fmean(parts[-1][-WINDOW:])}


def _delays(fault_s: float | None, incident: Json | None, decision: Json | None, after: Json | None) -> Json:
    def since(moment: float | None) -> float | None:
        return round(moment - fault_s, 3) if moment is not None and fault_s is not None else None

    told = [one["told_s"] for one in incident["deliveries"] if one["told_s"] is not None] if incident else []
    return {
        "fault_to_incident": since(incident["opened_s"] if incident else None),
        "fault_to_message": since(min(told, default=None)),
        "fault_to_decision": since(decision["created_s"] if decision else None),
        "fault_to_first_step_of_attempt_2": since(after["first_step_s"] if after else None),
    }


def _falls(pair: Json, to: float) -> bool:
    first, last = pair["first_window"], pair["last_window"]
    return first is not None and last is not None and last < to * first


CHECKS: tuple[tuple[str, Callable[[Json], bool]], ...] = (
    ("the run succeeded", lambda o: o["run"]["status"] == "succeeded"),
    ("an incident of rule hbm-uncorrectable was opened", lambda o: o["incident"]["rule"] == "hbm-uncorrectable"),
    (
        "there are two attempts: the first superseded, the second succeeded",
        lambda o: [a["end"] for a in o["attempts"]] == ["superseded", "succeeded"],
    ),
    ("the decision was to restart without the node", lambda o: o["decision"]["action"] == "restart_exclude"),
    ("the decision came true", lambda o: o["decision"]["state"] == "verified"),
    ("the node of the incident was excluded", lambda o: o["decision"]["excluded_nodes"] == [o["incident"]["node"]]),
    (
        "attempt 2 ran without the faulty node",
        lambda o: len(o["attempts"]) == 2 and o["incident"]["node"] not in o["attempts"][1]["nodes"],
    ),
    (
        "attempt 2 resumed at exactly the manifest's step",
        lambda o: o["resume"]["step"] is not None and o["resume"]["step"] == o["resume"]["manifest_step"],
    ),
    (
        "attempt 2's first step is the manifest's step + 1",
        lambda o: len(o["attempts"]) == 2 and o["attempts"][1]["first_step"] == (o["resume"]["manifest_step"] or 0) + 1,
    ),
    ("a checkpoint computed since the last clean sample was tainted", lambda o: bool(o["checkpoints"]["tainted"])),
    (
        "the run went on from before every tainted checkpoint",
        lambda o: o["resume"]["step"] is not None and all(o["resume"]["step"] < s for s in o["checkpoints"]["tainted"]),
    ),
    ("the loss fell", lambda o: _falls(o["loss"], 0.8)),
    ("MaxVio fell: the experts were balanced", lambda o: _falls(o["maxvio"], 0.7)),
    (
        "every step's expert record is stored",
        lambda o: o["stored"]["expert_records"] >= (o["attempts"][-1]["last_step"] or 1),
    ),
    ("GPU samples are stored", lambda o: o["stored"]["gpu_samples"] > 0),
    ("the message about the fault arrived", lambda o: o["seconds"]["fault_to_message"] is not None),
)


def failures(outcome: Json) -> list[str]:
    """The sentences of the checks that do not hold."""
    failed = []
    for sentence, holds in CHECKS:
        try:
            good = holds(outcome)
        except (TypeError, KeyError, IndexError):
            good = False
        if not good:
            failed.append(sentence)
    return failed
