"""The one door of the dashboard: default deny around every route, mount and socket of the Streamlit app.

Why it exists: a dashboard falls through the route nobody thought of. So nothing inside is asked whether it is public:
the guard stands outside the whole ASGI app and lets a request pass only with a session that the API confirms. The few
open addresses (health, sign-in, one-time link) are answered here and never reach the app. It holds no token of its own.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "__Host-trimtab"
TOKEN_SCOPE = "trimtab.token"  # noqa: S105  the name of a place in the scope, not a token
READING_ROLES = frozenset({"viewer", "operator", "admin"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthz", "/signin", "/signout"})
OPEN_LINK = re.compile(r"/open/[A-Za-z0-9_-]{8,200}\Z")
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]{8,400}\Z")
CONFIRMED_S, REFUSED_S, SESSIONS_KEPT = 3.0, 1.0, 4096
LONGEST_ADDRESS = 1024
# The page may load and call only itself; `blob:` is how Streamlit loads a component's own module.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' blob: {scripts}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "manifest-src 'self'",
        "media-src 'self' blob:",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "object-src 'none'",
    )
)


class Unreachable(Exception):
    """The API gave no answer, so nobody can be let in and nobody is signed out."""


@dataclass(frozen=True)
class Session:
    """Who the API says a token is."""

    actor: str
    role: str
    kind: str


class Door(Protocol):
    """What the guard asks of the API: who a token is; None when it is nobody who may read."""

    async def session(self, token: str) -> Session | None:
        """Raises Unreachable when there is no answer."""


class Sessions:
    """Confirmed sessions, remembered for three seconds by the hash of their token, refusals for one."""

    def __init__(self, door: Door, clock: Callable[[], float] = time.monotonic) -> None:
        self._door, self._clock = door, clock
        self._kept: dict[str, tuple[float, Session | None]] = {}

    async def confirm(self, token: str) -> Session | None:
        """The session of a token, at most three seconds old. Raises Unreachable."""
        if not TOKEN.match(token):
            return None
        key, now = hashlib.sha256(token.encode()).hexdigest(), self._clock()
        if (found := self._kept.get(key)) and found[0] > now:
            return found[1]
        session = await self._door.session(token)
        if session is not None and session.role not in READING_ROLES:
            session = None
        if len(self._kept) >= SESSIONS_KEPT:
            self._kept.clear()
        self._kept[key] = (now + (CONFIRMED_S if session else REFUSED_S), session)
        return session

    def forget(self, token: str) -> None:
        """Ask the API anew the next time."""
        self._kept.pop(hashlib.sha256(token.encode()).hexdigest(), None)


class Guard:
    """Wraps `inner` (the whole Streamlit app); `openings` answers the open addresses and nothing else."""

    def __init__(
        self, inner: ASGIApp, openings: ASGIApp, sessions: Sessions, hosts: frozenset[str], inline_scripts: str = ""
    ) -> None:
        self._inner, self._openings, self._sessions, self._hosts = inner, openings, sessions, hosts
        self._headers = security_headers(inline_scripts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send, self._headers))
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            raise RuntimeError(f"the guard knows no {scope['type']} scope and lets none pass")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), str(scope["path"])
        if not self._host_allowed(headers):
            await PlainTextResponse("this host is not served here", 421)(scope, receive, send)
            return
        if scope["method"] not in SAFE_METHODS and not same_origin(headers):
            await PlainTextResponse("wrong origin", 403)(scope, receive, send)
            return
        if path in OPEN_PATHS or OPEN_LINK.match(path):
            await self._openings(scope, receive, send)
            return
        token = cookie_token(headers)
        try:
            session = await self._sessions.confirm(token)
        except Unreachable:
            await PlainTextResponse("the control plane does not answer; try again", 503)(scope, receive, send)
            return
        if session is None:
            await _turn_away(headers, scope["method"], asked_for(scope))(scope, receive, send)
            return
        await self._inner({**scope, TOKEN_SCOPE: token}, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        token = cookie_token(headers)
        try:
            allowed = self._host_allowed(headers) and same_origin(headers)
            allowed = allowed and await self._sessions.confirm(token) is not None
        except Unreachable:
            allowed = False
        if not allowed:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no session"})
            return

        async def receive_while_confirmed() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and not await self._still(token):
                await send({"type": "websocket.close", "code": 1008, "reason": "the session has ended"})
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        await self._inner({**scope, TOKEN_SCOPE: token}, receive_while_confirmed, send)

    async def _still(self, token: str) -> bool:
        """A revoked session ends at the next message; an API that does not answer ends none."""
        try:
            return await self._sessions.confirm(token) is not None
        except Unreachable:
            return True

    def _host_allowed(self, headers: Headers) -> bool:
        host = headers.get("host", "")
        return (urlsplit(f"//{host}").hostname or "") in self._hosts


def cookie_token(headers: Headers) -> str:
    """The viewer's token from the cookie header; empty when there is none that could be one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found and TOKEN.match(found.value) else ""


def same_origin(headers: Headers) -> bool:
    """True when the request says that it comes from a page of this very host; a missing Origin is not enough."""
    parts = urlsplit(headers.get("origin", ""))
    return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.netloc == headers.get("host", "")


def security_headers(inline_scripts: str) -> Mapping[str, str]:
    """The headers of every answer: no external origin, no framing, no sniffing, no referrer."""
    return {
        "Content-Security-Policy": POLICY.format(scripts=inline_scripts).replace("  ", " "),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def _with_headers(send: Send, extra: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in extra.items():
                headers[name] = value
        await send(message)

    return sending


def asked_for(scope: Scope) -> str:
    """The address below this host that a request asked for, as text that `own_address` judges again."""
    query = bytes(scope.get("query_string") or b"").decode("latin-1")
    path = bytes(scope.get("raw_path") or b"").decode("latin-1") or str(scope["path"])
    return path + (f"?{query}" if query else "")


def own_address(text: str) -> str:
    """An address of this very host to go on to, as path and query; Now for anything that could lead elsewhere."""
    plain = len(text) <= LONGEST_ADDRESS and all(" " < char <= "~" for char in text) and "\\" not in text
    if not plain or not text.startswith("/") or text.startswith("//"):
        return "/"
    parts = urlsplit(text)
    leads_on = parts.path not in OPEN_PATHS and not OPEN_LINK.match(parts.path)
    return text if leads_on and not parts.scheme and not parts.netloc else "/"


def _turn_away(headers: Headers, method: str, asked: str) -> Response:
    """A person's browser is shown where to sign in, and comes back from there; anything else is told 401."""
    if method in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
        goes_on = own_address(asked)
        query = "" if goes_on == "/" else f"?{urlencode({'next': goes_on})}"
        return RedirectResponse(f"/signin{query}", 303)
    body: dict[str, Any] = {"WWW-Authenticate": "Cookie", "Cache-Control": "no-store"}
    return PlainTextResponse("sign in first", 401, headers=body)
