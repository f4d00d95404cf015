"""The built dashboard as a process: every route, mount and socket of it without a session, and the way in and out.

Why a process: Streamlit's runtime exists once a process, and what is tested is what `trimtab serve` starts.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_api import CODE, World, serving
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parents[2]
VIEWER = "__Host-trimtab=tt_login_viewer"

ROUTES = """
import gc, json
from starlette.routing import Mount, WebSocketRoute
from streamlit import config
from dashboards import asgi
app = asgi.build("http://127.0.0.1:9")._inner._build_starlette_app()
rows = [
    {"path": route.path, "kind": type(route).__name__, "methods": sorted(getattr(route, "methods", None) or [])}
    for route in app.routes
]
names = ("runner.postScriptGC", "browser.gatherUsageStats", "server.enableStaticServing", "client.showErrorDetails",
         "runner.magicEnabled", "server.fileWatcherType", "client.toolbarMode")
asgi.warm_up()
frozen = gc.get_freeze_count()
print(json.dumps({"routes": rows, "options": {name: config.get_option(name) for name in names}, "frozen": frozen}))
"""


@dataclass
class Built:
    """The dashboard's address, the fake API behind it, and its routes as it was built."""

    url: str
    world: World
    routes: list[dict[str, Any]]
    options: dict[str, Any]
    frozen: int


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    told = subprocess.run([sys.executable, "-c", ROUTES], cwd=ROOT, capture_output=True, text=True, check=True)
    known = json.loads(told.stdout.splitlines()[-1])
    with serving(World()) as world:
        command = [sys.executable, "-m", "dashboards", "--api", world.url, "--port", "0"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield Built(line.split()[-1], world, known["routes"], known["options"], known["frozen"])
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def concrete(path: str) -> str:
    """A route's path with something in each of its parameters."""
    parts = [("x" if part.startswith("{") else part) for part in path.split("/")]
    return "/".join(parts) or "/"


def test_there_are_routes_to_walk(built: Built) -> None:
    kinds = {row["kind"] for row in built.routes}
    paths = {row["path"] for row in built.routes}
    assert {"Route", "Mount", "WebSocketRoute"} <= kinds
    assert {"/_stcore/stream", "/frames/fleet", "/frames/experts/{run}", "/canvas/{name}", "/experts"} <= paths


@pytest.mark.parametrize("cookie", ["", "__Host-trimtab=not-a-known-token", "__Host-trimtab=tt_agent_node"])
def test_every_route_and_mount_is_closed_without_a_session(built: Built, cookie: str) -> None:
    with httpx2.Client(base_url=built.url, follow_redirects=False) as client:
        for row in built.routes:
            if row["kind"] == "WebSocketRoute":
                continue
            for method in row["methods"] or ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]:
                headers = {"Cookie": cookie, "Accept": "text/html", "Origin": built.url}
                answer = client.request(method, concrete(row["path"]), headers=headers)
                where = (method, row["path"], answer.status_code)
                turned_away = answer.headers.get("location", "").partition("?")[0] == "/signin"
                assert answer.status_code == 401 or turned_away, where


def test_every_socket_is_closed_without_a_session(built: Built) -> None:
    address = built.url.replace("http", "ws", 1)
    for path in [concrete(row["path"]) for row in built.routes if row["kind"] == "WebSocketRoute"]:
        for cookie, origin in (
            ("", built.url),
            (VIEWER, "http://evil.example"),
            ("__Host-trimtab=unknown-token", built.url),
        ):
            with pytest.raises(InvalidStatus) as refused:
                connect(address + path, additional_headers={"Cookie": cookie, "Origin": origin}).close()
            assert refused.value.response.status_code == 403


def test_a_viewer_loads_the_page_the_socket_and_the_frames(built: Built) -> None:
    headers = {"Cookie": VIEWER, "Origin": built.url}
    with httpx2.Client(base_url=built.url, headers=headers) as client:
        page = client.get("/experts?layer=3")
        assert page.status_code == 200 and "<title>Trimtab</title>" in page.text
        assert client.get("/_stcore/health").status_code == 200
        assert client.get("/app/static/fonts/plex-sans-400.woff2").content[:4] == b"wOF2"
        assert client.get("/canvas/main.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/frames/fleet").content[:4] == b"TTF1"
        assert client.get("/canvas/nothing.js").status_code == 404
    with connect(built.url.replace("http", "ws", 1) + "/_stcore/stream", additional_headers=headers) as socket:
        assert socket.protocol.state.name == "OPEN"


def test_another_host_name_is_not_served(built: Built) -> None:
    with httpx2.Client(base_url=built.url, headers={"Cookie": VIEWER, "Host": "rebound.example"}) as client:
        assert client.get("/").status_code == 421


def test_a_one_time_link_becomes_a_cookie_that_scripts_cannot_read_once(built: Built) -> None:
    built.world.codes.add(CODE)
    with httpx2.Client(base_url=built.url, follow_redirects=False) as client:
        answer = client.get(f"/open/{CODE}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        parts = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")}
        assert {"httponly", "secure", "samesite=lax", "path=/", "__host-trimtab=tt_login_operator"} <= parts
        again = client.get(f"/open/{CODE}")
        assert (again.status_code, "set-cookie" in again.headers) == (401, False)


@pytest.mark.parametrize(
    ("token", "status"), [("tt_login_viewer", 303), ("tt_agent_node", 401), ("nonsense-token", 401), ("", 401)]
)
def test_a_pasted_token_is_confirmed_by_the_api(built: Built, token: str, status: int) -> None:
    with httpx2.Client(base_url=built.url, follow_redirects=False, headers={"Origin": built.url}) as client:
        answer = client.post("/signin", data={"token": token})
        assert answer.status_code == status
        assert ("set-cookie" in answer.headers) == (status == 303)


def test_the_first_page_lives_at_the_root(built: Built) -> None:
    with httpx2.Client(base_url=built.url, headers={"Cookie": VIEWER}, follow_redirects=False) as client:
        for asked, found in (("/now", "/"), ("/now?embed_options=dark_theme", "/?embed_options=dark_theme")):
            answer = client.get(asked)
            assert (answer.status_code, answer.headers["location"]) == (307, found)


def test_who_signs_in_comes_to_what_was_asked_for(built: Built) -> None:
    asked = "/job?run=zaya-toy-5m5z7g&restart=2"
    built.world.codes.add(CODE)
    with httpx2.Client(base_url=built.url, follow_redirects=False, headers={"Origin": built.url}) as client:
        there = client.get(asked, headers={"Accept": "text/html"}).headers["location"]
        form = client.get(there).text
        kept = re.search(r'name="next" value="([^"]*)"', form)
        assert kept and unescape(kept[1]) == asked
        wrong = client.post("/signin", data={"token": "nonsense-token", "next": asked})
        assert wrong.status_code == 401 and 'name="next"' in wrong.text
        for entered in (
            client.post("/signin", data={"token": "tt_login_viewer", "next": asked}),
            client.get(f"/open/{CODE}", params={"next": asked}),
        ):
            assert (entered.status_code, entered.headers["location"]) == (303, asked)
        away = client.post("/signin", data={"token": "tt_login_viewer", "next": "//evil.example/"})
        assert away.headers["location"] == "/"


def test_signing_out_ends_the_session_at_the_api(built: Built) -> None:
    cookie = "__Host-trimtab=tt_login_operator"
    with httpx2.Client(
        base_url=built.url, follow_redirects=False, headers={"Origin": built.url, "Cookie": cookie}
    ) as client:
        assert client.get("/").status_code == 200
        assert client.post("/signout").headers["location"] == "/signin"
        assert client.get("/", headers={"Accept": "text/html"}).headers.get("location") == "/signin"
    assert "tt_login_operator" in built.world.revoked
    built.world.revoked.clear()


def test_the_process_asks_only_with_its_viewers_tokens(built: Built) -> None:
    assert {token for _, path, token in built.world.calls if path not in ("/session", "/session/open")} <= {
        "tt_login_viewer",
        "tt_login_operator",
    }


def test_what_the_measurements_asked_for_is_set(built: Built) -> None:
    assert built.frozen > 10_000
    assert built.options == {
        "runner.postScriptGC": False,
        "browser.gatherUsageStats": False,
        "server.enableStaticServing": True,
        "client.showErrorDetails": "none",
        "runner.magicEnabled": False,
        "server.fileWatcherType": "none",
        "client.toolbarMode": "minimal",
    }
