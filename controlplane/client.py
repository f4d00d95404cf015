"""The one door to the control plane for people's programs: the CLI, the demo, scripts. Plain JSON out, errors as
values.

It knows no rule and keeps no state but its connection; the API decides everything.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx2

TIMEOUT_S = 30.0
Json = dict[str, Any]


@dataclass
class ApiError(Exception):
    """A call that the server refused, as a problem document."""

    status: int
    code: str
    title: str
    detail: str = ""
    hint: str = ""
    problems: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        rows = ["\n  " + ": ".join(filter(None, (one.get("path"), one.get("message")))) for one in self.problems]
        text = ". ".join(part.rstrip(".") for part in (self.title, self.detail, self.hint) if part)
        return text + "".join(rows)


class Unreachable(Exception):
    """No answer: the server is down, or not there."""


@dataclass(frozen=True)
class Download:
    """A file that is being sent: the name that the server gives it, and its content."""

    name: str
    pieces: Iterator[bytes]


def trust(ca_file: str) -> ssl.SSLContext | bool:
    """What a server's certificate is checked by: this authority alone, or those that the machine trusts.

    Unreachable, naming the file, when it cannot be read.
    """
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one as well
        raise Unreachable(f"the authority's file {ca_file} cannot be used: {error}") from error


class Client:
    """One server under one token. Safe for several threads. `ca_file`: see `trust`."""

    def __init__(self, url: str, token: str = "", ca_file: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=trust(ca_file)
        )

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def call(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, Any] | None = None, key: str = ""
    ) -> Any:
        """One call under /api/v1; JSON or None. Raises ApiError or Unreachable."""
        headers = {"Idempotency-Key": key} if key else {}
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = self._http.request(method, _address(path), json=body, params=given, headers=headers)
        except httpx2.HTTPError as error:
            raise Unreachable(f"{self.url} does not answer: {error}") from error
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer.json() if answer.content else None

    @contextmanager
    def download(self, path: str, **params: Any) -> Iterator[Download]:
        """GET of a file, a piece at a time. Raises ApiError or Unreachable, also when it breaks off."""
        given = {name: value for name, value in params.items() if value is not None}
        try:
            with self._http.stream("GET", _address(path), params=given) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                named = re.search(r'filename="([^"/\\]+)"', answer.headers.get("content-disposition", ""))
                yield Download(named[1] if named else path.rsplit("/", 1)[-1], answer.iter_bytes())
        except httpx2.HTTPError as error:
            raise Unreachable(f"{self.url} does not answer to the end: {error}") from error

    def get(self, path: str, **params: Any) -> Any:
        """GET; see `call`."""
        return self.call("GET", path, params=params)

    def every(self, path: str, **params: Any) -> Iterator[Json]:
        """Every row of a list that comes in pages, under the name of its path, such as runs; see `call`."""
        cursor = None
        while True:
            page = self.get(path, **{"limit": 500, **params, "cursor": cursor})
            yield from page[path]
            cursor = page["next"]
            if cursor is None:
                return

    def post(self, path: str, body: Any = None, *, key: str = "") -> Any:
        """POST; see `call`. `key` makes a repeat harmless."""
        return self.call("POST", path, body=body if body is not None else {}, key=key)

    # --- the calls that have a name ---

    def submit(self, spec: Mapping[str, Any] | str, *, key: str = "") -> Json:
        """Submits a job, as a mapping or YAML text; returns the run."""
        body = {"yaml": spec} if isinstance(spec, str) else {"spec": dict(spec)}
        run: Json = self.post("runs", body, key=key)
        return run

    def validate(self, spec: Mapping[str, Any] | str) -> Json:
        """The preflight of a job."""
        body = {"yaml": spec} if isinstance(spec, str) else {"spec": dict(spec)}
        found: Json = self.post("runs/validate", body)
        return found

    def run(self, run_id: str) -> Json:
        """One run, whole."""
        found: Json = self.get(f"runs/{run_id}")
        return found

    def why(self, run_id: str) -> Json:
        """Why a run restarted."""
        found: Json = self.get(f"runs/{run_id}/why")
        return found

    def submit_lifecycle(self, plan: Mapping[str, Any] | str, *, key: str = "") -> Json:
        """Submits a lifecycle, as a mapping or YAML text; returns it whole."""
        made: Json = self.post("lifecycles", {"yaml": plan} if isinstance(plan, str) else {"spec": dict(plan)}, key=key)
        return made

    def validate_lifecycle(self, plan: Mapping[str, Any] | str) -> Json:
        """What is wrong with a lifecycle, what it would do, what differs from the last of its name."""
        found: Json = self.post(
            "lifecycles/validate", {"yaml": plan} if isinstance(plan, str) else {"spec": dict(plan)}
        )
        return found

    def lifecycle(self, named: str) -> Json:
        """One lifecycle, whole."""
        found: Json = self.get(f"lifecycles/{named}")
        return found

    def nodes(self) -> list[Json]:
        """Every node."""
        found: list[Json] = self.get("nodes")["nodes"]
        return found

    def dashboard(self) -> str:
        """Where the pages are, as the server says, without a slash at the end; empty when it has started none."""
        told = self.get("session").get("dashboard")
        return str(told or "").rstrip("/")

    def drill(self, node: str, kind: str, gpu: int) -> Json:
        """A fault drill on a simulated node."""
        found: Json = self.post(f"nodes/{node}/drills", {"kind": kind, "gpu": gpu})
        return found


def _address(path: str) -> str:
    """ApiError where a part is empty or leads elsewhere: a name was left out, and another call would be made."""
    if {"", ".", ".."} & set(path.split("/")):
        raise ApiError(404, "not_found", f"There is nothing at {path!r}", "A name in it is missing or is none")
    return "/api/v1/" + "/".join(quote(part, safe="") for part in path.split("/"))


def _refusal(answer: httpx2.Response) -> ApiError:
    try:
        told = answer.json()
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    return ApiError(
        answer.status_code,
        str(told.get("code") or f"http_{answer.status_code}"),
        str(told.get("title") or answer.reason_phrase),
        str(told.get("detail") or ""),
        str(told.get("hint") or ""),
        [one for one in told.get("problems") or () if isinstance(one, dict)],
    )
