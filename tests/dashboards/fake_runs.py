"""A small real HTTP server that answers as the API does for runs, submissions and incidents, and notes each call.

Not a model of the API: it replays samples_runs and what a test puts in their place. The pages reach it over a socket,
as they reach the real one, so paths, query, headers and problem documents are the real ones too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import samples_runs as samples
import yaml
from fake_fleet import Fleet


@dataclass
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    key: str


@dataclass
class FakeApi:
    """Answers by "METHOD path"; an answer is JSON, bytes of a frame, or (status, JSON) for a refusal."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    url: str = ""

    def refuse(self, what: str, status: int, code: str, title: str, **more: Any) -> None:
        """Answer one request with a problem document."""
        self.answers[what] = (status, {"type": "about:blank", "title": title, "status": status, "code": code, **more})

    def writes(self) -> list[Call]:
        """The requests that change something; a validation changes nothing."""
        return [call for call in self.calls if call.method != "GET" and not call.path.endswith("/validate")]

    def answer(self, call: Call) -> tuple[int, Any]:
        """The answer to one request; 404 as a problem document where there is none."""
        found = self.answers.get(f"{call.method} {call.path}")
        if callable(found):
            found = found(call)
        if isinstance(found, tuple):
            return found
        if found is None:
            return 404, {"title": "There is no such thing.", "status": 404, "code": "not_found", "detail": call.path}
        return (201 if call.method == "POST" and call.path == "runs" else 200), found


def default_answers() -> dict[str, Any]:
    """One training run after a restart, one open incident, one template, an operator."""
    run = f"runs/{samples.RUN_ID}"
    node = {"name": "sim-node-02", "state": "quarantined", "state_reason": "uncorrectable HBM errors"}
    gpus = [{"index": index, "state": "fault" if index == 3 else "drained"} for index in range(8)]
    template = {"name": samples.TEMPLATE_NAME, "yaml": yaml.safe_dump(samples.SPEC, sort_keys=False)}
    answers: dict[str, Any] = {
        "GET session": {"actor": "admin", "role": "operator", "kind": "login"},
        "POST session/open": {"token": "tt_login_operator_0001", "role": "operator", "expires_s": 4e9},
        "GET now": {"simulated": True},
        "GET fleet/frame": Fleet(4).frame()[1],
        "GET runs": {"runs": [samples.run_row()], "next": None},
        f"GET {run}": samples.run_view(),
        f"GET {run}/steps": samples.steps(),
        f"GET {run}/why": samples.WHY,
        f"GET {run}/logs": {"lines": ["step 1 loss 6.2", "step 2 loss 6.1"]},
        "GET templates": {"templates": [{"name": samples.TEMPLATE_NAME}]},
        f"GET templates/{samples.TEMPLATE_NAME}": template,
        "POST runs/validate": samples.VALIDATION,
        "POST runs": samples.new_run_view(),
        "GET incidents": {"incidents": [samples.INCIDENT]},
        "GET incidents/1": samples.INCIDENT_VIEW,
        "GET rules": {"rules": samples.RULES},
        "GET channels": {"channels": samples.CHANNELS},
        "POST channels/ops/test": {"ok": True, "error": ""},
        "GET nodes/sim-node-02": {**node, "gpus": gpus},
    }
    for verb in ("stop", "pause", "resume", "restart"):
        answers[f"POST {run}/{verb}"] = samples.run_view()
    for verb in ("ack", "resolve", "silence"):
        answers[f"POST incidents/1/{verb}"] = samples.INCIDENT
    return deepcopy(answers)


@contextmanager
def serving() -> Iterator[FakeApi]:
    """The fake API on a free loopback port, with its default answers."""
    api = FakeApi(default_answers())

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            path = parts.path.removeprefix("/api/v1/")
            call = Call(self.command, path, query, body, self.headers.get("Idempotency-Key") or "")
            api.calls.append(call)
            status, answer = api.answer(call)
            sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            kind = "application/json" if status < 400 else "application/problem+json"
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if sent is answer else kind)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_DELETE = do_PUT = _do

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
