"""What pages read and write: the API with the viewer's own token, nothing else.

Why it exists: the dashboard process holds no token. Each call carries the cookie of the viewer whose page is drawn, and
the API decides. Reads are kept for under a second in the viewer's own session, so that the parts of one page do not ask
twice; nothing is shared between viewers here. Not a model: answers are the API's plain JSON.
"""

import atexit
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any

import streamlit as st

from controlplane.client import ApiError, Client, Unreachable
from dashboards.guard import COOKIE

__all__ = [
    "ApiError",
    "age",
    "api_url",
    "get",
    "last",
    "may_act",
    "now",
    "post",
    "reason",
    "session",
    "simulated",
    "token",
]

API_VARIABLE = "TRIMTAB_API_URL"
CA_VARIABLE = "TRIMTAB_API_CA"
TTL_S = 0.9
SESSION_TTL_S = 5.0
CACHED_READS = 64
CLIENTS = 256
ACTING_ROLES = ("operator", "admin")


def api_url() -> str:
    """The address of the API, without a slash at its end: TRIMTAB_API_URL, or where `trimtab serve` is by default."""
    return os.environ.get(API_VARIABLE, "http://127.0.0.1:8440").rstrip("/")


def token() -> str:
    """The viewer's own token, from the cookie that the page's socket was opened with; empty when there is none."""
    return st.context.cookies.get(COOKIE, "") or ""


_clock = time.monotonic
_clients: OrderedDict[tuple[str, str], Client] = OrderedDict()
_clients_lock = Lock()


def _client(url: str, bearer: str) -> Client:
    """The connection of one viewer; the one that was unused for longest is closed when there are too many."""
    with _clients_lock:
        found = _clients.pop((url, bearer), None) or Client(url, bearer, os.environ.get(CA_VARIABLE, ""))
        _clients[url, bearer] = found
        spare = _clients.popitem(last=False)[1] if len(_clients) > CLIENTS else None
    if spare is not None:
        spare.close()
    return found


@atexit.register
def close() -> None:
    """Close every connection."""
    with _clients_lock:
        while _clients:
            _clients.popitem()[1].close()


def _call(method: str, path: str, params: Mapping[str, Any], body: Any, key: str) -> Any:
    """One call; no answer at all is an ApiError of status 0."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ApiError(404, "not_found", "There is no such thing.", f"{path} is not an address of the API.")
    try:
        answer = _client(api_url(), token()).call(method, path, body=body, params=params, key=key)
    except Unreachable as error:
        raise ApiError(0, "unreachable", "The control plane does not answer.", str(error)) from error
    except ValueError as error:
        raise ApiError(502, "not_json", "The control plane's answer cannot be read.", str(error)) from error
    return {} if answer is None else answer


def get(path: str, *, ttl_s: float = TTL_S, **params: Any) -> Any:
    """The JSON of GET /api/v1/`path`; parameters that are None are left out. Raises ApiError.

    The answer may be up to `ttl_s` seconds old; a failure is never kept.
    """
    kept: dict[Any, tuple[float, Any]] = st.session_state.setdefault("tt_reads", {})
    key = _key(path, params)
    found = kept.get(key)
    if found and _clock() - found[0] < ttl_s:
        return found[1]
    answer = _call("GET", path, params, None, "")
    if len(kept) >= CACHED_READS:
        kept.clear()
    kept[key] = (_clock(), answer)
    _remembered()[key] = answer
    return answer


def last(path: str, **params: Any) -> Any:
    """What this viewer last read at `path`, however old; None when nothing was."""
    return _remembered().get(_key(path, params))


def _key(path: str, params: Mapping[str, Any]) -> tuple[Any, ...]:
    return (path, tuple(sorted((name, str(value)) for name, value in params.items() if value is not None)))


def _remembered() -> dict[Any, Any]:
    found: dict[Any, Any] = st.session_state.setdefault("tt_last", {})
    if len(found) >= CACHED_READS:
        found.clear()
    return found


def post(path: str, body: Mapping[str, Any] | None = None, *, idempotency_key: str = "") -> Any:
    """POST /api/v1/`path` with a JSON body; what was read before is forgotten. Raises ApiError."""
    answer = _call("POST", path, {}, dict(body or {}), idempotency_key)
    st.session_state.pop("tt_reads", None)
    return answer


def reason(error: ApiError) -> str:
    """Why a call was refused, in one line a person can act on; problems of a body with their paths."""
    rows = [f"{row.get('path', '')}: {row.get('message', '')}".strip(": ") for row in error.problems]
    said = (part.rstrip(".") + "." for part in (error.title, error.detail, error.hint) if part)
    return "; ".join(rows) or " ".join(said)


def session() -> dict[str, Any]:
    """Who the viewer is: {actor, role, kind}; empty when the API does not say."""
    try:
        found = get("session", ttl_s=SESSION_TTL_S)
    except ApiError:
        return {}
    return found if isinstance(found, dict) else {}


def may_act() -> str:
    """Why the viewer may not act, as a sentence; empty when they may. Only a courtesy: the API decides each time."""
    role = str(session().get("role") or "")
    if role in ACTING_ROLES:
        return ""
    return f"Your role, {role}, may look but not act." if role else "It is not known whether you may act."


def age(view: Mapping[str, Any]) -> float | None:
    """How old the view's data is, in seconds; None when it does not say."""
    value = view.get("age_s")
    return float(value) if value is not None else None


def now() -> float:
    """The time that ages on a page count from, in Unix seconds."""
    return time.time()


def simulated() -> bool:
    """True when any node of the fleet is simulated; False also when that cannot be read."""
    try:
        return bool(get("now").get("simulated"))
    except ApiError:
        return False
