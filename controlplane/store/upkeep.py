"""What a loop does for the store every now and then: merging short chunks, thinning old ones, forgetting the oldest."""

from __future__ import annotations

from controlplane.store import audit, expert_merging, expert_thinning, last_words, steps, telemetry
from controlplane.store.engine import Store
from controlplane.store.expert_thinning import Policy

KEEP_TELEMETRY_S = 30 * 86_400.0
KEEP_ANSWERS_S = 86_400.0
_BITES = 20


def compact_once(store: Store, now: float) -> int:
    """Merges what is due of telemetry, expert and step chunks; returns how many chunks were merged away.

    Meant for every ten seconds or so; several servers may do it at once.
    """
    return telemetry.compact_once(store, now) + expert_merging.compact_once(store) + steps.compact_once(store)


def prune_once(store: Store, now: float, *, keep_s: float = KEEP_TELEMETRY_S, thinning: Policy | None = None) -> int:
    """Forgets telemetry and members' last words older than `keep_s`, and answers kept for a day; thins expert records.

    In short transactions; returns the rows of telemetry.
    """
    forgotten = 0
    for _ in range(_BITES):
        bite = telemetry.prune_once(store, before_s=now - keep_s)
        forgotten += bite
        if not bite:
            break
    with store.write() as session:
        audit.forget(session, before_s=now - KEEP_ANSWERS_S)
        last_words.forget(session, before_s=now - keep_s)
    expert_thinning.thin_once(store, now, thinning or Policy())
    return forgotten
