"""A run's expert records as a file, streamed from the API through the dashboard under the viewer's own token.

Why it exists: the browser holds no token, and a table of a long run is too large to be held here. It passes bytes on as
they come; what is in them, and who may have them, the API decides.
"""

from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

import httpx2
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dashboards.guard import TOKEN_SCOPE

KNOWN = ("format", "what", "layers", "from", "to")
HEADERS = ("content-type", "content-disposition", "content-length", "content-encoding")


def address_of(run: str, query: dict[str, str]) -> str:
    """The API's address of the file; only known parameters pass."""
    known = [(name, query[name]) for name in KNOWN if query.get(name)]
    return f"/api/v1/runs/{quote(run, safe='')}/experts/export?{urlencode(known)}"


def routes(client: httpx2.AsyncClient) -> list[Route]:
    """The route of a run's records."""

    async def records(request: Request) -> Response:
        address = address_of(str(request.path_params["run"]), dict(request.query_params))
        headers = {"Authorization": f"Bearer {request.scope[TOKEN_SCOPE]}"}
        asked = client.build_request("GET", address, headers=headers)
        try:
            answer = await client.send(asked, stream=True)
        except httpx2.HTTPError:
            return PlainTextResponse("the control plane does not answer", 503)
        if answer.status_code != 200:
            await answer.aread()
            return PlainTextResponse(_why(answer), answer.status_code)
        kept = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
        return StreamingResponse(_bytes(answer), headers={**kept, "Cache-Control": "private, no-store"})

    return [Route("/export/experts/{run}", records, methods=["GET"])]


def _why(answer: httpx2.Response) -> str:
    """What the API says of a file that it does not give, as sentences."""
    try:
        said = answer.json()
        parts = [str(said.get(name) or "").rstrip(".") for name in ("title", "detail", "hint")]
    except (ValueError, AttributeError):
        parts = []
    return " ".join(f"{part}." for part in parts if part) or "There is no such file."


async def _bytes(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """The answer's body as it comes; the connection goes back however it ends."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
