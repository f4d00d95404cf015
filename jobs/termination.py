"""How a job's command ended on a node: the launcher's last record, and the one reader of it. Standard library only.

`jobs.launch` writes it beside the heartbeats and, cut to what fits, into a pod's termination message. Whoever starts
launchers reads it here. It decides nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.manifest import is_finite, is_text, is_whole, write_json

TERMINATION = "termination.json"
"""the record's name in the heartbeat directory"""
_KEPT_BYTES = 4096
"""what a pod's status keeps of a termination message"""


@dataclass(frozen=True)
class Termination:
    """How the command ended on this node: the agreed code, its class, and the first failing rank's error.

    Classes: done, saved, numerics, bad_node, configuration; error (a rank's own), peer_lost (another node's end seen
    from here), killed (from outside: a rank that had begun left no record, or was told to stop too late to save).
    """

    code: int
    ended_as: str
    fingerprint: str
    message: str
    first_rank: int | None
    at_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As the record holds it; `ended_as` is named class there."""
        found = asdict(self)
        found["class"] = found.pop("ended_as")
        return found


def write_termination(directory: Path, ended: Termination) -> None:
    """Leaves the record where whoever started the launcher finds it; OSError when it cannot be written."""
    write_json(directory / TERMINATION, ended.to_dict(), durable=True)


def short_form(ended: Termination) -> str:
    """The record as JSON that a pod's status keeps whole: a longer message is cut, never the record."""
    letters = 1500
    short = replace(ended, message=ended.message[:letters], fingerprint=ended.fingerprint[:300])
    while len(text := json.dumps(short.to_dict())) > _KEPT_BYTES and letters:  # a letter may take twelve bytes
        letters //= 2
        short = replace(short, message=short.message[:letters], fingerprint=short.fingerprint[:letters])
    return text


def read_termination(directory: Path) -> dict[str, object] | None:
    """The record of a heartbeat directory; None when there is none, or none that can be understood."""
    try:
        body = (directory / TERMINATION).read_bytes()
    except OSError:
        return None
    return parse_termination(body)


def parse_termination(body: bytes | str) -> dict[str, object] | None:
    """A record as its fields (code, class, fingerprint, message, first_rank, at_s in Unix seconds); None if it is none.

    Raises nothing: it was written by whatever ran there.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not is_whole(found.get("code")) or not is_finite(found.get("at_s")):
        return None
    if not all(is_text(found.get(name)) for name in ("class", "fingerprint", "message")):
        return None
    rank = found.get("first_rank")
    return found if rank is None or is_whole(rank) else None
