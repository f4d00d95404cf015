"""The Kubeflow status route: whose word is taken, what becomes of it, and the metering of files beside it."""

from __future__ import annotations

import json
import struct
from typing import Any

from controlplane.services import runs as service
from controlplane.services.metering import Metering
from controlplane.services.reconcile import LEASE
from controlplane.store import leases, runs
from jobs.meters.events import masked_crc
from jobs.spec import load_template, parse_job
from tests.api.conftest import Api


class Job:
    """A run on the scripted cluster whose first attempt runs."""

    def __init__(self, api: Api, node: str = "node-a", **body: Any) -> None:
        self.api = api
        spec = load_template("toy").to_dict()
        spec["spec"] |= {"contractLevel": 1, "command": ["train"], **body}
        spec["spec"]["resources"]["nodes"] = 1
        api.report(node)
        with api.context.store.write() as session:
            holder = leases.this_process("test")
            epoch = leases.acquire(session, LEASE, holder, now=api.context.clock.now(), ttl_s=600)
            run = service.submit(session, parse_job(spec), backend="memory", actor="ada", now=api.context.clock.now())
        assert epoch is not None
        self.id, self.epoch = run.id, epoch
        self.round()
        api.backend.run(f"{self.id}-1")
        self.round()

    def round(self) -> None:
        self.api.controller.reconcile_once(self.epoch, self.api.context.clock.now())

    def trainer(self, **claims: Any) -> str:
        return self.api.token("trainer", **{"run_id": self.id, "attempt_no": 1, "epoch": 1, **claims})

    def post(self, token: str, progress: int | None = None, remaining: int | None = None, **metrics: Any) -> Any:
        told: dict[str, Any] = {"lastUpdatedTime": "2026-11-29T10:00:00+00:00"}
        told |= {} if progress is None else {"progressPercentage": progress}
        told |= {} if remaining is None else {"estimatedRemainingSeconds": remaining}
        told |= {"metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()]} if metrics else {}
        return self.api.call("POST", f"runs/{self.id}/kubeflow/status", token, json={"trainerStatus": told})

    def shown(self, part: str = "") -> Any:
        token = self.api.token(role="viewer")
        return self.api.call("GET", f"runs/{self.id}{part}", token).json()

    def meter(self) -> int:
        context = self.api.context
        found = Metering(context.store, context.places, context.backends)
        return found.read_once(self.epoch, context.clock.now())


def test_a_trainer_s_words_become_steps_progress_and_metrics(api: Api) -> None:
    job = Job(api)
    token = job.trainer()
    assert job.post(token, 0, total_steps=200).json() == {"steps": 0}
    assert job.shown()["told"]["progress"] == 0 and job.shown()["step"] is None
    assert job.post(token, 10, 90, current_step=20, loss=2.5, grad_norm=1.0, learning_rate=1e-4).json() == {"steps": 1}
    assert job.post(token, 15, 85, current_step=30, loss="nan", current_epoch=0.5).json() == {"steps": 1}
    job.round()
    run = job.shown()
    assert (run["step"], run["progress"], run["attempt_state"]) == (30, 0.15, "training")
    assert (run["attempts"][0]["first_step"], run["attempts"][0]["last_step"]) == (20, 30)
    told = run["told"]
    assert (told["by"], told["progress"], told["remaining_s"]) == ("kubeflow", 15, 85)
    assert told["metrics"]["current_epoch"] == 0.5 and told["metrics"]["loss"] == 2.5, "JSON has no NaN"
    (series,) = job.shown("/steps")["attempts"]
    assert (series["step"], series["loss"], series["grad_norm"]) == ([20, 30], [2.5, None], [1.0, None])
    # the closing message says 100 however a training ended: the steps say how far it came
    assert job.post(token, 100, 0, train_runtime=3.0).json() == {"steps": 0}
    assert (job.shown()["step"], job.shown()["progress"]) == (30, 0.15)


def test_only_the_attempt_s_own_trainer_is_heard(api: Api) -> None:
    job = Job(api)
    for token in (api.token(role="admin"), api.token("agent", node="node-a"), job.trainer(run_id="other")):
        assert job.post(token, 5).status_code == 403
    assert job.post("", 5).status_code == 401
    assert job.post(job.trainer(epoch=9), 5).status_code == 403
    assert job.shown()["told"] is None


NO_STATUS: list[dict[str, Any]] = [
    {},
    {"trainerStatus": {"progressPercentage": 101}},
    {"trainerStatus": {"estimatedRemainingSeconds": -1}},
    {"trainerStatus": {"metrics": [{"name": "a"}]}},
    {"trainerStatus": {"metrics": [{"name": "a", "value": "1"}] * 257}},
]


def test_what_is_no_status_is_refused_and_steps_that_are_none_are_left_out(api: Api) -> None:
    job = Job(api)
    for body in NO_STATUS:
        assert api.call("POST", f"runs/{job.id}/kubeflow/status", job.trainer(), json=body).status_code == 422, body
    for value in ("nan", "1.5", "-3", "0", "many", "1e300"):
        assert job.post(job.trainer(), 5, current_step=value, loss=1.0).json() == {"steps": 0}


def test_a_job_that_speaks_for_itself_is_not_spoken_for(api: Api) -> None:
    job = Job(api, contractLevel=2, command=["{python}", "-m", "jobs.zaya.train"])
    assert job.post(job.trainer(), 50, current_step=10, loss=1.0).json() == {"steps": 0}
    assert job.shown()["told"] is None


def test_steps_jsonl_is_read_once_and_of_this_attempt_and_epoch_alone(api: Api) -> None:
    job = Job(api)
    path = api.context.places.run(job.id) / "steps.jsonl"
    line = {"attempt_no": 1, "epoch": 1, "rank": 0, "at_s": 1000.0, "loss": 3.0, "tokens": 100}
    other = [{**line, "step": 7, "attempt_no": 2}, {**line, "step": 8, "epoch": 5}]
    own = [{**line, "step": 1}, {**line, "step": 2, "at_s": 1004.0}, {**line, "step": 2, "rank": 1, "at_s": 1005.0}]
    path.write_text("\n".join(map(json.dumps, [*other, *own])) + "\nnonsense\n")
    assert job.meter() == 3
    (series,) = job.shown("/steps")["attempts"]
    assert (series["step"], series["loss"], series["at_s"]) == ([1, 2], [3.0, 3.0], [1000.0, 1005.0])
    with path.open("a") as file:
        file.write(json.dumps({**line, "step": 3, "at_s": 1008.0}) + "\n")
    assert job.meter() == 1, "after a restart of the server what is known is passed over"
    job.round()
    assert job.shown()["attempts"][0]["last_step"] == 3 and job.shown()["told"]["by"] == "steps.jsonl"


def test_a_meter_s_files_and_logs_are_followed(api: Api) -> None:
    job = Job(api, trainer={"meter": "verl"})
    path = api.context.places.attempt(job.id, 1) / "metrics.jsonl"
    data = [{"step": step, "data": {"actor/pg_loss": 0.5, "perf/time_per_step": 10.0}} for step in (1, 2, 3)]
    path.write_text("\n".join(map(json.dumps, data)) + "\n")
    assert job.meter() == 3
    (series,) = job.shown("/steps")["attempts"]
    assert series["step"] == [1, 2, 3] and series["step_seconds"] == [10.0] * 3
    assert [round(b - a, 3) for a, b in zip(series["at_s"], series["at_s"][1:], strict=False)] == [10.0, 10.0]
    printing = Job(api, "node-b", trainer={"meter": "torchtitan-log"})
    api.backend.logs[f"{printing.id}-1", 0] = (
        b"step:  1  loss:  8.2  grad_norm:  1.5\nstep:  2  loss: 8.1  grad_norm: 1.4"
    )
    assert printing.meter() == 1, "a line without its end waits for it"
    assert printing.shown("/steps")["attempts"][0]["grad_norm"] == [1.5]


def event(tag: str, step: int, value: float) -> bytes:
    """A scalar as a record of an event file."""
    text = tag.encode()
    told = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", value)
    told = b"\x0a" + bytes([len(told)]) + told
    body = b"\x09" + struct.pack("<d", 1000.0 + step) + b"\x10" + bytes([step]) + b"\x2a" + bytes([len(told)]) + told
    head = struct.pack("<Q", len(body))
    return head + struct.pack("<I", masked_crc(head)) + body + struct.pack("<I", masked_crc(body))


def test_what_a_resumed_trainer_tells_again_is_passed_over(api: Api) -> None:
    """ROLL counts from 0, and resumed from step 25 writes its history again before it goes on."""
    job = Job(api, trainer={"meter": "roll"})
    with api.context.store.write() as session:
        runs.attempt_of(session, job.id, 1).resume_step = 25
    path = api.context.places.attempt(job.id, 1) / "tensorboard" / "events.out.tfevents.1"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(event("actor/total_loss", number, 0.25) for number in (23, 24, 25, 26)))
    assert job.meter() == 2
    assert job.shown("/steps")["attempts"][0]["step"] == [26, 27]
