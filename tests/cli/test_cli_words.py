"""What the command line says at its edges: files that are no jobs, logs that are none, waits that would not end."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from trimtab_process import Served, serve

from controlplane.cli import demo, fleet
from controlplane.cli.dashboard import Dashboard
from controlplane.cli.jobs import progress
from controlplane.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def test_without_the_extra_that_it_needs_the_command_says_so() -> None:
    """-S and -E: no installed package is found, as where only the agent was installed."""
    lacks = [sys.executable, "-S", "-E", "-c", "from controlplane.cli.entry import main; main()"]
    done = subprocess.run(lacks, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.endswith("trimtab needs the extra `server`: README, Install.\n") and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "cannot be read: Is a directory"),
        ("binary.yaml", "is no text: a job is YAML in UTF-8"),
        (
            "nofile.yaml",
            (
                "There is no file nofile.yaml, and no template of this name; there are toy; and presets, jobs for "
                "other trainers: huggingface, megatron, roll, slime, torchtitan, verl."
            ),
        ),
    ],
)
def test_what_is_no_job_is_said_in_a_sentence(served: Served, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    named = name if name == "nofile.yaml" else str(tmp_path / name)
    answer = served.run("job", "submit", named)
    assert answer.returncode == 2
    assert answer.stderr.strip().endswith(said) and len(answer.stderr.splitlines()) == 1


def test_the_version_is_the_distributions(served: Served) -> None:
    answer = served.run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"trimtab {importlib.metadata.version('trimtab')}\n")


def test_a_dry_run_has_every_form(served: Served, tmp_path: Path) -> None:
    found = served.run("job", "submit", "toy", "--dry-run", "-o", "json")
    assert json.loads(found.stdout)["problems"] == [] and found.returncode == 0
    assert served.run("job", "submit", "toy", "--dry-run", "-o", "yaml").stdout.startswith("problems: []")
    file = tmp_path / "job.yaml"
    wrong = json.loads(found.stdout)["yaml"].replace("experts: 16", "experts: 0").replace("python-docs", "nowhere")
    file.write_text(wrong)
    for form in ("json", "table"):
        answer = served.run("job", "submit", str(file), "--dry-run", "-o", form)
        assert answer.returncode == 1
        assert "router.experts" in answer.stdout and "data.source" in answer.stdout


def test_a_preset_is_submitted_by_its_name(served: Served) -> None:
    found = served.run("job", "submit", "megatron", "--dry-run", "-o", "json")
    assert json.loads(found.stdout)["problems"] == [], found.stderr
    assert "pretrain_gpt.py" in json.loads(found.stdout)["yaml"]


def test_a_log_that_is_none_says_so(served: Served) -> None:
    run = served.run("job", "submit", "toy").stdout.strip()
    for option, code, said in (
        (("--rank", "9"), 102, "has no rank 9. It has ranks 0 to 1"),
        (("--attempt", "9"), 102, "has no attempt 9. It has none yet"),
        ((), 0, "there is no attempt yet."),
    ):
        answer = served.run("job", "logs", run, *option)
        assert (answer.returncode, answer.stdout) == (code, "")
        assert answer.stderr.strip().endswith(said)
    served.run("job", "stop", run)


def test_a_run_that_waits_for_a_person_is_unfinished(served: Served) -> None:
    run = served.run("job", "submit", "toy").stdout.strip()
    served.run("job", "pause", run)
    waited = served.run("job", "wait", run, "--timeout", "50")
    assert (waited.returncode, waited.stdout.strip()) == (101, "paused")
    assert "waits for a person" in waited.stderr
    short = served.run("job", "wait", run, "--timeout", "0")
    assert short.returncode == 3 and "no step yet of 200, after 0 s" in short.stderr
    served.run("job", "stop", run)


def test_a_run_that_cannot_start_says_why_wherever_it_is_asked_about(served: Served) -> None:
    found = served.run("job", "submit", "toy", "--dry-run")
    assert found.returncode == 0 and "warn   nodes: 2 nodes are asked for, none exists" in found.stdout
    assert "2 nodes would wait for 2 more nodes to join" in found.stderr
    run = served.run("job", "submit", "toy").stdout.strip()
    reason = "2 more nodes of 2 needed"
    waited = served.run("job", "wait", run, "--timeout", "5")
    assert waited.returncode == 3 and f"no step yet of 200, after 5 s: {reason}" in waited.stderr
    assert f"{run} has not restarted. It is queued: {reason}" in served.run("job", "why", run).stdout
    (row,) = [line for line in served.run("job", "ls").stdout.splitlines() if line.startswith(run)]
    assert reason in row
    served.run("job", "stop", run)


class Taking:
    """A client whose server takes every drill."""

    def drill(self, _node: str, _kind: str, _gpu: int) -> None: ...


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("hbm-uncorrectable", "n1 will report hbm-uncorrectable on GPU 2 with its next sample."),
        ("nic-down", "n1 will report nic-down on NIC 2 with its next sample."),
        ("host-oom", "n1 will report host-oom with its next sample."),
        ("clear", "n1 will end the drills of GPU 2, NIC 2 and its host with its next sample."),
    ],
)
def test_a_drill_is_said_to_be_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    monkeypatch.setattr(fleet, "connect", Taking)
    monkeypatch.setenv("TRIMTAB_DASHBOARD_URL", "http://127.0.0.1:8441")
    fleet.drill(kind, "n1", 2)
    assert capsys.readouterr().err.splitlines() == [said, "  http://127.0.0.1:8441/fleet?node=n1"]


def run_of(step: int | None, *attempts: tuple[int | None, int | None]) -> dict[str, Any]:
    rows = [{"first_step": first, "resume_step": resume} for first, resume in attempts]
    return {"step": step, "steps": 200, "attempts": rows}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_of(None), "no step yet of 200"),
        (run_of(None, (None, None)), "no step yet of 200"),
        (run_of(3, (1, None)), "step 3 of 200"),
        (run_of(None, (1, None), (None, 60)), "starts from 60 of 200"),
        (run_of(60, (1, None), (None, 60)), "starts from 60 of 200"),
        (run_of(61, (1, None), (61, 60)), "step 61 of 200"),
        (run_of(None, (1, None), (None, 0)), "starts from 0 of 200"),
    ],
)
def test_what_is_not_known_of_a_runs_progress_is_no_zero(run: dict[str, Any], said: str) -> None:
    assert progress(run) == said


def test_what_the_demo_says_to_type_works_as_it_stands(served: Served, tmp_path: Path) -> None:
    run = served.run("job", "submit", "toy").stdout.strip()
    data = tmp_path / "the demo's folder" / "server"
    data.mkdir(parents=True)
    (data / "admin-token").write_text(served.token)
    export, command = demo.how_to_ask(served.url, data, f"job why {run}")
    program, rest = command.split(" job ")
    assert program.endswith("trimtab")
    bash = shutil.which("bash")
    assert bash is not None
    typed = f"{export}\n{sys.executable} -m controlplane.cli.main job {rest}"
    done = subprocess.run(
        [bash, "-c", typed], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{run} has not restarted." in done.stdout


def test_addresses_are_the_ones_that_this_server_has(tmp_path: Path) -> None:
    found = serve(tmp_path / "data", "--dashboard-port", "0")
    try:
        base = found.ready.split("dashboard ")[1].split("/open/")[0]
        submitted = found.run("job", "submit", "toy")
        assert submitted.stderr == f"  {base}/job?run={submitted.stdout.strip()}\n"
        address = found.run("token", "create", "--kind", "link", "--role", "viewer").stdout.strip()
        assert address.startswith(f"{base}/open/tt_link_")
        with httpx2.Client(trust_env=False, timeout=30) as http:
            opened = http.get(address)
            assert opened.status_code == 303 and "__Host-trimtab" in opened.headers["set-cookie"]
    finally:
        assert found.end() == 0


def test_tokens_say_whether_they_live(served: Served) -> None:
    code = served.run("token", "create", "--kind", "link", "--role", "viewer")
    assert code.stdout.startswith("tt_link_") and "/open/" in code.stderr
    rows = json.loads(served.run("token", "ls", "-o", "json").stdout)
    assert {row["state"] for row in rows} == {"living"}
    link = next(row["id"] for row in rows if row["kind"] == "link")
    served.run("token", "revoke", link)
    table = served.run("token", "ls").stdout.splitlines()
    assert [line.split()[-1] for line in table if line.startswith(link)] == ["revoked"]


def test_a_node_returns_under_either_name(served: Served) -> None:
    for verb in ("return", "uncordon"):
        answer = served.run("node", verb, "nowhere", "--force", "--reason", "mended")
        assert answer.returncode == 102 and "there is no node nowhere" in answer.stderr


def test_a_node_that_is_none_cannot_be_drained(served: Served) -> None:
    answer = served.run("node", "drain", "nowhere", "--reason", "new fan")
    assert answer.returncode == 102 and "there is no node nowhere" in answer.stderr


@pytest.mark.parametrize(
    ("given", "link"),
    [
        ({}, "http://127.0.0.1:8441"),
        ({"host": "::1", "dashboard_port": 9000}, "http://[::1]:9000"),
        ({"dashboard_port": 0}, ""),
        ({"dashboard": False}, ""),
        ({"dashboard": False, "dashboard_url": "https://trimtab.example/"}, "https://trimtab.example"),
    ],
)
def test_messages_link_to_the_address_that_is_set_or_to_the_port_that_is_known(given: Any, link: str) -> None:
    assert Dashboard("http://127.0.0.1:8440", Settings(**given)).link() == link
