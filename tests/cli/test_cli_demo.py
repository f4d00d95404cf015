"""The demo's own judgement: when it orders its drill, and which outcomes it does not accept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from controlplane.cli import demo_checks
from controlplane.cli.demo_moment import BEAT_S, LAST_STEP, Sight, good, likelihood, rest_s, wanted
from controlplane.client import ApiError

EVERY = 10


def sight(since_sample_s: float, last: int, end_s: float, lengths: tuple[float, ...] = (0.3,), **more: Any) -> Sight:
    """`now` is `since_sample_s` after the sample at 1000.0; step `last` ended at `end_s`, those before as long before
    as `lengths`, in turn, say.
    """
    ends = [end_s]
    for length in itertools.islice(itertools.cycle(lengths), last - 1):
        ends.insert(0, ends[0] - length)
    values: dict[str, Any] = {"sampled_s": 1000.0, "save_s": 0.1, **more}
    return Sight(1000.0 + since_sample_s, range(1, last + 1), ends, **values)


@pytest.mark.parametrize(
    ("since_sample_s", "last", "end_s", "why"),
    [
        (0.1, 68, 999.9, "70 ends at 1000.5"),
        (0.1, 69, 999.95, "70 ends at 1000.25"),
        (0.2, 70, 1000.05, "70 has ended since the sample"),
        (7.1, 68, 1006.9, "the agent has sampled each second since"),
    ],
)
def test_a_drill_is_ordered_when_a_checkpoint_comes_before_the_next_sample(
    since_sample_s: float, last: int, end_s: float, why: str
) -> None:
    assert likelihood(sight(since_sample_s, last, end_s), EVERY) == 1.0, why
    assert good(sight(since_sample_s, last, end_s), EVERY)


@pytest.mark.parametrize(
    ("since_sample_s", "last", "end_s", "why"),
    [
        (0.6, 68, 1000.0, "the drill may reach the agent after its next sample"),
        (0.0, 68, 999.9, "the drill may reach the agent before the sample that has just been taken"),
        (0.1, 67, 1000.05, "70 ends at 1000.95 and is not written by 1001"),
        (0.1, 61, 999.9, "70 is far away"),
        (0.1, 70, 999.95, "70 ended before the sample"),
        (0.1, 7, 999.9, "too little is known of the pace"),
    ],
)
def test_no_drill_is_ordered_when_it_does_not(since_sample_s: float, last: int, end_s: float, why: str) -> None:
    assert likelihood(sight(since_sample_s, last, end_s), EVERY) == 0.0, why
    assert not good(sight(since_sample_s, last, end_s), EVERY)


def test_a_long_save_must_be_over_in_time() -> None:
    assert likelihood(sight(0.1, 68, 999.9, save_s=0.4), EVERY) == 1.0
    assert likelihood(sight(0.1, 68, 999.9, save_s=0.6), EVERY) == 0.0


def test_an_uneven_pace_makes_a_moment_less_likely_and_a_late_one_is_taken_all_the_same() -> None:
    uneven = sight(0.1, 69, 999.9, (0.3, 1.5))
    assert 0.4 < likelihood(uneven, EVERY) < 0.6 and not good(uneven, EVERY)
    late = sight(0.1, 149, 999.9, (0.3, 0.3, 1.5))
    assert 0.6 < likelihood(late, EVERY) < 0.7 and good(late, EVERY)
    assert wanted(60) == 1.0 and wanted(LAST_STEP) == 0.0
    assert good(sight(0.6, LAST_STEP, 900.0), EVERY), "at the last any moment must do"


def test_a_step_that_would_be_known_if_it_had_ended_has_not() -> None:
    # the last step ended 0.9 s ago: of lengths 0.3 and 1.2 only 1.2 is left, and 1000.5 fits
    found = sight(0.2, 69, 999.3, (0.3, 1.2))
    assert likelihood(found, EVERY) == 1.0


def test_between_the_samples_nothing_is_looked_at_for_long() -> None:
    for since in (0.0, 0.01, 0.1, 0.3, 0.7, 0.99):
        rest = rest_s(sight(since, 20, 999.0))
        assert 0 < rest <= BEAT_S
        then = (since + rest) % BEAT_S
        assert 0.02 < then < 0.31, "it looks again where a drill could be ordered, or just past it"


GOOD: dict[str, Any] = {
    "run": {"status": "succeeded"},
    "incident": {"rule": "hbm-uncorrectable", "node": "node-001"},
    "attempts": [
        {"end": "superseded", "first_step": 1, "last_step": 71, "nodes": ["node-000", "node-001"]},
        {"end": "succeeded", "first_step": 61, "last_step": 200, "nodes": ["node-000", "node-002"]},
    ],
    "decision": {"action": "restart_exclude", "state": "verified", "excluded_nodes": ["node-001"]},
    "resume": {"step": 60, "manifest_step": 60},
    "checkpoints": {"validated": [60], "tainted": [70]},
    "loss": {"first_window": 4.0, "last_window": 2.0},
    "maxvio": {"first_window": 4.0, "last_window": 1.0},
    "stored": {"expert_records": 200, "gpu_samples": 300},
    "seconds": {"fault_to_message": 2.0},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"checkpoints": {"tainted": []}}, "a checkpoint computed since the last clean sample was tainted"),
        ({"checkpoints": {"tainted": [60, 70]}}, "the run went on from before every tainted checkpoint"),
        ({"resume": {"step": 60, "manifest_step": 50}}, "attempt 2 resumed at exactly the manifest's step"),
        ({"resume": {"step": 60, "manifest_step": None}}, "attempt 2 resumed at exactly the manifest's step"),
    ],
)
def test_the_demo_accepts_only_what_it_claims(changes: dict[str, Any], said: str | None) -> None:
    failed = demo_checks.failures({**GOOD, **changes})
    assert failed == [] if said is None else any(sentence.startswith(said) for sentence in failed)


class Disk:
    """A client that knows manifests by checkpoint id."""

    def __init__(self, manifests: dict[str, dict[str, Any]]) -> None:
        self.manifests = manifests

    def get(self, path: str) -> dict[str, Any]:
        start, _, end = path.partition("/checkpoints/")
        assert start == "runs/trial"
        if end.removesuffix("/manifest") not in self.manifests:
            raise ApiError(409, "not_now", "its manifest cannot be read")
        return self.manifests[end.removesuffix("/manifest")]


def test_the_manifests_step_is_read_from_the_manifest_that_attempt_two_names() -> None:
    rows = [
        {"id": "c", "attempt": 2, "state": "validated", "path": "/two/80", "step": 80},
        {"id": "b", "attempt": 1, "state": "tainted", "path": "/one/70", "step": 70},
        {"id": "a", "attempt": 1, "state": "validated", "path": "/one/60", "step": -1},
    ]
    run = {"id": "trial", "checkpoints": rows}
    disk: Any = Disk({"c": {"parent": "/one/60", "step": 80}, "a": {"parent": None, "step": 60}})
    assert demo_checks._manifest_step(disk, run) == 60
    assert demo_checks._manifest_step(disk, {**run, "checkpoints": rows[1:]}) is None
    from_scratch: Any = Disk({"c": {"parent": None, "step": 80}})
    assert demo_checks._manifest_step(from_scratch, run) is None
    damaged: Any = Disk({"c": {"parent": "/one/60", "step": 80}})
    assert demo_checks._manifest_step(damaged, run) is None
