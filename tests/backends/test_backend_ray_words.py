"""What is concluded of a Ray attempt, out of a job's record, words, last lines and nodes; whom a driver asks to end."""

from __future__ import annotations

import io
import json
from threading import Event
from typing import Any

import pytest

from controlplane.backends.base import AttemptPlan
from controlplane.backends.ray import driver, keeper, look, words
from controlplane.backends.ray.backend import RayBackend
from controlplane.backends.ray.cluster import Nodes, RayCluster, RayNode
from controlplane.backends.ray.http import Answer, RayHttp

PLAN = AttemptPlan("run-1", "uid", 1, "hash", ("a", "b"), 2, ("true",), {"X": "1"}, 2, 8, 30.0, ("c",))
DONE = {"code": 0, "termination": {"class": "done"}, "reason": ""}
BAD = {"code": 3, "termination": {"class": "error"}, "reason": ""}
PLACED = [words.said("placed", index=index, node="ab"[index], node_id=f"id-{index}") for index in (0, 1)]
STARTED = [*PLACED, *(words.said("started", index=index) for index in (0, 1))]


def ended(index: int, end: object) -> str:
    return words.said("ended", index=index, end=end)


def node(index: int, *, alive: bool, ended_s: float = 0.0) -> RayNode:
    return RayNode(f"id-{index}", "ab"[index], alive, index == 0, 8.0, 100.0, ended_s, "" if alive else "no heartbeat")


def seen(status: str, lines: list[str], nodes: dict[str, RayNode] | None = None, ends: Any = None) -> Any:
    job = {"status": status, "metadata": {look.SIZE: "2"}, "submission_id": "run-1", "start_time": 5, "message": "m\nn"}
    return look.judged("run-1", job, look.told(words.heard("\n".join(lines))), ends or {}, nodes or {}, 9.0)


def test_a_plan_comes_through_its_variable() -> None:
    assert words.read_plan(words.plan_text(PLAN, "/run/x")) == (PLAN, "/run/x")
    for text in ("{}", "[]", '{"plan": {"name": 1}, "runtime_path": ""}', "not json"):
        with pytest.raises(ValueError, match=r"plan|Expecting"):
            words.read_plan(text)


def test_lines_that_are_cut_or_somebody_elses_are_skipped() -> None:
    output = "\n".join(["a warning of Ray's", words.MARK + "[1]", words.MARK + "{}", PLACED[0], PLACED[1][:-4]])
    assert [word["index"] for word in words.heard(output)] == [0]
    strange = [words.said("ended", index="x"), words.said("started", index=7), words.said("placed", index=0, node=1)]
    assert look.told(words.heard("\n".join(strange))).parts == {}


def test_the_last_line_of_a_member_is_its_end_and_nothing_else_is() -> None:
    line = f"step 4\n\n{words.ENDED}{json.dumps(BAD)}\n".encode()
    assert words.last_line(line) == BAD
    for other in (b"", b"step 4\n", line[:-20], line + b"more\n", words.ENDED.encode() + b"{}\n"):
        assert words.last_line(other) is None


@pytest.mark.parametrize(
    ("status", "lines", "state"),
    [
        ("PENDING", [], "pending"),
        ("RUNNING", [], "pending"),
        ("RUNNING", PLACED, "pending"),
        ("RUNNING", STARTED[:3], "pending"),
        ("RUNNING", STARTED, "running"),
        ("RUNNING", [*STARTED, ended(0, DONE)], "running"),
        ("RUNNING", [*STARTED, ended(0, DONE), ended(1, DONE)], "succeeded"),
        ("SUCCEEDED", [*STARTED, ended(0, DONE), ended(1, DONE)], "succeeded"),
        ("RUNNING", [*STARTED, ended(1, BAD)], "failed"),
        ("RUNNING", [*STARTED, words.said("lost", index=0, reason="gone")], "failed"),
        ("STOPPED", STARTED, "failed"),
        ("FAILED", [], "failed"),
        ("SUCCEEDED", [], "failed"),
    ],
)
def test_a_gang_runs_whole_and_ends_with_its_first_failure(status: str, lines: list[str], state: str) -> None:
    assert seen(status, lines).state == state


def test_reasons_name_the_member_or_repeat_what_was_said() -> None:
    assert seen("RUNNING", [*STARTED, ended(1, BAD)]).reason == "member 1 on b ended with code 3"
    assert "Ray lost member 0 on a" in seen("RUNNING", [*STARTED, words.said("lost", index=0, reason="gone")]).reason
    refused = [words.said("refused", reason="the Ray cluster has no node b")]
    assert seen("FAILED", refused).reason == "the Ray cluster has no node b"
    assert seen("FAILED", []).reason == "Ray says FAILED: n", "the last line of a traceback"
    assert seen("STOPPED", STARTED).reason == "Ray says STOPPED: m"


def test_a_driver_that_placed_nobody_says_why_in_a_record() -> None:
    refused = [words.said("refused", reason="the Ray cluster has no node b")]
    for lines, kind, message in ((refused, "never_started", "has no node b"), ([], "error", "FAILED: n")):
        (member,) = seen("FAILED", lines).members
        assert not member.alive and (member.termination or {})["class"] == kind
        assert message in str((member.termination or {})["message"])
    assert seen("STOPPED", []).members == ()


def test_a_member_whose_end_nobody_heard_counts_as_alive() -> None:
    first, second = seen("FAILED", STARTED, {"id-1": node(1, alive=False)}, {0: BAD}).members
    assert (first.alive, first.exit_code) == (False, 3)
    assert (second.alive, second.running, second.stuck) == (True, False, True) and "no heartbeat" in second.reason


def test_a_member_that_ray_lost_is_blamed_before_those_that_were_told_to_end() -> None:
    lost = [*STARTED, words.said("lost", index=1, reason="its worker died"), ended(0, BAD)]
    member = seen("RUNNING", lost).members[1]
    assert (member.termination or {})["class"] == "killed" and (member.termination or {})["at_s"] == 0.0


def test_a_node_that_ray_gave_up_is_waited_out() -> None:
    dead = node(1, alive=False, ended_s=1000.0)
    assert not look.given_up(dead, 1089.0, 90.0) and look.given_up(dead, 1090.0, 90.0)
    assert not look.given_up(node(1, alive=True), 9999.0, 90.0)
    assert not look.given_up(dead, 0.0, 90.0), "a head without a clock proves nothing"
    assert look.given_up(None, 1.0, 90.0)


class Asked:
    """Stands for an actor, or a launcher, and counts how often it is asked to end."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def terminate(self) -> Any:
        return self

    def remote(self) -> None:
        self.count += 1

    __call__ = remote


def test_who_goes_on_is_asked_to_end_again_and_its_launcher_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = driver.Gang(PLAN, "/run/x")
    actors = gang._actors = [Asked(), Asked()]
    gang._ask()
    gang._ask()
    assert [one.count for one in actors] == [1, 1], "not at every look"
    monkeypatch.setattr(driver, "ASK_AGAIN_S", 0.0)
    gang._ended(0, DONE)
    gang._ask()
    assert [one.count for one in actors] == [1, 2]
    launcher, over = Asked(), Event()
    over.set()
    keeper._listen(io.StringIO("terminate\nterminate\n"), launcher, Event(), over)  # type: ignore[arg-type]  # as above
    assert launcher.count == 1


def test_an_output_without_a_word_is_lost_if_its_driver_was_started() -> None:
    begun, silent = look.told(words.heard(words.said("began"))), look.told(words.heard("Traceback\n"))
    job = {"status": "FAILED", "driver_node_id": "id-0", "end_time": 1_000_000}
    assert look.unheard(silent, job) and not look.unheard(begun, job)
    assert not look.unheard(silent, job | {"driver_node_id": None}), "it never began"
    assert not look.long_over(job, 1089.0, 90.0) and look.long_over(job, 1090.0, 90.0)
    assert not look.long_over(job | {"end_time": None}, 9999.0, 90.0) and not look.long_over(job, 0.0, 90.0)


def test_of_two_raylets_of_one_name_the_living_or_younger_counts() -> None:
    old, new = node(0, alive=False, ended_s=150.0), RayNode("id-9", "a", True, True, 8.0, 160.0, 0.0, "")
    nodes = Nodes((new, old), 200.0)
    assert nodes.alive() == {"a": new} and nodes.head_age_s() == 40.0
    assert Nodes((old,), 200.0).head_age_s() == 0.0 and Nodes((new,), 0.0).head_age_s() == 0.0


def test_a_node_is_called_by_its_label_first() -> None:
    assert words.node_name("10.0.0.7", {words.NODE_LABEL: "mi300-7"}) == "mi300-7"
    assert words.node_name("mi300-7", {}) == "mi300-7"


class Dashboard(RayHttp):
    """Answers as Ray's dashboard does, of jobs with their output; no member has left a last line."""

    def __init__(self) -> None:
        super().__init__(lambda: "")
        self.jobs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, list[str]] = {}
        self.sent: list[dict[str, Any]] = []

    def call(self, method: str, address: str, path: str, body: Any = None) -> Answer:
        name, _, rest = path.removeprefix("/api/jobs/").partition("/")
        if path.startswith("/api/v0/logs"):
            return Answer(500, b"not found at")
        if path.startswith("/api/v0/nodes"):
            rows = [{"node_id": f"id-{at}", "node_name": "ab"[at], "state": "ALIVE"} for at in (0, 1)]
            return Answer(200, json.dumps({"result": True, "data": {"result": {"result": rows}}}).encode(), 1000.0)
        if method == "POST":
            if body["submission_id"] in self.jobs:
                return Answer(500, b"already exists")
            self.sent.append(body)
            self.jobs[body["submission_id"]] = body | {"status": "RUNNING", "start_time": len(self.sent)}
        if method == "DELETE":
            del self.jobs[name], self.outputs[name]
        if rest == "logs":
            return Answer(200, json.dumps({"logs": "\n".join(self.outputs.get(name, []))}).encode())
        if method == "GET" and name not in self.jobs:
            return Answer(404, b"")
        return Answer(200, json.dumps(self.jobs.get(name, {})).encode())

    def killer_ends(self) -> None:
        """It has found nothing on either node."""
        self.jobs["run-1.kill"]["status"] = "SUCCEEDED"
        self.outputs["run-1.kill"] = [words.said("cleared", node_id=f"id-{at}") for at in (0, 1)]


def test_a_killer_that_was_sent_before_the_driver_ended_has_cleared_nothing() -> None:
    """It ran when the members were placed and had not begun; then they began, and their driver was killed."""
    ray = Dashboard()
    backend = RayBackend(RayCluster("http://ray", ray))
    ray.jobs["run-1"] = {"submission_id": "run-1", "status": "RUNNING", "metadata": {look.SIZE: "2"}, "start_time": 5}
    ray.outputs["run-1"] = PLACED
    backend.stop("run-1", mode="kill")
    ray.killer_ends()
    ray.outputs["run-1"] = STARTED
    ray.jobs["run-1"]["status"] = "FAILED"
    assert not backend.fenced("run-1"), "nobody has looked since"
    assert [one.alive for one in backend.observe(["run-1"], 9.0)["run-1"].members] == [True, True]
    backend.stop("run-1", mode="kill")
    assert len(ray.sent) == 2 and not backend.fenced("run-1"), "another one is on its way"
    ray.killer_ends()
    assert backend.fenced("run-1")
    assert [one.exit_code for one in backend.observe(["run-1"], 9.0)["run-1"].members] == [137, 137]
    backend.stop("run-1", mode="kill")
    assert len(ray.sent) == 2
