"""A real command that fails on a real API server: its last lines outlive its pod, for the API and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.backends.kube.api import TAIL_BYTES, KubeApi
from controlplane.cli import cluster_nodes
from controlplane.cli.cluster_logs import kubelets_part
from controlplane.cli.cluster_runner import Runner
from controlplane.clock import SystemClock
from controlplane.services import lastwords
from controlplane.services import runs as service
from controlplane.store.engine import Store
from jobs.spec import load_template, parse_job
from tests.api.conftest import serving
from tests.cli.trimtab_process import trimtab
from tests.kube.chaos import JOBS, KubePilot, wait_for
from tests.kube.conftest import NAMESPACE, OPTIONS, World, until

RUNNERS = ("node-910", "node-911")
SCRIPT = f"""
import os, time
index = os.environ["JOB_COMPLETION_INDEX"]
print("first words of", index)
if index == "0":
    time.sleep(300)
for number in range({lastwords.BYTES // 10}):
    print("line", number, "of many")
raise SystemExit("the router lost its experts")
"""


@pytest.fixture
def pilot(world: World, controller_api: KubeApi, sqlite_store: Store, tmp_path: Path) -> Iterator[KubePilot]:
    for index in (910, 911):
        world.admin.create("/api/v1/nodes", cluster_nodes.node(index, "runner"))
    mounts = {"/var/lib/trimtab/runs": str(tmp_path / "runs"), "/run/trimtab": f"{tmp_path}/nodes/{{node}}"}
    runner = Runner(world.admin, NAMESPACE, RUNNERS, tmp_path / "pods", mounts, SystemClock())
    runner.start()
    made = KubePilot(world, controller_api, sqlite_store, tmp_path)
    made.kube.options = replace(OPTIONS, node_selector={"trimtab.dev/kubelet": "runner"})
    made.names = list(RUNNERS)
    made.greet()
    yield made
    made.close()
    runner.stop()
    for name in RUNNERS:
        world.admin.delete(f"/api/v1/nodes/{name}")


def submit(pilot: KubePilot) -> str:
    spec = load_template("toy").to_dict()
    spec["metadata"]["name"] = "last-words"
    spec["spec"]["command"] = ["{python}", "-S", "-c", SCRIPT]
    spec["spec"]["contractLevel"] = 0
    spec["spec"]["faults"] = {"mode": "observe", "graceSeconds": 1.0}
    with pilot.store.write() as session:
        now = pilot.clock.now()
        return service.submit(session, parse_job(spec), backend="kube", actor="ada", now=now).id


def test_the_last_lines_of_a_failed_rank_outlive_its_pod(
    world: World, pilot: KubePilot, tmp_path: Path, sqlite_store: Store
) -> None:
    run = submit(pilot)

    def over() -> bool:
        pilot.round(0.2)
        return bool(pilot.attempts(run)) and pilot.attempts(run)[0].state == "failed"

    wait_for(over)
    attempt = pilot.attempts(run)[0]
    world.admin.delete(f"{JOBS}/{attempt.name}")
    until(lambda: not world.pods(attempt.name) and not pilot.kube.copied_pods(attempt.name))
    parts: dict[str, Any] = {"backends": {"kube": pilot.kube}, "default_backend": "kube"}
    with serving(sqlite_store, tmp_path, **parts) as api:
        token = api.token(role="operator")
        found = api.call("GET", f"runs/{run}/logs", token).json()
        assert (found["attempt"], found["rank"], found["kept"], found["truncated"]) == (1, 1, True, True)
        assert "the router lost its experts\nlaunch: error" in found["text"] and len(found["text"]) == lastwords.BYTES
        last = lastwords.BYTES // 10 - 1
        assert f"line {last} of many\n" in found["text"] and "first words" not in found["text"]
        assert (found["ended"]["exit_code"], found["ended"]["missing"]) == (1, "")
        assert found["ended"]["node"] in RUNNERS
        few = api.call("GET", f"runs/{run}/logs", token, params={"rank": 1, "limit": 40}).json()
        assert few["text"] == found["text"][-40:]
        shown = trimtab("job", "logs", run, TRIMTAB_URL=api.url, TRIMTAB_TOKEN=token)
        assert shown.returncode == 0 and shown.stdout == found["text"]
        assert f"rank 1 on {found['ended']['node']} ended with code 1" in shown.stderr
        assert "this is what was kept of it" in shown.stderr


def test_the_end_of_a_log_is_its_end_however_long_its_lines_are(world: World, pilot: KubePilot) -> None:
    """A kubelet counts bytes from the first of the lines that it was asked for."""
    script = f"print('x' * {TAIL_BYTES} + '\\nshort and last')"
    found = load_template("toy").to_dict()
    found["metadata"]["name"] = "long-lines"
    found["spec"] |= {"command": ["{python}", "-S", "-c", script], "contractLevel": 0}
    found["spec"]["resources"]["nodes"] = 1
    with pilot.store.write() as session:
        run = service.submit(session, parse_job(found), backend="kube", actor="ada", now=pilot.clock.now()).id

    def written() -> bool:
        pilot.round(0.2)
        return bool(pilot.attempts(run)) and len(pilot.kube.read_logs(f"{run}-1", 0, 100)) > 0

    wait_for(written)
    until(lambda: b"short and last" in pilot.kube.read_logs(f"{run}-1", 0, 100))


@pytest.mark.parametrize(
    ("lines", "limit", "part"),
    [
        (None, None, b"a\nbb\nccc\n"),
        (2, None, b"bb\nccc\n"),
        (2, 4, b"bb\nc"),
        (9, 3, b"a\nb"),
        (0, None, b""),
        (None, 2, b"a\n"),
    ],
)
def test_the_runner_sends_what_a_kubelet_would(lines: int | None, limit: int | None, part: bytes) -> None:
    assert kubelets_part(b"a\nbb\nccc\n", lines, limit) == part
