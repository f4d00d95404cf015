"""Messages leave here: claim, commit, send, mark. Nothing is sent inside a database transaction.

A process that dies between the receiver's answer and the mark leaves its claim behind; the message is then sent again
under the same id, and the receiver drops it. Also the channels: what an administrator may set, and their test.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.ids import uuid7
from controlplane.notify.address import UrlPolicy, UrlRefused
from controlplane.notify.webhook import TIMEOUT_S, Outcome, Sender, new_secret, secret_key
from controlplane.store import deliveries, events
from controlplane.store.deliveries import Claim
from controlplane.store.engine import Session, Store
from controlplane.store.tables import Channel

LADDER_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21_600.0, 86_400.0)
"""After the first try at once: 5 s, 30 s, 2, 10, 30 min, 2, 6, 24 h; then the message is dead."""
JITTER = 0.2
CLAIM_S = 2 * TIMEOUT_S
PER_CHANNEL = 4
LONGEST_WAIT_S = LADDER_S[-1]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one message in this round."""

    delivery_id: str
    incident: int | None
    """the number of the incident that it is of; None for one of a lifecycle"""
    seq: int
    channel: str
    state: str
    """told, ready (again later) or dead; "lost" if somebody else had taken the claim over"""
    error: str = ""


def deliver_once(
    store: Store, senders: Mapping[str, Sender], now: float, *, chance: random.Random | None = None
) -> list[Delivered]:
    """Sends what is due, channels side by side, each channel's messages one after the other. [] if nothing was due.

    senders: by kind of channel. After a try without any answer the rest of that channel's claims are given back unsent,
    so that a dead receiver costs one timeout a round.
    """
    with store.read() as session:
        if not deliveries.is_due(session, now=now, claim_s=CLAIM_S):
            return []
    with store.write() as session:
        claims = deliveries.claim(session, now=now, claim_s=CLAIM_S, per_channel=PER_CHANNEL)
    by_channel: dict[str, list[Claim]] = {}
    for claim in claims:
        by_channel.setdefault(claim.channel, []).append(claim)
    if not by_channel:
        return []
    dice = chance or random.Random()
    with ThreadPoolExecutor(max_workers=min(8, len(by_channel))) as pool:
        rounds = pool.map(lambda group: _one_channel(store, senders, group, now, dice), by_channel.values())
        return [delivered for found in rounds for delivered in found]


def _one_channel(
    store: Store, senders: Mapping[str, Sender], claims: Sequence[Claim], now: float, dice: random.Random
) -> list[Delivered]:
    done: list[Delivered] = []
    passed_s = 0.0
    for index, claim in enumerate(claims):
        sender = senders.get(claim.kind)
        if sender is None:
            outcome = Outcome(ok=False, error=f"no sender for channels of kind {claim.kind}", unsent=True)
        else:
            outcome = sender.send(claim.config, claim.id, claim.body, now + passed_s)
        passed_s += outcome.seconds
        with store.write() as session:
            done.append(_mark(session, claim, outcome, now + passed_s, dice))
            if outcome.gone or (not outcome.ok and outcome.status is None):
                for rest in claims[index + 1 :]:
                    deliveries.give_back(session, rest, due_s=now + passed_s + LADDER_S[0])
                break
    return done


def _mark(session: Session, claim: Claim, outcome: Outcome, now: float, dice: random.Random) -> Delivered:
    if outcome.ok:
        held = deliveries.mark_told(session, claim, now=now)
        state = "told"
    else:
        due_s = None if outcome.gone else _next_try_s(claim.tries, outcome, now, dice)
        held = deliveries.mark_failed(session, claim, error=outcome.error, due_s=due_s)
        state = "dead" if due_s is None else "ready"
        if held and due_s is None:
            _note_dead(session, claim, outcome, now)
        if outcome.gone:
            deliveries.pause_channel(session, claim.channel)
    return Delivered(claim.id, claim.number, claim.seq, claim.channel, state if held else "lost", outcome.error)


def _next_try_s(tries: int, outcome: Outcome, now: float, dice: random.Random) -> float | None:
    """When the next try is due after `tries` failed ones: the ladder with jitter, or later if the receiver asked."""
    if tries > len(LADDER_S):
        return None
    wait_s = LADDER_S[tries - 1] * dice.uniform(1 - JITTER, 1 + JITTER)
    asked_s = min(outcome.retry_after_s or 0.0, LONGEST_WAIT_S)
    return now + max(wait_s, asked_s)


def _note_dead(session: Session, claim: Claim, outcome: Outcome, now: float) -> None:
    paused = "; the receiver is gone (410), the channel is paused" if outcome.gone else ""
    tries = "1 try" if claim.tries == 1 else f"{claim.tries} tries"
    lane, about, link = "rule", "", {"kind": "incident", "id": str(claim.number)}
    if claim.number is not None:
        about = f"INC-{claim.number:04d}"
    else:
        stage = str(claim.body["data"]["stage"] or "")
        about = f"{claim.name}, stage {stage}" if stage else f"the end of {claim.name}"
        lane, link = "lifecycle", {"kind": "lifecycle", "id": str(claim.lifecycle_id)}
    events.add(
        session,
        at_s=now,
        kind="delivery_dead",
        sentence=f"{claim.channel} was not told of {about}: given up after {tries}{paused}",
        incident_id=claim.incident_id,
        lifecycle_id=claim.lifecycle_id,
        data={"lane": lane, "level": "warn", "detail": outcome.error, "link": link},
    )


# --- channels --------------------------------------------------------------------------------------------------------


class ChannelRefused(ValueError):
    """The channel cannot be set like this; `path` names the field."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message


def list_channels(store: Store) -> list[dict[str, Any]]:
    """Every channel as a reader may see it: without its secret, and of its URL without the query."""
    with store.read() as session:
        return [_shown(channel) for channel in deliveries.channels(session)]


def put_channel(
    store: Store, policy: UrlPolicy, name: str, *, kind: str, url: str, secret: str | None = None, enabled: bool = True
) -> dict[str, Any]:
    """Makes or changes a channel; for administrators. Returns it, with `secret` only if it was made here just now.

    A secret stays while the URL stays; a new URL needs its own, so that nobody can point a known secret elsewhere.
    ChannelRefused names the field.
    """
    if kind != "webhook":
        raise ChannelRefused("kind", f"there are channels of kind webhook, not {kind!r}")
    if not name or len(name) > 63 or not name.replace("-", "").isalnum() or not name.isascii():
        raise ChannelRefused("name", "a name has letters, digits and hyphens, 63 at most")
    try:
        policy.check(url)
    except UrlRefused as error:
        raise ChannelRefused("url", str(error)) from error
    try:
        given = secret and (secret_key(secret), secret)[1]
    except ValueError as error:
        raise ChannelRefused("secret", str(error)) from error
    with store.write() as session:
        before = deliveries.channel(session, name)
        kept = before.config.get("secret") if before is not None and before.config.get("url") == url else None
        chosen = given or kept or new_secret()
        channel = deliveries.put_channel(
            session, name, kind=kind, config={"url": url, "secret": chosen}, enabled=enabled
        )
        shown = _shown(channel)
    return shown if given or kept else {**shown, "secret": chosen}


def test_channel(store: Store, senders: Mapping[str, Sender], name: str, *, actor: str, now: float) -> Outcome:
    """Sends one marked message at once and says what came of it. LookupError if there is no such channel."""
    with store.read() as session:
        channel = deliveries.channel(session, name)
        if channel is None:
            raise LookupError(f"there is no channel {name}")
        kind, config = channel.kind, dict(channel.config)
    sender = senders.get(kind)
    if sender is None:
        return Outcome(ok=False, error=f"no sender for channels of kind {kind}", unsent=True)
    body = {
        "type": "channel.test",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {"channel": name, "sentence": f"{actor} tests the channel {name}. Nothing has happened."},
    }
    return sender.send(config, uuid7(now), body, now)


def _shown(channel: Channel) -> dict[str, Any]:
    url, _, query = str(channel.config.get("url", "")).partition("?")
    return {
        "name": channel.name,
        "kind": channel.kind,
        "url": f"{url}?…" if query else url,
        "enabled": channel.enabled,
        "signed": bool(channel.config.get("secret")),
    }
