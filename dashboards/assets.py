"""What a browser loads besides data: Streamlit's page under our own name, and the canvas component's modules.

Why it exists: Streamlit finds its server by asking below the page's own path first, so that each deep link begins with
two failed requests in the browser's console. The page served here says where the server is. Nothing here is secret, and
still it stands behind the guard.
"""

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

MODULES = Path(__file__).parent / "components" / "canvas"
INDEX = Path(st.__file__).parent / "static" / "index.html"
BASE_SCRIPT = b"window.__streamlit = { BACKEND_BASE_URL: window.location.origin + '/' }\n"


def routes(pages: tuple[str, ...], first: str) -> list[Route]:
    """The routes of every page's address and of the modules; the `first` page lives at the root alone."""
    paths = ["/", *(f"/{name}" for name in pages if name != first)]
    return [
        Route(f"/{first}", to_root, methods=["GET"]),
        *(Route(path, page, methods=["GET"]) for path in paths),
        Route("/canvas/{name}", module, methods=["GET"]),
    ]


async def page(_: Request) -> Response:
    """Streamlit's page; what it shows is decided over its socket."""
    return Response(index_page(), media_type="text/html", headers={"Cache-Control": "no-cache"})


async def to_root(request: Request) -> Response:
    """Streamlit knows its default page by no other address than the root, and shows a dialog at any other."""
    query = request.url.query
    return RedirectResponse(f"/?{query}" if query else "/", 307)


async def module(request: Request) -> Response:
    """A module of the canvas component, under its own name; the browser asks again with its tag."""
    found = modules().get(str(request.path_params["name"]))
    if found is None:
        return PlainTextResponse("no such module", 404)
    body, tag = found
    headers = {"Cache-Control": "private, no-cache", "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/javascript", headers=headers)


@lru_cache(maxsize=1)
def modules() -> dict[str, tuple[bytes, str]]:
    """name -> (text, entity tag) of each module; read once."""
    found = {path.name: path.read_bytes() for path in sorted(MODULES.glob("*.js"))} | {"base.js": BASE_SCRIPT}
    return {name: (body, f'"{hashlib.sha256(body).hexdigest()[:16]}"') for name, body in found.items()}


@lru_cache(maxsize=1)
def index_page() -> str:
    """Streamlit's own page with our title, and the script that names the server before anything asks for it."""
    text = INDEX.read_text(encoding="utf-8")
    text = text.replace("<title>Streamlit</title>", "<title>Trimtab</title>", 1)
    return text.replace("<head>", '<head>\n    <script src="/canvas/base.js"></script>', 1)


def inline_script_hashes() -> str:
    """The inline scripts of Streamlit's own page as policy sources, so that no other inline script may run."""
    scripts = re.findall(r"<script>(.*?)</script>", index_page(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
