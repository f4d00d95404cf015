"""/api/v1: sessions, tokens, incidents, rules, channels, audit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BeforeValidator, Field

from controlplane.api.access import Admin, Caller, Operator, Parts, Viewer, note
from controlplane.api.deeds import Asked, Doing
from controlplane.api.problems import Problem, chosen, not_found
from controlplane.rules import book
from controlplane.services import deliveries, incidents, tokens, views_incidents
from controlplane.services.tokens import TokenRefused
from controlplane.store import audit
from controlplane.store import tokens as token_rows
from controlplane.store.base import INCIDENT_STATES
from controlplane.store.engine import Joined, Session
from controlplane.store.tables import Token

router = APIRouter(tags=["people"])
Json = dict[str, Any]
DAY_S = 86_400.0


def _number(given: Any) -> Any:
    """An incident is named by its number or by its label: 7, INC-0007."""
    return given.upper().removeprefix("INC-") if isinstance(given, str) else given


Number = Annotated[
    int, BeforeValidator(_number), Path(le=2**53, description="the incident's number, or its label: INC-0007")
]


class Code(Asked):
    """A one-time code of a link, or a personal token."""

    code: str = Field(max_length=200)


class NewToken(Asked):
    """A token to make: for a person with a role, for the agent of a node, or a one-time link."""

    kind: Literal["personal", "agent", "link"]
    subject: str = Field(default="", max_length=100)
    role: Literal["viewer", "operator", "admin"] | None = None
    node: str | None = Field(default=None, max_length=253)
    days: float = Field(default=30, gt=0, le=90)


class Silence(Asked):
    """How long nobody is told, and why."""

    minutes: float = Field(gt=0, le=incidents.MAX_SILENCE_MINUTES)
    reason: str = Field(min_length=1, max_length=500)


class Resolution(Asked):
    """Why an incident is over."""

    reason: str = Field(min_length=1, max_length=500)


class NewChannel(Asked):
    """A webhook receiver; without a secret one is made and shown once."""

    kind: str = "webhook"
    url: str = Field(max_length=2000)
    secret: str | None = None
    enabled: bool = True


@router.get("/session")
def session(parts: Parts, caller: Caller) -> Json:
    """Who the caller is, and where the pages are."""
    return {"actor": caller.actor, "role": caller.role, "kind": caller.kind, "dashboard": parts.dashboard() or None}


@router.post("/session/open")
def open_session(parts: Parts, body: Code) -> Json:
    """Spend a one-time link, or show a personal token, for a session of twelve hours."""
    try:
        with parts.store.write() as db:
            token, role, ends = tokens.open_session(db, body.code, parts.clock.now())
    except TokenRefused as error:
        raise Problem(401, "bad_link", "The link opens nothing", str(error), "Ask for a new one.") from error
    return {"token": token, "role": role, "expires_s": ends}


@router.delete("/session")
def end_session(request: Request, parts: Parts, caller: Caller) -> Json:
    """End the caller's session; other tokens stay."""
    if caller.kind == "login":
        with parts.store.write() as db:
            token_rows.revoke(db, caller.token_id, now=parts.clock.now())
        request.app.state.identities.clear()
    return {"ended": caller.kind == "login"}


@router.get("/tokens")
def list_tokens(parts: Parts, _caller: Admin) -> Json:
    """Tokens of people and agents, without their secrets."""
    with parts.store.read() as db:
        now = parts.clock.now()
        return {"tokens": [_token(row, now) for row in token_rows.listed(db, ("personal", "agent", "login", "link"))]}


def _token(row: Token, now: float) -> Json:
    expired = row.expires_s is not None and row.expires_s <= now
    state = "revoked" if row.revoked_s is not None else "expired" if expired else "living"
    names = (
        "id",
        "kind",
        "role",
        "subject",
        "node",
        "created_s",
        "created_by",
        "expires_s",
        "revoked_s",
        "last_used_s",
    )
    return {"state": state, **{name: getattr(row, name) for name in names}}


@router.post("/tokens", status_code=201)
def make_token(parts: Parts, caller: Admin, deed: Doing, body: NewToken) -> Json:
    """Make a token; it is in this answer and never again, also not for the same Idempotency-Key."""
    if body.kind == "agent" and not body.node:
        raise Problem(422, "bad_request", "An agent's token names its node")
    if body.kind != "agent" and body.role is None:
        raise Problem(422, "bad_request", "A person's token has a role: viewer, operator or admin")

    def act(session: Session) -> Json:
        now = parts.clock.now()
        life = tokens.LINK_S if body.kind == "link" else body.days * DAY_S
        token = tokens.issue(
            session,
            kind=body.kind,
            subject=body.subject or (f"agent of {body.node}" if body.kind == "agent" else caller.actor),
            now=now,
            created_by=caller.actor,
            life_s=life,
            role=body.role if body.kind != "agent" else None,
            node=body.node if body.kind == "agent" else None,
        )
        row = token_rows.by_hash(session, tokens.digest(token))
        deed.note(session, "made", {"kind": body.kind, "role": body.role, "node": body.node})
        return {"id": row.id if row else None, "token": token, "kind": body.kind, "expires_s": now + life}

    return deed.once(body.model_dump(), act, shown_once="token")


@router.delete("/tokens/{token_id}")
def revoke_token(request: Request, parts: Parts, caller: Admin, token_id: str) -> Json:
    """End a token at once."""
    with parts.store.write() as db:
        ended = token_rows.revoke(db, token_id, now=parts.clock.now())
    if not ended:
        raise not_found("living token", token_id)
    request.app.state.identities.clear()
    note(request, parts, caller, "revoked")
    return {"revoked": token_id}


@router.get("/incidents")
def list_incidents(parts: Parts, _caller: Viewer, state: str | None = None, limit: int = 200) -> Json:
    """Incidents, newest first."""
    states = chosen("state", state, INCIDENT_STATES)
    limit = max(1, min(limit, 1000))
    return {"incidents": views_incidents.rows(parts.store, parts.clock.now(), states=states, limit=limit)}


@router.get("/incidents/{number}")
def read_incident(parts: Parts, _caller: Viewer, number: Number) -> Json:
    """One incident, whole: sentence, timeline, faults, decisions, messages."""
    found = views_incidents.view(parts.store, parts.book, number, parts.clock.now())
    if found is None:
        raise not_found("incident", number)
    return found


@router.post("/incidents/{number}/ack")
def ack(parts: Parts, caller: Operator, deed: Doing, number: Number) -> Json:
    """Take an incident for four hours."""

    def act(session: Session) -> Json:
        incidents.ack(Joined(session), number, actor=caller.actor, now=parts.clock.now())
        deed.note(session, "done")
        return {"incident": number, "owner": caller.actor}

    return deed.once(None, act)


@router.post("/incidents/{number}/resolve")
def resolve(parts: Parts, caller: Operator, deed: Doing, number: Number, body: Resolution) -> Json:
    """End an incident by hand; while its cause fires it stays quiet."""

    def act(session: Session) -> Json:
        now = parts.clock.now()
        incidents.resolve(Joined(session), number, actor=caller.actor, reason=body.reason, now=now)
        deed.note(session, "done", body.model_dump())
        return {"incident": number}

    return deed.once(body.model_dump(), act)


@router.post("/incidents/{number}/silence")
def silence(parts: Parts, caller: Operator, deed: Doing, number: Number, body: Silence) -> Json:
    """Tell nobody of this incident for some minutes."""

    def act(session: Session) -> Json:
        now, told = parts.clock.now(), body.model_dump()
        incidents.silence(Joined(session), number, actor=caller.actor, now=now, **told)
        deed.note(session, "done", told)
        return {"incident": number, "minutes": body.minutes}

    return deed.once(body.model_dump(), act)


@router.get("/rules")
def list_rules(parts: Parts, _caller: Viewer) -> Json:
    """Every rule in force, the agents' and the server's."""
    return {"rules": book.listed(parts.book)}


@router.get("/channels")
def list_channels(parts: Parts, _caller: Viewer) -> Json:
    """Where messages go, without secrets."""
    return {"channels": deliveries.list_channels(parts.store)}


@router.put("/channels/{name}")
def put_channel(request: Request, parts: Parts, caller: Admin, name: str, body: NewChannel) -> Json:
    """Make or change a channel; a new URL needs its own secret, and one that is made is shown once."""
    shown = deliveries.put_channel(
        parts.store, parts.policy, name, kind=body.kind, url=body.url, secret=body.secret, enabled=body.enabled
    )
    note(request, parts, caller, "set", {"kind": body.kind, "url": shown["url"]})
    return shown


@router.post("/channels/{name}/test")
def test_channel(parts: Parts, caller: Admin, deed: Doing, name: str) -> Json:
    """Send one marked message now."""

    def act() -> Json:
        now = parts.clock.now()
        try:
            outcome = deliveries.test_channel(parts.store, parts.senders, name, actor=caller.actor, now=now)
        except LookupError as error:
            raise not_found("channel", name) from error
        return {"ok": outcome.ok, "error": outcome.error}

    return deed.once_outside(None, act, lambda session, answer: deed.note(session, "tested", {"ok": answer["ok"]}))


@router.get("/audit")
def read_audit(parts: Parts, _caller: Admin, limit: int = 200, before: float | None = None) -> Json:
    """What people and programs did, newest first; `before` is the moment to go on from."""
    with parts.store.read() as db:
        found = audit.listed(db, limit=max(1, min(limit, 1000)), before_s=before)
        names = ("id", "at_s", "actor", "verb", "object", "outcome", "request_id", "detail")
        return {"audit": [{name: getattr(row, name) for name in names} for row in found]}
