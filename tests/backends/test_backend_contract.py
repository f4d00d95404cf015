"""One contract for every backend: what the controller builds on, on a scripted cluster and on real processes.

tests/kube/test_kube_contract.py runs it on a real API server. What a platform does in its own time is waited for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.backends.base import SubmitConflict
from controlplane.backends.memory import MemoryBackend
from tests.backends.benching import EXIT, INDEX, Bench, launchers, until


def test_what_was_never_submitted_is_absent_and_fenced(bench: Bench) -> None:
    found = bench.look("never")
    assert (found.state, found.observed_s, found.members) == ("absent", 5.0, ())
    assert bench.backend.fenced("never")
    bench.backend.stop("never", mode="kill")
    bench.backend.stop("never", mode="terminate")
    assert bench.backend.read_logs("never", 0) == b"" or bench.backend.name == "memory"


def test_an_attempt_runs_on_its_nodes(bench: Bench) -> None:
    plan = bench.plan()
    handle = bench.backend.submit(plan)
    assert (handle.name, handle.adopted) == (plan.name, False)
    found = bench.reaches(plan.name, "running")
    assert bench.places(found) == ("node-0", "node-1") and all(member.alive for member in found.members)
    assert found.uid == handle.uid and not bench.backend.fenced(plan.name)


def test_submitting_again_adopts_and_starts_nothing(bench: Bench) -> None:
    plan = bench.plan()
    first = bench.backend.submit(plan)
    again = bench.backend.submit(plan)
    assert again.adopted and again.uid == first.uid
    bench.reaches(plan.name, "running")
    if isinstance(bench.backend, MemoryBackend):
        assert bench.backend.calls == [("submit", plan.name)]
    else:
        assert len(launchers(plan.name)) == 2


@pytest.mark.parametrize("changes", [{"run_uid": "other"}, {"attempt_no": 2}, {"spec_hash": "other"}])
def test_a_name_that_means_something_else_is_a_conflict(bench: Bench, changes: dict[str, object]) -> None:
    plan = bench.plan()
    bench.backend.submit(plan)
    with pytest.raises(SubmitConflict, match=plan.name):
        bench.backend.submit(replace(plan, **changes))  # type: ignore[arg-type]  # a test's shorthand
    assert bench.reaches(plan.name, "running").state == "running", "it is left alone"


@pytest.mark.parametrize(("code", "state"), [(0, "succeeded"), (3, "failed")])
def test_an_attempt_ends_by_itself(bench: Bench, code: int, state: str) -> None:
    plan = bench.plan(EXIT[code])
    bench.backend.submit(plan)
    bench.reaches(plan.name, state)
    until(lambda: not any(member.alive for member in bench.look(plan.name).members))  # one may fail before the other
    until(lambda: bench.backend.fenced(plan.name))
    found = bench.look(plan.name)
    if bench.backend.name == "memory":
        return
    ended = "done" if code == 0 else "error"
    first = [member for member in found.members if member.exit_code == code]
    assert first and {(member.termination or {})["class"] for member in first} == {ended}
    # a gang ends with its first failure: whether the others came to theirs is the platform's affair
    assert code != 0 or len(first) == len(found.members) == 2
    assert bench.backend.name != "local" or len(first) == 2


def test_capacity_says_what_is_there_and_free(bench: Bench) -> None:
    plan = bench.plan(nodes=("node-1",))
    bench.backend.submit(plan)
    asked = ("node-0", "node-1", "elsewhere")
    until(lambda: bench.capacity(asked) == {"node-0": True, "node-1": False})
    bench.backend.stop(plan.name, mode="kill")
    until(lambda: bench.capacity(asked) == {"node-0": True, "node-1": True})


def test_a_killed_attempt_is_fenced_and_failed(bench: Bench) -> None:
    plan = bench.plan()
    bench.backend.submit(plan)
    bench.reaches(plan.name, "running")
    for _ in range(2):
        bench.backend.stop(plan.name, mode="kill")
    until(lambda: bench.backend.fenced(plan.name))
    assert bench.look(plan.name).state == "failed"


def test_what_members_write_is_read_by_their_number(bench: Bench) -> None:
    plan = bench.plan(INDEX)
    bench.backend.submit(plan)
    if isinstance(bench.backend, MemoryBackend):
        bench.backend.logs = {(plan.name, index): f"this is {index}\n".encode() for index in (0, 1)}
    for index in (0, 1):
        until(lambda index=index: f"this is {index}\n".encode() in bench.backend.read_logs(plan.name, index))
    assert len(bench.backend.read_logs(plan.name, 1, 3)) == 3


def test_a_forecast_makes_nothing(bench: Bench) -> None:
    plan = bench.plan()
    found = bench.backend.forecast(plan)
    assert found is None or (found.manifests and not found.refusals and not found.unasked)
    assert bench.look(plan.name).state == "absent" and bench.capacity(("node-0",)) == {"node-0": True}


def test_marks_are_for_platforms_that_have_some(bench: Bench) -> None:
    assert [one.node for one in bench.backend.mark_nodes({"elsewhere": None})] == []
    assert bench.backend.node_status(["elsewhere"]) == {}
