"""The open addresses: health, the sign-in page, the one-time link, signing out. Nothing here reads the fleet.

Why it exists: these are the only answers a stranger gets, so they are one small app that cannot reach the other one.
A token is taken from a person or from the API's exchange of a one-time code, confirmed by the API, and set as a cookie
that scripts cannot read.
"""

from html import escape
from urllib.parse import parse_qs

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from dashboards.guard import COOKIE, READING_ROLES, TOKEN, Session, Sessions, Unreachable, cookie_token, own_address

FORM_BYTES = 2048
STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:14px/22px 'IBM Plex Sans','Source Sans',system-ui,sans-serif;max-width:420px;margin:14vh auto;"
    "padding:0 20px;background:light-dark(#FCFCFB,#0F1317);color:light-dark(#17202A,#E3E8EC)}"
    "h1{font-size:18px;font-weight:600;margin:0 0 4px}"
    "p,label{color:light-dark(#51606E,#9AA6B1)}p{margin:0 0 18px}label{font-size:12px}"
    "input{display:block;box-sizing:border-box;width:100%;height:34px;margin:4px 0 14px;padding:0 10px;"
    "font:13px monospace;background:light-dark(#F3F4F4,#171C22);color:inherit;border-radius:4px;"
    "border:1px solid light-dark(#C3CAD0,#3A4550)}"
    "button{height:34px;padding:0 16px;border:0;border-radius:4px;color:#fff;font:inherit;"
    "background:light-dark(#1B6AAE,#2B78BC)}"
    "strong{color:light-dark(#B23A0C,#FF8E67);font-weight:500}"
)


class ApiDoor:
    """The API as the guard and the open addresses see it: three calls with somebody else's token."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def session(self, token: str) -> Session | None:
        """Who the token is; None when the API says nobody. Raises Unreachable."""
        answer = await self._send("GET", "/api/v1/session", token)
        if answer.status_code in (401, 403):
            return None
        if answer.status_code != 200:
            raise Unreachable(f"session: {answer.status_code}")
        told = answer.json()
        return Session(str(told.get("actor", "")), str(told.get("role", "")), str(told.get("kind", "")))

    async def open(self, code: str) -> str:
        """The token a one-time code is worth, once; empty when it is worth nothing. Raises Unreachable."""
        answer = await self._send("POST", "/api/v1/session/open", "", {"code": code})
        if answer.status_code >= 500:
            raise Unreachable(f"open: {answer.status_code}")
        told = answer.json() if answer.status_code < 300 else {}
        token, role = str(told.get("token", "")), str(told.get("role", ""))
        return token if TOKEN.match(token) and role in READING_ROLES else ""

    async def end(self, token: str) -> None:
        """Revoke the session. Raises Unreachable."""
        await self._send("DELETE", "/api/v1/session", token)

    async def _send(self, method: str, path: str, token: str, body: dict[str, str] | None = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return await self._client.request(method, path, headers=headers, json=body)
        except httpx2.HTTPError as error:
            raise Unreachable(str(error)) from error


def build(door: ApiDoor, sessions: Sessions) -> Starlette:
    """The app of the open addresses."""

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def sign_in_page(request: Request) -> Response:
        return _page(goes_on=request.query_params.get("next", ""))

    async def sign_in(request: Request) -> Response:
        form = await _form(request)
        token, goes_on = form.get("token", "").strip(), form.get("next", "")
        try:
            session = await sessions.confirm(token)
        except Unreachable:
            return _page("The control plane does not answer. Try again in a moment.", 503, goes_on)
        if session is None:
            return _page("This token is not valid, or may not read.", 401, goes_on)
        return _enter(token, goes_on)

    async def open_link(request: Request) -> Response:
        try:
            token = await door.open(str(request.path_params["code"]))
        except Unreachable:
            return _page("The control plane does not answer. The link is still good: try again.", 503)
        goes_on = request.query_params.get("next", "")
        return _enter(token, goes_on) if token else _page("This link has been used or is too old.", 401, goes_on)

    return Starlette(
        routes=[
            Route("/healthz", health, methods=["GET"]),
            Route("/signin", sign_in_page, methods=["GET"]),
            Route("/signin", sign_in, methods=["POST"]),
            Route("/open/{code}", open_link, methods=["GET"]),
            *_ways_out(door, sessions),
        ]
    )


def _ways_out(door: ApiDoor, sessions: Sessions) -> list[Route]:
    async def sign_out_page(_: Request) -> Response:
        return _document(
            "Sign out", '<h1>Sign out of Trimtab?</h1><p></p><form method="post"><button>Sign out</button></form>'
        )

    async def sign_out(request: Request) -> Response:
        if token := cookie_token(request.headers):
            try:
                await door.end(token)
            except Unreachable:
                return _page("The control plane does not answer, so the session could not be ended.", 503)
            sessions.forget(token)
        answer = RedirectResponse("/signin", 303)
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        return answer

    return [
        Route("/signout", sign_out_page, methods=["GET"]),
        Route("/signout", sign_out, methods=["POST"]),
    ]


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form; empty when it is not small or not readable."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"))
    return {name: values[0] for name, values in fields.items()}


def _enter(token: str, goes_on: str) -> Response:
    answer = RedirectResponse(own_address(goes_on), 303)
    answer.set_cookie(COOKIE, token, path="/", secure=True, httponly=True, samesite="lax")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _page(said: str = "", status: int = 200, goes_on: str = "") -> Response:
    told = f"<p><strong>{escape(said)}</strong></p>" if said else ""
    kept = f'<input type="hidden" name="next" value="{escape(own_address(goes_on))}">' if goes_on else ""
    return _document(
        "Sign in",
        f"<h1>Trimtab</h1><p>Paste a token, or open the link that <code>trimtab serve</code> printed.</p>{told}"
        f'<form method="post" action="/signin">{kept}<label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="off" autofocus required>'
        "<button>Sign in</button></form>",
        status,
    )


def _document(title: str, body: str, status: int = 200) -> Response:
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)} · Trimtab</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style><body>{body}</body></html>"
    )
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})
