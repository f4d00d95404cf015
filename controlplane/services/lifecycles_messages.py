"""What a lifecycle tells the channels: a stage waits for a person, the whole has succeeded or failed.

One outbox row a channel in the transaction of the state that it tells, as for incidents; services.deliveries sends it.
A hold is told once. Its end is not told, and what nobody has tried to send by then is withdrawn: nobody is to be called
to a decision that was made. A cancellation is a person's own doing and is not told either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from controlplane.runs.lifecycle_gates import short
from controlplane.runs.lifecycle_states import APPROVABLE
from controlplane.store import deliveries
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from controlplane.store.tables import LifecycleStage

Pages = Callable[[], str]
HELD, SUCCEEDED, FAILED = "lifecycle.held", "lifecycle.succeeded", "lifecycle.failed"
_ENDS: Mapping[str, str] = {"succeeded": SUCCEEDED, "failed": FAILED}
WHY_CHARS = 2000
"""of a reason in a message; the page has it whole"""
MOST_REQUIREMENTS = 20
_DO: Mapping[str, str] = {
    "approval": "Approve",
    "refused": "Decide",
    "failed": "Try again or cancel",
    "budget": "Decide",
    "tainted": "Decide",
}


def no_pages() -> str:
    """Of a server that has no dashboard: its messages bear no link."""
    return ""


def tell_held(session: Session, found: Executed, row: LifecycleStage, pages: Pages, *, now: float) -> None:
    """A stage was held just now, or for another reason than before."""
    _tell(session, found, HELD, held_words(found.state.name, row), pages, row, now=now)


def tell_end(session: Session, found: Executed, pages: Pages, *, now: float) -> None:
    """The lifecycle has succeeded or failed; of another state nobody is told."""
    kind = _ENDS.get(found.state.status)
    if kind is None:
        return
    failed = [one for one in found.stages if one.state == "failed"] if kind == FAILED else []
    parts = [found.state.reason, *(f"{one.name}: {one.reason}" for one in failed)]
    _tell(session, found, kind, _cut(" ".join(parts)), pages, None, now=now)


def withdraw(session: Session, found: Executed, row: LifecycleStage) -> None:
    """The stage is not held any more: who was not told of it yet need not be."""
    deliveries.withdraw_of_stage(session, found.id, row.name)


def held_words(name: str, row: LifecycleStage) -> str:
    """walk waits for approval at sft: pass@1 0.25 > constant_baseline 0.02. Checkpoint 69c6f8f12c48, step 1000."""
    if row.hold not in APPROVABLE:
        return _cut(f"{name} is held at {row.name}: {_why(row)}.")
    step = f", step {row.candidate_step}" if row.candidate_step is not None else ""
    about = f"Checkpoint {short(row.candidate_hash)}{step}."
    if row.hold == "approval":
        measured = "; ".join(_measured(row.verdict))
        return _cut(f"{name} waits for approval at {row.name}{f': {measured}' if measured else ''}. {about}")
    return _cut(f"{name} is held at {row.name}: {_refused(row)}. {about}")


def _why(row: LifecycleStage) -> str:
    """A stage's reason, to go on with after its name."""
    told = re.sub(rf"^Stage {re.escape(row.name)} (is held[.:]\s*)?", "", row.reason)
    return (told if told.startswith(("its ", "run ", "checkpoint ")) else f"it {told}").rstrip(".")


def _refused(row: LifecycleStage) -> str:
    against = _measured(row.verdict, ok=False)
    if not against:
        return str((row.verdict or {}).get("sentence") or row.reason).rstrip(".")
    return f"its gate refuses: {'; '.join(against)}"


def _measured(verdict: Mapping[str, Any] | None, *, ok: bool = True) -> list[str]:
    """pass@1 0.25 > constant_baseline 0.02, of each requirement that holds, or that does not."""
    return [_requirement(one) for one in (verdict or {}).get("requirements", ()) if one["ok"] is ok]


def _requirement(one: Mapping[str, Any]) -> str:
    if one["value"] is None or one["bound"] is None:
        return str(one["sentence"])
    named = str(one["requirement"]).split()[-1]
    bound = f"{one['bound']:.4g}" if _is_number(named) else f"{named} {one['bound']:.4g}"
    said = f"{one['metric']} {one['value']:.4g} {one['op']} {bound}"
    return said if one["ok"] else f"{said} does not hold"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cut(words: str) -> str:
    return words if len(words) <= WHY_CHARS else f"{words[:WHY_CHARS]}…"


def _tell(
    session: Session,
    found: Executed,
    kind: str,
    words: str,
    pages: Pages,
    row: LifecycleStage | None,
    *,
    now: float,
) -> None:
    channels: Sequence[str] = [one.name for one in deliveries.channels(session, enabled=True)]
    if not channels:
        return
    found.state.seq += 1
    body = message(found, kind, words, pages(), row, now)
    for channel in channels:
        deliveries.add(
            session, lifecycle_id=found.id, seq=found.state.seq, channel=channel, body=body, due_s=now, now=now
        )


def message(
    found: Executed, kind: str, words: str, pages: str, row: LifecycleStage | None, now: float
) -> dict[str, Any]:
    """A message's body in the shape that Standard Webhooks proposes: type, timestamp, data.

    `sentence` is whole, its link included, for a receiver that only shows text; `link` is None where the server knows
    no dashboard of its own, `page` is the same without its address.
    """
    state, asked = found.state, _asked(row)
    page = f"lifecycle?{urlencode({'lifecycle': found.id, **({'stage': row.name} if row is not None else {})})}"
    link = f"{pages}/{page}" if pages else None
    do = _DO.get(row.hold, "Decide") if row is not None else "See"
    return {
        "type": kind,
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "lifecycle": found.id,
            "name": state.name,
            "seq": state.seq,
            "edit": False,
            "status": state.status,
            "stage": row.name if row is not None else None,
            "hold": row.hold if row is not None else None,
            "checkpoint_hash": (row.candidate_hash or None) if row is not None else None,
            "step": row.candidate_step if row is not None else None,
            "requirements": asked,
            "sentence": f"{words} {do}: {link}" if link else words,
            "link": link,
            "page": page,
            "passed": sum(one.state == "passed" for one in found.stages),
            "stages": len(found.stages),
            "created_s": state.created_s,
            "ended_s": state.ended_s,
        },
    }


def _asked(row: LifecycleStage | None) -> list[dict[str, Any]]:
    """What the gate that holds the stage required and found; a receiver takes no message of any length."""
    if row is None or row.hold not in APPROVABLE:
        return []
    judged = (row.verdict or {}).get("requirements", ())[:MOST_REQUIREMENTS]
    return [{name: one[name] for name in ("requirement", "value", "bound", "ok")} for one in judged]
