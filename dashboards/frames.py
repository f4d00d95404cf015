"""Live pixels: binary frames from the API to many viewers, fetched four times a second at most for all of them.

Why it exists: pixels never travel through a rerun. A canvas asks here with its viewer's cookie; the guard has already
confirmed that viewer, so the newest frame may be shared, and an unchanged one costs 304 and no bytes. Not a store: one
frame an address, shared for a quarter of a second, dropped when nobody asks.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import httpx2
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dashboards.guard import TOKEN_SCOPE

SHARED_S = 0.25  # a viewer waits this long on top of the canvas's second: 0.9 s brought step to page over 2 s
FRAMES_KEPT = 64
STRETCH = ("from", "to", "steps", "columns")
KNOWN = {"experts": ("step",), "raster": ("layer", *STRETCH), "layers": STRETCH, "swings": ("step",), "fleet": ()}
MEDIA_TYPE = "application/octet-stream"


@dataclass
class Frame:
    """One answer of the API: its entity tag, its bytes, when it was fetched."""

    etag: str
    body: bytes
    fetched: float


class Frames:
    """The shared frames by their address below the API; one fetch at a time for each."""

    def __init__(self, client: httpx2.AsyncClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._kept: OrderedDict[str, Frame] = OrderedDict()
        self._busy: dict[str, asyncio.Lock] = {}

    async def get(self, address: str, token: str) -> Frame | Response:
        """The frame at `address`, fetched within the last quarter of a second, or the API's refusal for this viewer."""
        async with self._busy.setdefault(address, asyncio.Lock()):
            kept = self._kept.get(address)
            if kept and self._clock() - kept.fetched < SHARED_S:
                return kept
            headers = {"Authorization": f"Bearer {token}"} | ({"If-None-Match": kept.etag} if kept else {})
            try:
                answer = await self._ask(address, headers)
            except httpx2.HTTPError:
                return PlainTextResponse("the control plane does not answer", 503)
            if answer.status_code == 304 and kept:
                kept.fetched = self._clock()
                return kept
            if answer.status_code != 200:
                return PlainTextResponse("no frame", answer.status_code)
            frame = Frame(answer.headers.get("etag", ""), answer.content, self._clock())
            self._keep(address, frame)
            return frame

    async def _ask(self, address: str, headers: dict[str, str]) -> httpx2.Response:
        """One answer; asked again once where the connection broke, as a kept one does that the API closed meanwhile."""
        try:
            return await self._client.get(address, headers=headers)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            return await self._client.get(address, headers=headers)

    def _keep(self, address: str, frame: Frame) -> None:
        self._kept[address] = frame
        self._kept.move_to_end(address)
        while len(self._kept) > FRAMES_KEPT:
            old, _ = self._kept.popitem(last=False)
            if old in self._busy and not self._busy[old].locked():
                del self._busy[old]


def address_of(kind: str, run: str, query: Mapping[str, str]) -> str:
    """The API's address of a frame; only the query's known parameters pass."""
    path = "/api/v1/fleet/frame" if kind == "fleet" else f"/api/v1/runs/{quote(run, safe='')}/experts/"
    path += {"fleet": "", "experts": "frame"}.get(kind, kind)
    known = [(name, query[name]) for name in KNOWN[kind] if query.get(name)]
    return f"{path}?{urlencode(known)}" if known else path


def routes(frames: Frames, now_s: Callable[[], float] = time.time) -> list[Route]:
    """The frame routes; each answers 304 to a viewer who already has the frame."""

    def route(kind: str, path: str) -> Route:
        async def answer(request: Request) -> Response:
            run = str(request.path_params.get("run", ""))
            found = await frames.get(address_of(kind, run, request.query_params), str(request.scope[TOKEN_SCOPE]))
            if isinstance(found, Response):
                return found
            headers = {"Cache-Control": "private, no-cache", "Trimtab-Time": f"{now_s():.3f}"}
            if found.etag:
                headers["ETag"] = found.etag
                if request.headers.get("if-none-match") == found.etag:
                    return Response(status_code=304, headers=headers)
            return Response(found.body, media_type=MEDIA_TYPE, headers=headers)

        return Route(path, answer, methods=["GET"])

    of_runs = [route(kind, f"/frames/{kind}/{{run}}") for kind in KNOWN if kind != "fleet"]
    return [*of_runs, route("fleet", "/frames/fleet")]
