"""A real transformers Trainer under the real server, its script unchanged: it reports by itself, is killed, and goes on
from the exact checkpoint, in its own words. A command that says nothing at all runs beside it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from agents.node.agent import columns
from agents.node.sources.simulated import SimulatedSource
from agents.wire import Batch, encode
from controlplane.client import Client
from tests.cli.trimtab_process import serve

SCRIPT = Path(__file__).with_name("train_causal_lm.py")
RESOURCES = {"nodes": 1, "gpusPerNode": 8}
TRAINER: dict[str, Any] = {
    "metadata": {"name": "tiny"},
    "spec": {
        "stage": "sft",
        "command": [
            *("{python}", str(SCRIPT), "--output_dir", "{checkpoint_dir}", "--max_steps", "{steps}"),
            *("--save_steps", "{checkpoint_every}", "--logging_steps", "1", "--per_device_train_batch_size", "1"),
            *("--use_cpu", "true", "--disable_tqdm", "true", "{resume}"),
        ],
        "resources": RESOURCES,
        "train": {"steps": 28, "checkpointEvery": 8},
        "trainer": {"layout": "huggingface"},
        "contractLevel": 1,
    },
}
SILENT: dict[str, Any] = {
    "metadata": {"name": "silent"},
    "spec": {
        "stage": "anything",
        "command": ["sh", "-c", "echo as it was; sleep 3; exit 7"],
        "resources": RESOURCES,
        "train": {"steps": 1},
        "faults": {"mode": "observe"},
        "contractLevel": 0,
    },
}


def send(node: str, url: str, token: str, ended: threading.Event) -> None:
    """A node's agent: a batch a second."""
    source, sequence = SimulatedSource(node, time.time()), 0
    while not ended.wait(1.0 if sequence else 0.0):
        sequence, now = sequence + 1, time.time()
        gpu, facts = columns([source.sample(now, time.monotonic())], "gpu"), source.facts()
        body = encode(Batch(node, "b", sequence, "simulated", True, "0", now, now, gpu=gpu, facts=facts))
        request = urllib.request.Request(f"{url}/api/v1/ingest", body, {"Authorization": f"Bearer {token}"})
        urllib.request.urlopen(request, timeout=10).close()


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.4)
    return found


def kill(attempt: str) -> None:
    """The trainer of an attempt is killed from outside; its launcher lives."""
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("TRIMTAB_ATTEMPT_NAME") == attempt and str(SCRIPT) in process.cmdline()
        except psutil.Error:
            continue
        if mine and "jobs.launch" not in process.cmdline():
            os.kill(process.pid, signal.SIGKILL)


def test_an_unchanged_trainer_reports_is_killed_and_resumes_exactly(tmp_path: Path) -> None:
    data, nodes = tmp_path / "data", ("node-a", "node-b")
    for node in nodes:
        (data / "nodes" / node).mkdir(parents=True)
    server, ended = serve(data), threading.Event()
    client = Client(server.url, server.token)
    tokens = [client.post("tokens", {"kind": "agent", "node": node})["token"] for node in nodes]
    sending = [
        threading.Thread(target=send, args=(node, server.url, token, ended), daemon=True)
        for node, token in zip(nodes, tokens, strict=True)
    ]
    for thread in sending:
        thread.start()
    try:
        until(lambda: len(client.nodes()) == 2)
        trains, says_nothing = client.submit(TRAINER)["id"], client.submit(SILENT)["id"]
        reports(client, trains)
        is_left_alone(client, says_nothing)
        goes_on(client, trains)
    finally:
        ended.set()
        for thread in sending:
            thread.join(15)
        client.close()
        server.end()


def reports(client: Client, run_id: str) -> None:
    run = until(lambda: (found := client.run(run_id))["step"] and found["step"] > 8 and found)
    told = run["told"]
    assert told["by"] == "kubeflow" and 0 < told["progress"] < 100 and told["remaining_s"] > 0
    assert told["metrics"]["total_steps"] == 28 and told["metrics"]["current_step"] == run["step"]
    assert run["loss"] is not None and run["progress"] == run["step"] / 28
    assert run["attempt_state"] == "training"
    saved = until(lambda: client.get(f"runs/{run_id}/checkpoints")["checkpoints"])
    assert (
        saved[-1]["step"] == 8 and saved[-1]["state"] == "validated" and "listed and hashed here" in saved[-1]["note"]
    )
    kill(f"{run_id}-1")


def is_left_alone(client: Client, run_id: str) -> None:
    """Level 0: its log is kept, its end is classed, and it was not ended for its silence."""
    run = until(lambda: (found := client.run(run_id))["status"] == "needs_human" and found)
    (attempt,) = run["attempts"]
    assert (attempt["state"], attempt["end_class"]) == ("failed", "error")
    assert attempt["end"]["message"] == "ended with code 7 and left no record"
    assert "as it was" in client.get(f"runs/{run_id}/logs")["text"]


def goes_on(client: Client, run_id: str) -> None:
    run = until(lambda: (found := client.run(run_id))["status"] == "succeeded" and found)
    first, second = run["attempts"]
    assert (first["end_class"], second["state"]) == ("killed", "succeeded")
    assert second["resume_step"] % 8 == 0 and second["resume_step"] >= 8

    def listed() -> set[int]:
        found = client.get(f"runs/{run_id}/checkpoints")["checkpoints"]
        return {one["step"] for one in found if one["attempt"] == 2}

    until(lambda: 28 in listed())  # a directory counts once it has stood still for a while, which may outlast the run
    assert listed() == {step for step in (8, 16, 24, 28) if step > second["resume_step"]}, "it began after that step"
