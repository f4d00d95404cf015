"""The guard by itself: who passes, what a stranger is told, how long a session is believed, when a socket ends."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from dashboards.guard import Guard, Session, Sessions, Unreachable, own_address

TOKEN = "tt_login_0123456789"
HOST = "127.0.0.1:8501"
BROWSER = {"host": HOST, "accept": "text/html"}


@dataclass
class Door:
    """Whom the API knows; counts how often it is asked."""

    known: dict[str, Session] = field(default_factory=lambda: {TOKEN: Session("ann", "viewer", "login")})
    asked: int = 0
    silent: bool = False

    async def session(self, token: str) -> Session | None:
        self.asked += 1
        if self.silent:
            raise Unreachable("down")
        return self.known.get(token)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def _inner(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message.get("text")})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


async def _openings(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"open"})


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(door: Door, clock: Clock) -> Guard:
    return Guard(_inner, _openings, Sessions(door, clock), frozenset({"127.0.0.1", "localhost"}))


def headers_of(given: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in given.items()]


def call(guard: Guard, scope: dict[str, Any], incoming: list[Message] | None = None) -> list[Message]:
    """What the guarded app sends for one scope, with these messages to receive."""
    sent: list[Message] = []
    waiting = list(incoming or [{"type": "http.request", "body": b""}])

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def http(guard: Guard, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    given = {**BROWSER, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers_of(given)}
    start, *rest = call(guard, scope)
    told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], told, b"".join(part.get("body", b"") for part in rest)


def socket(guard: Guard, texts: list[str], **headers: str) -> list[Message]:
    given = {"host": HOST, "origin": f"http://{HOST}", "cookie": f"__Host-trimtab={TOKEN}", **headers}
    scope = {"type": "websocket", "path": "/_stcore/stream", "query_string": b"", "headers": headers_of(given)}
    incoming: list[Message] = [{"type": "websocket.connect"}]
    incoming += [{"type": "websocket.receive", "text": text} for text in texts]
    return call(guard, scope, incoming)


def test_a_browser_without_a_session_is_shown_where_to_sign_in(guard: Guard) -> None:
    status, told, body = http(guard)
    assert (status, told["location"], b"inside" in body) == (303, "/signin", False)
    assert http(guard, "/jobs")[1]["location"] == "/signin?next=%2Fjobs"


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_anything_else_without_a_session_is_told_401(guard: Guard, accept: str) -> None:
    assert http(guard, "/frames/fleet", accept=accept)[0] == 401


@pytest.mark.parametrize(
    "cookie",
    ["", "__Host-trimtab=", "__Host-trimtab=short", "__Host-trimtab=unknown-token-123", "trimtab=" + TOKEN, ";;;=\x01"],
)
def test_no_other_cookie_opens_the_door(guard: Guard, cookie: str) -> None:
    assert http(guard, "/jobs", cookie=cookie)[0] in (303, 401)


def test_a_confirmed_session_passes(guard: Guard) -> None:
    assert http(guard, cookie=f"a=b; __Host-trimtab={TOKEN}")[2] == b"inside"


def test_a_token_that_may_not_read_is_nobody(guard: Guard, door: Door) -> None:
    door.known[TOKEN] = Session("node-1", "", "agent")
    assert http(guard, cookie=f"__Host-trimtab={TOKEN}")[0] == 303


@pytest.mark.parametrize("path", ["/healthz", "/signin", "/signout", "/open/abcdefgh-_12"])
def test_the_open_addresses_are_answered_outside(guard: Guard, path: str) -> None:
    assert http(guard, path)[2] == b"open"


LOOKALIKES = (
    "/healthz/",
    "//healthz",
    "/Healthz",
    "/signin/x",
    "/open/",
    "/open/short",
    "/open/abcdefgh/x",
    "/open/abcdefgh\n",
    "/x/../signin",
    "/_stcore/health",
    "/_stcore/metrics",
    "/app/static/fonts/plex-sans-400.woff2",
    "/canvas/main.js",
)


@pytest.mark.parametrize("path", LOOKALIKES)
def test_an_address_that_only_looks_open_is_not(guard: Guard, path: str) -> None:
    assert http(guard, path, accept="*/*")[0] == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8501", "", "169.254.169.254"])
def test_another_host_name_is_not_served_even_to_a_session(guard: Guard, host: str) -> None:
    for path in ("/", "/signin", "/healthz"):
        assert http(guard, path, host=host, cookie=f"__Host-trimtab={TOKEN}")[0] == 421


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://127.0.0.1:9", "file://127.0.0.1:8501"])
@pytest.mark.parametrize("path", ["/signin", "/_stcore/upload_file/a/b"])
def test_a_write_from_another_origin_is_refused(guard: Guard, path: str, origin: str) -> None:
    cookie = f"__Host-trimtab={TOKEN}"
    assert http(guard, path, "POST", origin=origin, cookie=cookie)[0] == 403
    assert http(guard, path, "POST", origin=f"http://{HOST}", cookie=cookie)[0] == 200


def test_every_answer_forbids_other_origins_and_frames(guard: Guard) -> None:
    for path in ("/", "/signin", "/frames/fleet"):
        told = http(guard, path, cookie=f"__Host-trimtab={TOKEN}")[1]
        policy = told["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "http:" not in policy and "https:" not in policy and "*" not in policy and "unsafe-eval" not in policy
        assert (told["x-frame-options"], told["x-content-type-options"]) == ("DENY", "nosniff")


def test_a_session_is_believed_for_three_seconds_and_no_longer(guard: Guard, door: Door, clock: Clock) -> None:
    cookie = f"__Host-trimtab={TOKEN}"
    for _ in range(5):
        assert http(guard, cookie=cookie)[0] == 200
    assert door.asked == 1
    door.known.clear()
    clock.now += 2.9
    assert http(guard, cookie=cookie)[0] == 200
    clock.now += 0.2
    assert http(guard, cookie=cookie)[0] == 303


def test_an_api_that_does_not_answer_lets_nobody_in_and_signs_nobody_out(guard: Guard, door: Door) -> None:
    door.silent = True
    status, told, _ = http(guard, cookie=f"__Host-trimtab={TOKEN}")
    assert (status, "location" in told, "set-cookie" in told) == (503, False, False)
    assert http(guard, "/healthz")[0] == 200
    assert socket(guard, [])[0]["type"] == "websocket.close"


def test_a_socket_opens_with_session_and_own_origin(guard: Guard) -> None:
    sent = socket(guard, ["one", "two"])
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.send"]


@pytest.mark.parametrize(
    "headers", [{"cookie": ""}, {"origin": "http://evil.example"}, {"origin": ""}, {"host": "evil.example"}]
)
def test_a_socket_without_all_of_it_is_refused_before_it_opens(guard: Guard, headers: dict[str, str]) -> None:
    sent = socket(guard, ["one"], **headers)
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_revoked_session_ends_its_open_socket_at_the_next_message(door: Door, clock: Clock) -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        door.known.clear()
        clock.now += 4
        assert (await receive())["type"] == "websocket.disconnect"

    guard = Guard(inner, _openings, Sessions(door, clock), frozenset({"127.0.0.1"}))
    sent = socket(guard, ["one", "two"])
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]


def test_an_unknown_kind_of_scope_never_passes(guard: Guard) -> None:
    with pytest.raises(RuntimeError, match="knows no"):
        call(guard, {"type": "webtransport", "headers": []})


def test_lifespan_reaches_the_app() -> None:
    seen: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    run: Callable[..., Awaitable[None]] = inner
    call(Guard(run, _openings, Sessions(Door()), frozenset()), {"type": "lifespan"})
    assert seen == ["lifespan"]


@pytest.mark.parametrize("address", ["/", "/job?run=a-1&restart=2", "/experts?layer=3#x", "/fleet?node=n%2F1"])
def test_an_address_of_this_host_is_gone_on_to(address: str) -> None:
    assert own_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "job",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "http://evil.example/",
        ),
        *(
            "https:evil.example",
            "javascript:alert(1)",
            "/ /evil.example",
            "/\t/evil.example",
            "/\n/x",
            "/job\r\nSet-Cookie: a=b",
        ),
        *("/signin?next=/signin", "/signout", "/open/abcdefgh12", "/j\u00f6b", "/" + "a" * 2000),
    ],
)
def test_an_address_that_could_lead_elsewhere_is_not(address: str) -> None:
    assert own_address(address) == "/"
