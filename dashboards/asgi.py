"""The dashboard as one ASGI app: the guard outside, the Streamlit app with frame and module routes inside.

Why it exists: what is served and what is open is decided in one place. Not a page, and no business with the fleet.
"""

import gc
import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import streamlit as st

from controlplane.client import trust
from dashboards import assets, exports, frames, openings
from dashboards.data import API_VARIABLE, CA_VARIABLE
from dashboards.guard import Guard, Sessions

HERE = Path(__file__).parent
VIEWS = (*("now", "fleet", "jobs", "job", "lifecycles", "lifecycle", "experts", "submit", "incidents", "incident"),)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def build(api_url: str, hosts: frozenset[str] = LOOPBACK, ca_file: str = "") -> Guard:
    """The guarded app that reads and writes through `api_url`, answering only to `hosts`.

    `ca_file` is what the API's certificate is checked by; Unreachable when it cannot be read.
    """
    os.environ[API_VARIABLE], os.environ[CA_VARIABLE] = api_url, ca_file
    client = httpx2.AsyncClient(base_url=api_url, timeout=10.0, trust_env=False, verify=trust(ca_file))
    door = openings.ApiDoor(client)
    sessions = Sessions(door)

    @asynccontextmanager
    async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
        warm_up()
        yield {}
        await client.aclose()

    app = st.App(
        HERE / "app.py",
        lifespan=lifespan,
        routes=[*frames.routes(frames.Frames(client)), *exports.routes(client), *assets.routes(VIEWS, VIEWS[0])],
    )
    return Guard(app, openings.build(door, sessions), sessions, hosts, assets.inline_script_hashes())


def warm_up() -> None:
    """Import every page, then take what is loaded out of the collector's sight: it is never garbage."""
    for name in VIEWS:
        importlib.import_module(f"dashboards.views.{name}")
    gc.collect()
    gc.freeze()
