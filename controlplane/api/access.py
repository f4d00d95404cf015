"""Who calls and what they may do: a bearer token to an identity, roles as dependencies, each write in the audit.

Default deny: a route without one of these dependencies is reachable by nobody but is caught by a test; the few open
ones are listed there by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from controlplane.api.context import Context
from controlplane.api.problems import Problem
from controlplane.services import tokens
from controlplane.services.tokens import Identity, TokenRefused
from controlplane.store import audit

KNOWN_FOR_S = 2.0
AT_LEAST = "at_least_"
"""How the name of a dependency begins that asks for a role."""
_BEARER = "bearer "


def context(request: Request) -> Context:
    """The server's parts."""
    found: Context = request.app.state.context
    return found


Parts = Annotated[Context, Depends(context)]


def identity(request: Request, parts: Parts) -> Identity:
    """The caller; 401 without a living token. An answer is believed for two seconds."""
    header = request.headers.get("authorization", "")
    token = header[len(_BEARER) :].strip() if header.lower().startswith(_BEARER) else ""
    if not token:
        hint = "Send Authorization: Bearer tt_… (trimtab token create makes one)."
        raise Problem(401, "no_token", "A token is needed", hint=hint)
    cache: dict[str, tuple[float, Identity]] = request.app.state.identities
    known = cache.get(token)
    if known is not None and time.monotonic() - known[0] < KNOWN_FOR_S:
        return known[1]
    try:
        with parts.store.read() as session:
            found = tokens.identify(session, token, parts.clock.now())
    except TokenRefused as error:
        cache.pop(token, None)
        raise Problem(401, "bad_token", "The token is refused", str(error)) from error
    if len(cache) > 4096:
        cache.clear()
    cache[token] = (time.monotonic(), found)
    return found


Caller = Annotated[Identity, Depends(identity)]


def at_least(role: str) -> Callable[..., Identity]:
    """A dependency that lets a person of at least this role through; 403 for others, audited for writes."""

    def check(request: Request, parts: Parts, caller: Caller) -> Identity:
        if not caller.may(role):
            refuse(request, parts, caller, f"{caller.role or caller.kind} may not; {role} may")
        return caller

    check.__name__ = f"{AT_LEAST}{role}"
    return check


def refuse(request: Request, parts: Context, caller: Identity, why: str) -> None:
    """Raises 403; a refused write is kept in the audit."""
    if request.method != "GET":
        note(request, parts, caller, "refused", {"why": why})
    raise Problem(403, "forbidden", "This is not yours to do", why)


def note(
    request: Request, parts: Context, caller: Identity, outcome: str, detail: dict[str, Any] | None = None
) -> None:
    """A line of the audit for this request."""
    with parts.store.write() as session:
        audit.add(
            session,
            now=parts.clock.now(),
            actor=caller.actor,
            verb=request.method,
            object=request.url.path.removeprefix("/api/v1/"),
            outcome=outcome,
            request_id=getattr(request.state, "request_id", ""),
            detail=detail,
        )


Viewer = Annotated[Identity, Depends(at_least("viewer"))]
Operator = Annotated[Identity, Depends(at_least("operator"))]
Admin = Annotated[Identity, Depends(at_least("admin"))]
