"""One contract for every backend: what the controller builds on, on a scripted cluster and on real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.backends.base import SubmitConflict
from controlplane.backends.memory import MemoryBackend
from tests.backends.benching import EXIT, Bench, launchers, until


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
    assert found.nodes == ("node-0", "node-1") and all(member.alive for member in found.members)
    assert found.uid == handle.uid and not bench.backend.fenced(plan.name)


def test_submitting_again_adopts_and_starts_nothing(bench: Bench) -> None:
    plan = bench.plan()
    first = bench.backend.submit(plan)
    again = bench.backend.submit(plan)
    assert again.adopted and again.uid == first.uid
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
    found = bench.look(plan.name)
    assert not any(member.alive for member in found.members) and bench.backend.fenced(plan.name)
    if bench.backend.name == "local":
        assert {member.exit_code for member in found.members} == {code}
        assert {(member.termination or {})["class"] for member in found.members} == {"done" if code == 0 else "error"}


def test_capacity_says_what_is_there_and_free(bench: Bench) -> None:
    plan = bench.plan(nodes=("node-1",))
    bench.backend.submit(plan)
    asked = ["node-0", "node-1", "elsewhere"]
    assert {one.node: one.free for one in bench.backend.capacity(asked)} == {"node-0": True, "node-1": False}
    bench.backend.stop(plan.name, mode="kill")
    until(lambda: all(one.free for one in bench.backend.capacity(asked)))


def test_a_killed_attempt_is_fenced_and_failed(bench: Bench) -> None:
    plan = bench.plan()
    bench.backend.submit(plan)
    bench.reaches(plan.name, "running")
    for _ in range(2):
        bench.backend.stop(plan.name, mode="kill")
    until(lambda: bench.backend.fenced(plan.name))
    assert bench.look(plan.name).state == "failed"
