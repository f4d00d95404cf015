"""`trimtab` as a person runs it: a real server process, real commands, exit codes, two servers on one database."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trimtab_process import Served, serve, trimtab


def until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_job_through_the_command_line(served: Served) -> None:
    made = served.run("job", "submit", "toy", TRIMTAB_DASHBOARD_URL="http://pages.example/")
    assert made.returncode == 0, made.stderr
    run = made.stdout.strip()
    assert run.startswith("zaya-toy-") and made.stderr == f"  http://pages.example/job?run={run}\n"
    table = served.run("job", "ls")
    assert table.stdout.splitlines()[0].split()[:2] == ["RUN", "STATUS"] and run in table.stdout
    assert json.loads(served.run("job", "ls", "-o", "json").stdout)[0]["id"] == run
    assert served.run("job", "ls", "-o", "name").stdout.split() == [run]
    assert f"id: {run}" in served.run("job", "get", run, "-o", "yaml").stdout
    assert "has not restarted" in served.run("job", "why", run).stdout
    assert served.run("job", "diff", run).stdout == ""
    stopped = served.run("job", "stop", run)
    assert stopped.returncode == 0 and stopped.stdout == ""
    waited = served.run("job", "wait", run, "--timeout", "30")
    assert (waited.stdout.strip(), waited.returncode) == ("cancelled", 103)


def test_a_bad_file_is_said_with_every_path(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("metadata: {name: X}\nspec: {stage: a, resources: {nodes: 0}}\n")
    for more in ([], ["--dry-run"]):
        answer = served.run("job", "submit", str(file), *more)
        assert answer.returncode == 1
        assert "resources.nodes" in answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["job", "get", "nowhere"], 102),
        (["incident", "get", "77"], 102),
        (["job", "frobnicate"], 2),
        (["job", "ls", "-o", "crayon"], 2),
        (["token", "ls"], 0),
        (["rules", "ls"], 0),
        (["node", "ls"], 0),
        (["channel", "ls"], 0),
        (["incident", "ls"], 0),
        (["incident", "get", "INC-0077"], 102),
        (["incident", "get", "seven"], 2),
        (["job", "ls", "--status", "bogus"], 2),
        (["incident", "ls", "--state", "bogus"], 2),
    ],
)
def test_exit_codes_say_how_it_ended(served: Served, arguments: list[str], code: int) -> None:
    answer = served.run(*arguments)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_a_right_or_a_server_the_code_says_so(served: Served, tmp_path: Path) -> None:
    viewer = served.run("token", "create", "--role", "viewer").stdout.strip()
    assert served.run("job", "ls", token=viewer).returncode == 0
    assert served.run("job", "submit", "toy", token=viewer).returncode == 5
    assert served.run("job", "ls", token="tt_personal_wrong").returncode == 4
    nobody = trimtab("job", "ls", TRIMTAB_URL=served.url, TRIMTAB_DATA=str(tmp_path))
    assert nobody.returncode == 4 and "TRIMTAB_TOKEN" in nobody.stderr
    away = trimtab("job", "ls", TRIMTAB_URL="http://127.0.0.1:1", TRIMTAB_TOKEN=served.token)
    assert away.returncode == 6 and "trimtab serve" in away.stderr and "TRIMTAB_URL" in away.stderr
    assert "--url" not in away.stderr


def test_a_port_that_is_taken_names_its_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag in ("--port", "--dashboard-port"):
            free = "--dashboard-port" if flag == "--port" else "--port"
            answer = trimtab("serve", "--data", str(tmp_path), flag, port, free, "0")
            assert answer.returncode == 1
            assert flag in answer.stderr and port in answer.stderr


def test_a_bind_beyond_loopback_is_refused(tmp_path: Path) -> None:
    answer = trimtab("serve", "--data", str(tmp_path), "--host", "0.0.0.0")
    assert answer.returncode == 2 and "TLS" in answer.stderr and "tls_cert" in answer.stderr


def test_settings_show_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "trimtab.toml").write_text('port = 9001\nlog = "warning"\n')
    shown = trimtab("config", "view", "--origin", "--data", str(tmp_path), TRIMTAB_PORT="9002").stdout
    assert "port = '9002'  # TRIMTAB_PORT" in shown
    assert f"log = 'warning'  # {tmp_path / 'trimtab.toml'}" in shown
    assert "host = '127.0.0.1'  # default" in shown
    (tmp_path / "trimtab.toml").write_text("prot = 9001\n")
    wrong = trimtab("config", "view", "--data", str(tmp_path))
    assert wrong.returncode == 2 and "prot" in wrong.stderr
    bad = trimtab("config", "view", TRIMTAB_PORT="many")
    assert bad.returncode == 2 and "TRIMTAB_PORT" in bad.stderr


def test_a_second_server_waits_for_the_lease_and_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    first = serve(tmp_path / "data")
    second = serve(tmp_path / "data")
    try:
        until(first.leads)
        assert not second.leads()
        run = second.run("job", "submit", "toy").stdout.strip()
        assert run in second.run("job", "ls", "-o", "name").stdout
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.communicate(timeout=10)
        until(second.leads)
        assert run in second.run("job", "ls", "-o", "name").stdout
    finally:
        if first.process.poll() is None:
            first.end()
        assert second.end() == 0


def test_a_lost_administrators_token_is_replaced_beside_the_database(tmp_path: Path) -> None:
    found = serve(tmp_path / "data")
    (tmp_path / "data" / "admin-token").unlink()
    made = trimtab("token", "admin", "--data", str(tmp_path / "data"))
    assert made.returncode == 0, made.stderr
    assert found.run("token", "create", "--role", "viewer", token=made.stdout.strip()).returncode == 0
    assert found.end() == 0
    nothing = trimtab("token", "admin", "--data", str(tmp_path / "elsewhere"))
    assert nothing.returncode == 1 and "Traceback" not in nothing.stderr


def test_the_first_token_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    found = serve(tmp_path / "data")
    mode = (tmp_path / "data" / "admin-token").stat().st_mode
    assert mode & 0o077 == 0
    found.end()
    again = serve(tmp_path / "data")
    assert again.token == found.token
    assert again.run("node", "ls").returncode == 0
    again.end()
