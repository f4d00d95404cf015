"""A RayJob whose Ray is a real one: seen, stopped through the Jobs API with time to save, never run twice.

KubeRay's operator does not run here: `Operator` writes the RayJob's status as it would, out of what the real Ray says,
and the submitter's shell line is run beside that Ray as it would be run in its pod.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from controlplane.backends.base import AttemptPlan, BackendUnavailable
from controlplane.backends.kube.ray_api import OVER, RayApi
from controlplane.backends.kube.rayjob import RayJobBackend
from controlplane.backends.kube.rayjob_look import judged
from controlplane.backends.kube.rayjob_manifests import ray_token
from tests.backends.local_ray import LocalRay
from tests.kube import kuberay_operator
from tests.kube.conftest import World, until
from tests.kube.kuberay_operator import KEY, Operator

NAME = "ray-real-1"
TOKEN = ray_token(KEY, NAME)
# what a trainer does when it is told to stop: it goes on until it has saved
SAVER = """
import os, signal, sys, time
folder, told = sys.argv[1], []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
print("begun", file=open(folder + "/begun", "a"))
while not told: time.sleep(0.02)
print("told", file=open(folder + "/told", "a"))
while not os.path.exists(folder + "/may-save"): time.sleep(0.02)
print(sys.argv[2:], file=open(folder + "/saved", "a"))
sys.exit(75)
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[LocalRay]:
    found = LocalRay(TOKEN, {"RAY_JOB_STOP_WAIT_TIME_S": "120", "TRIMTAB_HEARTBEAT_DIR": "heartbeats"})
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def backend(world: World) -> Iterator[RayJobBackend]:
    with kuberay_operator.opened(world, "trimtab-controller-real-ray", hosts=("127.0.0.1",)) as found:
        yield found


@pytest.fixture
def api() -> RayApi:
    return RayApi(lambda _: TOKEN)


def post(ray: LocalRay, body: dict[str, object]) -> tuple[int, str]:
    """A submission by hand: (HTTP status, answer)."""
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    answer = urllib3.request("POST", f"{ray.address}/api/jobs/", body=json.dumps(body), headers=head, retries=False)
    return answer.status, answer.data.decode()


def info(ray: LocalRay, name: str) -> dict[str, object]:
    head = {"Authorization": f"Bearer {TOKEN}"}
    found = urllib3.request("GET", f"{ray.address}/api/jobs/{name}", headers=head, retries=False).json()
    assert isinstance(found, dict)
    return found


def output(shell: subprocess.Popen[bytes]) -> str:
    return shell.communicate(timeout=120)[0].decode()


def test_an_attempt_on_a_real_ray_saves_when_it_is_stopped_and_runs_once(
    world: World, backend: RayJobBackend, ray: LocalRay, tmp_path: Path
) -> None:
    words = ("$HOME", "a b", "c;d", "it's", "$$(x)")
    plan = AttemptPlan(
        NAME,
        "uid-real",
        1,
        "hash",
        (),
        1,
        ("{python}", "-c", SAVER, str(tmp_path), *words),
        node_count=2,
        gpus_per_node=8,
    )
    backend.submit(plan)
    operator = Operator(world.admin, NAME)
    operator.bring_up()

    def state() -> str:
        operator.say(RayApi(backend.token).status(ray.address, NAME), dashboardURL=ray.address)
        return backend.observe([NAME], 1.0)[NAME].state

    submitter = ray.run(operator.submitter_line(ray.address))
    until(lambda: (tmp_path / "begun").exists(), 120)
    until(lambda: state() == "running")

    # a submitter that comes again finds the job, and so does a plain submission of the same name
    again = ray.run(operator.submitter_line(ray.address))
    status, answer = post(ray, {"entrypoint": "python -c pass", "submission_id": NAME})
    assert status >= 400 and "already exists" in answer
    assert backend.submit(plan).adopted

    for _ in range(2):
        backend.stop(NAME, mode="terminate")  # returns while the job saves
    until(lambda: (tmp_path / "told").exists())
    assert state() == "running" and not backend.fenced(NAME) and operator.rayjob()["metadata"]["name"] == NAME
    (tmp_path / "may-save").touch()
    until(lambda: info(ray, NAME)["status"] == "STOPPED")
    until(lambda: state() == "failed")  # stopped, in Ray's words; the copy follows
    backend.stop(NAME, mode="terminate")
    until(lambda: backend.observe([NAME], 1.0)[NAME].state == "absent")
    until(lambda: backend.fenced(NAME))
    assert (tmp_path / "begun").read_text().split() == ["begun"], "it ran once"
    assert (tmp_path / "saved").read_text() == f"{list(words)}\n", "it saved, and its words came through both shells"
    assert (tmp_path / "told").read_text().split() == ["told"]
    assert NAME in output(submitter) and NAME in output(again)


def test_ray_asks_for_the_token(ray: LocalRay) -> None:
    for token in ("", "another"):
        with pytest.raises(BackendUnavailable, match=r"HTTP 40[13]"):
            RayApi(lambda _, token=token: token).status(ray.address, "any")


def test_a_job_that_ray_does_not_know_has_no_status_and_nothing_to_stop(ray: LocalRay, api: RayApi) -> None:
    assert api.status(ray.address, "unknown") == "" and not api.stop(ray.address, "unknown")


def test_a_controller_whose_lease_is_too_old_stops_nothing(ray: LocalRay) -> None:
    with pytest.raises(BackendUnavailable, match="lease"):
        RayApi(lambda _: TOKEN, lambda: False).stop(ray.address, "unknown")


def test_the_launchers_record_comes_through_rays_message(ray: LocalRay, api: RayApi) -> None:
    (ray.folder / "heartbeats").mkdir(exist_ok=True)
    line = "python -m jobs.launch -- python -c 'raise SystemExit(3)'"
    assert post(ray, {"entrypoint": line, "submission_id": "fails"})[0] == 200
    until(lambda: api.status(ray.address, "fails") in OVER, 120)
    said = info(ray, "fails")
    rayjob = {
        "metadata": {"name": "fails", "uid": "u"},
        "spec": {"rayClusterSpec": {}},
        "status": {"jobStatus": said["status"], "message": said["message"]},
    }
    found = judged("fails", rayjob, [], 1.0)
    (head,) = found.members
    assert (found.state, head.exit_code) == ("failed", 3)
    assert (head.termination or {})["class"] == "error" and "code 3" in str((head.termination or {})["message"])
    assert not api.stop(ray.address, "fails"), "what is over is not stopped again"
