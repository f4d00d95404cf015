"""Frame routes: one fetch for many viewers, nothing sent twice, a refusal shared with nobody."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from dashboards.frames import FRAMES_KEPT, Frame, Frames, address_of, routes
from dashboards.guard import TOKEN_SCOPE


@dataclass
class Api:
    """Answers a frame whose tag the test sets; refuses one token."""

    etag: str = '"1"'
    fail: bool = False
    requests: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self.fail:
            raise httpx2.ConnectError("down")
        if request.headers["authorization"] == "Bearer refused":
            return httpx2.Response(403)
        if request.headers.get("if-none-match") == self.etag:
            return httpx2.Response(304, headers={"ETag": self.etag})
        return httpx2.Response(200, content=b"frame " + self.etag.encode(), headers={"ETag": self.etag})


@dataclass
class Clock:
    now: float = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def client(api: Callable[[httpx2.Request], httpx2.Response]) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url="http://api.test", transport=httpx2.MockTransport(api))


def as_viewer(app: Starlette, token: str) -> httpx2.AsyncClient:
    """A client whose requests the guard has let pass for this token."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, TOKEN_SCOPE: token}, receive, send)

    return httpx2.AsyncClient(base_url="http://dash.test", transport=httpx2.ASGITransport(app=guarded))


def test_many_viewers_who_ask_at_once_cost_one_fetch(api: Api, clock: Clock) -> None:
    async def watch() -> list[Frame]:
        frames = Frames(client(api), clock)
        found = await asyncio.gather(*(frames.get("/api/v1/fleet/frame", f"viewer-{n}") for n in range(50)))
        return [frame for frame in found if isinstance(frame, Frame)]

    assert {frame.body for frame in asyncio.run(watch())} == {b'frame "1"'}
    assert len(api.requests) == 1


def test_a_viewer_out_of_step_with_another_gets_no_old_frame(api: Api, clock: Clock) -> None:
    """Step to page is 2 s with the canvas's own second in it: what is shared may add a quarter to it, not another."""

    async def watch() -> None:
        frames = Frames(client(api), clock)
        for passed in (0.0, 0.2, 0.1, 0.7):
            clock.now += passed
            await frames.get("/f", "viewer")

    asyncio.run(watch())
    assert len(api.requests) == 3


def test_an_unchanged_frame_is_asked_for_by_its_tag(api: Api, clock: Clock) -> None:
    async def watch() -> list[bytes]:
        frames, bodies = Frames(client(api), clock), []
        for _ in range(3):
            found = await frames.get("/f", "viewer")
            assert isinstance(found, Frame)
            bodies.append(found.body)
            clock.now += 1
        api.etag = '"2"'
        found = await frames.get("/f", "viewer")
        assert isinstance(found, Frame)
        return [*bodies, found.body]

    assert asyncio.run(watch()) == [b'frame "1"'] * 3 + [b'frame "2"']
    assert [request.headers.get("if-none-match") for request in api.requests] == [None, '"1"', '"1"', '"1"']


def test_a_refusal_is_one_viewers_own_and_never_kept(api: Api, clock: Clock) -> None:
    async def watch() -> list[object]:
        frames = Frames(client(api), clock)
        return [await frames.get("/f", token) for token in ("refused", "viewer")]

    refused, seen = asyncio.run(watch())
    assert getattr(refused, "status_code", None) == 403
    assert isinstance(seen, Frame)


def test_the_viewers_own_token_goes_to_the_api(api: Api, clock: Clock) -> None:
    asyncio.run(Frames(client(api), clock).get("/f", "viewer-token"))
    assert api.requests[0].headers["authorization"] == "Bearer viewer-token"


def test_an_api_that_is_down_is_503_and_comes_back(api: Api, clock: Clock) -> None:
    async def watch() -> list[object]:
        frames = Frames(client(api), clock)
        api.fail = True
        first = await frames.get("/f", "viewer")
        api.fail = False
        return [first, await frames.get("/f", "viewer")]

    down, up = asyncio.run(watch())
    assert getattr(down, "status_code", None) == 503
    assert isinstance(up, Frame)


def test_a_kept_connection_that_the_api_closed_meanwhile_is_no_failure(clock: Clock) -> None:
    """As a server does whose time for idle connections ends just as the next request comes."""
    asked: list[bytes] = []
    ended = asyncio.Semaphore(0)

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nframe")
        await writer.drain()
        await reader.read(1)  # the next request's first byte, which is not answered
        writer.close()
        await writer.wait_closed()
        ended.release()

    async def watch() -> list[object]:
        server = await asyncio.start_server(once, "127.0.0.1", 0)
        async with server, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port_of(server)}") as real:
            frames, found = Frames(real, clock), []
            for _ in range(3):
                found.append(await frames.get("/f", "viewer"))
                clock.now += 1
        for _ in asked:
            await ended.acquire()
        return found

    assert all(isinstance(found, Frame) for found in asyncio.run(watch()))
    assert len(asked) == 3


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


def test_what_is_kept_is_bounded(api: Api, clock: Clock) -> None:
    frames = Frames(client(api), clock)

    async def watch() -> None:
        for step in range(3 * FRAMES_KEPT):
            await frames.get(f"/f?step={step}", "viewer")

    asyncio.run(watch())
    assert len(frames._kept) == FRAMES_KEPT
    assert len(frames._busy) <= FRAMES_KEPT + 1


def test_a_viewer_who_has_the_frame_gets_304_and_no_bytes(api: Api, clock: Clock) -> None:
    app = Starlette(routes=routes(Frames(client(api), clock), now_s=lambda: 123.5))

    async def watch() -> list[httpx2.Response]:
        async with as_viewer(app, "viewer") as viewer:
            first = await viewer.get("/frames/experts/run-01")
            again = await viewer.get("/frames/experts/run-01", headers={"If-None-Match": first.headers["etag"]})
            return [first, again]

    first, again = asyncio.run(watch())
    assert (first.status_code, first.content, first.headers["trimtab-time"]) == (200, b'frame "1"', "123.500")
    assert (again.status_code, again.content) == (304, b"")
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("kind", "run", "query", "address"),
    [
        ("fleet", "", {"x": "1"}, "/api/v1/fleet/frame"),
        ("experts", "run-01", {"step": "7", "evil": "x"}, "/api/v1/runs/run-01/experts/frame?step=7"),
        ("experts", "../../tokens", {}, "/api/v1/runs/..%2F..%2Ftokens/experts/frame"),
        (
            "raster",
            "r",
            {"layer": "3", "from": "1", "to": "", "columns": "9"},
            "/api/v1/runs/r/experts/raster?layer=3&from=1&columns=9",
        ),
        ("layers", "r", {"steps": "64", "layer": "3"}, "/api/v1/runs/r/experts/layers?steps=64"),
        ("swings", "r", {"step": "5"}, "/api/v1/runs/r/experts/swings?step=5"),
    ],
)
def test_only_known_parameters_pass(kind: str, run: str, query: dict[str, str], address: str) -> None:
    assert address_of(kind, run, query) == address
