"""The Job and Jobs pages' reasoning: tiles without false zeros, consequences, filters, logs, differences."""

from typing import Any

import pytest
import samples_runs as samples

from dashboards.views import job as jobs_page
from dashboards.views import job_actions, job_logs, job_tiles, jobs


def by_label(run: dict[str, Any], steps: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {row["label"]: row for row in job_tiles.tiles(run, steps, samples.NOW)}


def test_the_tiles_of_a_training_run() -> None:
    tiles = by_label(samples.run_view(), samples.steps())
    eta = tiles["stage done, likely range"]
    assert (eta["value"], eta["context"]) == ("13:35:41–13:35:46", "11 s to 16 s left")
    assert tiles["loss"]["context"].endswith("over 51 steps")
    assert tiles["loss"]["context"].startswith("−")
    assert (tiles["throughput"]["value"], tiles["throughput"]["unit"]) == ("3,720", "tok/s")
    assert tiles["step time"]["context"] == "p95 0.610 s, slowest rank 1"
    assert tiles["goodput"]["value"] == "84.2"
    assert tiles["last checkpoint"]["context"] == "verified, 2.4 MB"


def test_the_tiles_of_a_run_that_has_done_nothing_say_so() -> None:
    tiles = job_tiles.tiles(samples.new_run_view(), {"attempts": []}, samples.NOW)
    assert [tile["value"] for tile in tiles] == ["–"] * 6
    assert all(tile["context"] for tile in tiles), "each unknown has its reason"


@pytest.mark.parametrize(
    ("status", "label"), [("succeeded", "stage done"), ("failed", "stage failed"), ("cancelled", "stage stopped")]
)
def test_an_ended_run_says_when_it_ended(status: str, label: str) -> None:
    run = samples.run_view(
        status=status, attempts=[samples.attempt(1), samples.attempt(2, ended_s=samples.START + 120)]
    )
    tile = job_tiles.eta_tile(run, samples.NOW)
    assert (tile["label"], tile["value"], tile["context"]) == (label, "13:35:20", "ran 2 m 00 s since submit")


def test_a_large_run_shows_its_rate_a_gpu() -> None:
    tile = job_tiles.rate_tile(samples.run_row(tokens_per_s=23.7e6, gpus=896))
    assert (tile["value"], tile["unit"], tile["context"]) == ("26,451", "tok/s/GPU", "23.7 M tok/s on 896 GPUs")


@pytest.mark.parametrize("state", ["complete", "tainted", "writing"])
def test_a_checkpoint_that_is_not_verified_has_a_level(state: str) -> None:
    assert (
        job_tiles.checkpoint_tile(samples.run_view(last_checkpoint=samples.checkpoint(8, state)), samples.NOW)["level"]
        != "ok"
    )


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({}, {"restart", "pause", "stop", "clone"}),
        ({"desired": "pause", "status": "paused"}, {"restart", "resume", "stop", "clone"}),
        ({"status": "succeeded"}, {"clone"}),
        ({"desired": "cancel"}, {"clone"}),
        ({"attempts": []}, {"pause", "stop", "clone"}),
    ],
)
def test_what_a_person_may_do_follows_the_state(changes: dict[str, Any], possible: set[str]) -> None:
    reasons = job_actions.available(samples.run_view(**changes))
    assert {verb for verb, why in reasons.items() if not why} == possible


def test_each_consequence_names_what_stops_and_what_is_lost() -> None:
    run = samples.run_view()
    stop = job_actions.consequence("stop", run, None)
    for part in ("attempt 2", "2 nodes", "16 GPUs", "30 s", "cannot be resumed"):
        assert part in stop
    assert "Resume starts" in job_actions.consequence("pause", run, None)
    restart = job_actions.consequence("restart", run, samples.checkpoint(136))
    assert "attempt 3 starts from step 136. 4 steps will be run again." in restart
    assert "from step 0: all 140 steps" in job_actions.consequence("restart", run, None)


def test_only_safe_checkpoints_are_offered_newest_first() -> None:
    rows = [
        samples.checkpoint(8),
        samples.checkpoint(96, "tainted"),
        samples.checkpoint(104, "writing"),
        samples.checkpoint(88),
    ]
    assert [row["step"] for row in job_actions.usable(rows)] == [88, 8]


def test_jobs_are_filtered_by_group_and_text_and_ordered_by_urgency() -> None:
    rows = [
        samples.run_row(id="a", name="alpha", status="succeeded"),
        samples.run_row(id="b", name="beta", status="active"),
        samples.run_row(id="c", name="gamma", status="needs_human", created_by="m.okafor"),
        samples.run_row(id="d", name="delta", status="active", created_s=samples.START + 9),
    ]
    assert [row["id"] for row in jobs.chosen(rows, "all", "")] == ["c", "d", "b", "a"]
    assert [row["id"] for row in jobs.chosen(rows, "live", "")] == ["c", "d", "b"]
    assert [row["id"] for row in jobs.chosen(rows, "ended", "")] == ["a"]
    assert [row["id"] for row in jobs.chosen(rows, "all", " OKAFOR ")] == ["c"]
    assert [row["id"] for row in jobs.chosen(rows, "all", "sim-node-03")] == ["c", "d", "b", "a"]
    assert jobs.chosen(rows, "all", "none such") == []


def test_the_table_of_runs_never_shows_zero_for_unknown() -> None:
    row = samples.run_row(step=None, progress=None, loss=None, tokens_per_s=None, eta=None, attempt=0, nodes=[])
    markup = jobs.run_table([row], samples.NOW)
    assert markup.count("–") == 6
    assert ">0<" not in markup


def test_the_table_says_on_what_each_run_runs() -> None:
    assert ">kube<" in jobs.run_table([samples.run_row(backend="kube")], samples.NOW)


def test_a_hostile_name_stays_text_in_the_table() -> None:
    hostile = samples.HOSTILE
    row = samples.run_row(name=hostile, id=hostile, nodes=[hostile], created_by=hostile, stage=hostile, status=hostile)
    markup = jobs.run_table([row], samples.NOW)
    assert "<img" not in markup
    assert "&lt;img" in markup


def test_log_lines_are_folded_escaped_and_errors_stand_out() -> None:
    assert job_logs.fold(["a", "a", "b", "a"]) == [("a", 2), ("b", 1), ("a", 1)]
    markup = job_logs.log_block(f"{samples.HOSTILE}\nstep\nstep\nRuntimeError: x")
    assert "<img" not in markup
    assert "× 2" in markup
    assert "<b>RuntimeError: x</b>" in markup


def test_only_the_last_lines_of_a_long_log_are_drawn() -> None:
    markup = job_logs.log_block("\n".join(f"line {number}" for number in range(3000)))
    assert markup.count("<div>") == job_logs.LOG_LINES
    assert "line 2999" in markup
    assert "line 1999<" not in markup


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ({"text": "x"}, ""),
        ({"ended": None}, ""),
        (
            {"kept": True, "ended": {"node": "n1", "exit_code": 1, "class": "error", "message": "boom", "missing": ""}},
            "Ended on n1 with code 1; error: boom; what follows was kept before its pod went.",
        ),
        (
            {"kept": False, "ended": {"node": "n1", "exit_code": None, "missing": "its node is silent"}},
            "Ended on n1 with no code; its output could not be kept: its node is silent.",
        ),
    ],
)
def test_a_log_says_how_its_member_ended(answer: dict[str, Any], note: str) -> None:
    assert job_logs.end_note(answer) == note


def test_differences_are_two_lines_or_one_where_a_side_is_missing() -> None:
    rows = [
        {"path": "spec.train.steps", "before": 200, "after": 160},
        {"path": "spec.data.extra", "before": None, "after": "<b>"},
        {"path": "spec.router.x", "before": [1, 2], "after": None},
    ]
    assert job_logs.diff_lines(rows) == [
        ("-", "spec.train.steps: 200"),
        ("+", "spec.train.steps: 160"),
        ("+", 'spec.data.extra: "<b>"'),
        ("-", "spec.router.x: [1, 2]"),
    ]


def test_a_run_says_why_it_waits() -> None:
    assert jobs_page.waits(samples.run_view(status="queued", reason="1 more node")) == "1 more node"
    assert jobs_page.waits(samples.run_view(status="active", reason="old")) == ""
    assert jobs_page.waits(samples.run_view(status="needs_human", reason=None)) == ""


def test_a_row_of_the_list_says_what_its_attempt_does() -> None:
    assert "draining" in jobs.run_table([samples.run_row(attempt_state="draining")], samples.NOW)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        ({"checkpoint_id": "chosen"}, "chosen"),
        ({"evidence": [{"kind": "fault"}]}, None),
        ({"evidence": [{"kind": "window", "begin_s": 25.0}]}, "b"),
        ({"evidence": [{"kind": "window", "begin_s": 5.0}]}, ""),
    ],
)
def test_a_proposed_restart_begins_before_what_is_not_trusted(decision: dict[str, Any], expected: str | None) -> None:
    rows = [
        {"id": ident, "step": step, "state": state, "state_at_s": float(step)}
        for ident, step, state in (
            ("a", 10, "validated"),
            ("b", 20, "validated"),
            ("c", 30, "validated"),
            ("d", 24, "tainted"),
        )
    ]
    assert job_actions.clean_start(rows, decision) == expected


def test_the_faults_of_the_chart_are_named_by_rule_and_place() -> None:
    fault = {"rule": "hbm-uncorrectable", "node": "n1", "entity": "gpu3", "onset_s": 5.0}
    person = {"rule": "person", "failure_class": "person", "evidence": [{"kind": "person", "id": "ada"}]}
    marks = jobs_page.fault_marks(
        {
            "restarts": [
                {"at_s": 9.0, "fault": fault},
                {"at_s": 20.0, "decision": {"action": "restart", "failure_class": "crash"}},
                {"at_s": 30.0, "decision": person},
                {"at_s": 40.0, "decision": None},
            ],
            "proposed": [{"at_s": 50.0, "fault": fault, "decision": {"mode": "advise"}}],
        }
    )
    assert [(mark["at_s"], mark["label"], mark["level"]) for mark in marks] == [
        (9.0, "hbm uncorrectable, GPU 3 of n1", "fault"),
        (20.0, "crash", "fault"),
        (30.0, "restarted by ada", "quiet"),
        (40.0, "paused and resumed", "quiet"),
        (50.0, "hbm uncorrectable, GPU 3 of n1", "fault"),
    ]


def test_members_in_trouble_are_on_top_and_pods_are_named_where_there_are_any() -> None:
    row = {"index": 1, "ranks": [8, 15], "node": "node-001", "pod": "r-1-1-x<y", "state": "waits", "level": "warn"}
    unplaced = {**row, "index": 0, "ranks": [0, 0], "node": "", "reason": "Unschedulable"}
    text = job_logs.members_table({"members": [row, unplaced]})
    assert "8–15" in text and "/fleet?node=node-001" in text and "x&lt;y" in text
    assert "not placed yet" in text and "Unschedulable" in text
    plain = job_logs.members_table({"members": [{**row, "pod": ""}]})
    assert '<th class="">pod' not in plain
    many = job_logs.members_table({"members": [row] * (job_logs.SHOWN_MEMBERS + 960)})
    assert "and 960 more" in many
