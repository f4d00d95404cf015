"""One call to a Ray dashboard, by plain HTTP with the cluster's token. No Ray is imported for it.

A dashboard that does not answer, or refuses the token, says nothing: BackendUnavailable. What an answer means is its
reader's affair.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import urllib3

from controlplane.backends.base import BackendUnavailable

ANSWER_AT_MOST = 16 << 20
SAID_AT_MOST = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `head_s` is the clock of the head's machine, Unix seconds; 0 if it told none."""

    status: int
    body: bytes
    head_s: float = 0.0

    def json(self) -> Any:
        """The body's JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def words(self) -> str:
        """The end of the body, for a sentence: of a traceback, which Ray likes to answer, the last line says it."""
        return self.body[-SAID_AT_MOST:].decode("utf-8", "replace").strip()


class RayHttp:
    """Calls to Ray dashboards. `token` is asked before each call, so that it may be a file that changes."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3.0, read=10.0), retries=False, maxsize=8)

    def call(self, method: str, address: str, path: str, body: object = None) -> Answer:
        """The answer to one call, whatever its status but 401 and 403. BackendUnavailable when there is none."""
        head = {"Accept": "application/json", "Content-Type": "application/json"}
        token = self._token()
        if token:
            head["Authorization"] = f"Bearer {token}"
        try:
            response = self._pool.request(
                method,
                address + path,
                headers=head,
                body=None if body is None else json.dumps(body),
                redirect=False,  # the token is for this address alone
                preload_content=False,
            )
            try:
                raw = response.read(ANSWER_AT_MOST)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise BackendUnavailable(f"{method} {path}: Ray at {address} does not answer: {error}") from error
        found = Answer(response.status, raw, _unix(response.headers.get("Date")))
        if found.status in (401, 403):
            raise BackendUnavailable(f"{method} {path}: Ray at {address} answers HTTP {found.status}: {found.words}")
        return found


def _unix(date: str | None) -> float:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return 0.0
