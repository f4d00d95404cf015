"""`trimtab lifecycle …` against a real server: forms, exit codes, refusals in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from controlplane.cli import lifecycles as lifecycles_cli
from controlplane.cli.lifecycles import _lineage, _whole
from controlplane.cli.main import main
from controlplane.client import Client
from controlplane.services import lifecycles_lineage
from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.reconcile import LEASE
from controlplane.store import leases, lifecycles
from controlplane.store.engine import Store
from tests.api.conftest import serving
from tests.runs.conducting import Conducting, gate, plan

PLAN = plan({"name": "a", "gate": gate("loss < 2.6")}, {"name": "b", "gate": gate(approval=True)})


@dataclass
class Command:
    """The command line in this process, against a server on loopback."""

    capture: pytest.CaptureFixture[str]
    api: Any

    def run(self, *words: str) -> Answer:
        code: object = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["trimtab", "lifecycle", *words])
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        out, err = self.capture.readouterr()
        return Answer(int(str(code or 0)), out, err)

    def conduct(self, rounds: int = 3) -> None:
        now = self.api.context.clock.now()
        with self.api.context.store.write() as session:
            epoch = leases.acquire(session, LEASE, leases.this_process("a"), now=now, ttl_s=9)
        conductor = Conductor(
            self.api.context.store, self.api.context.places, self.api.controller, lambda _spec: "memory"
        )
        for _ in range(rounds):
            conductor.reconcile_once(epoch, now)
            self.api.controller.reconcile_once(epoch, now)


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    sqlite_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    with serving(sqlite_store, tmp_path) as api:
        client = Client(api.url, api.token(role="operator", subject="ada"))  # a process of its own would end it
        monkeypatch.setattr(lifecycles_cli, "connect", lambda: client)
        yield Command(capsys, api)
        client.close()


@pytest.fixture
def made(command: Command, tmp_path: Path) -> str:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(PLAN))
    answer = command.run("submit", str(file))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_a_lifecycle_is_submitted_listed_and_shown(command: Command, made: str) -> None:
    listed = command.run("ls").stdout
    assert made in listed and "0/2" in listed
    heads, row = (line.lower() for line in listed.splitlines()[:2])
    assert "step  " in heads and "productive  lost  queued" in heads and "0.00        0.00  0.00" in row
    assert command.run("ls", "-o", "name").stdout.split() == [made]
    shown = command.run("show", "walk").stdout
    assert shown.startswith(f"{made}  walk  active") and "· loss < 2.6" in shown
    whole = json.loads(command.run("show", made, "-o", "json").stdout)
    assert [one["name"] for one in whole["stages"]] == ["a", "b"]
    assert command.run("show", "nowhere").returncode == 102


def test_a_list_goes_on_to_its_end(command: Command, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = lifecycles_cli.connect()
    for number in range(4):
        client.submit_lifecycle(plan({"name": "a"}, name=f"more-{number}"))
    asked = client.get

    def by_two(path: str, **params: Any) -> Any:
        return asked(path, **{**params, "limit": 2})

    monkeypatch.setattr(client, "get", by_two)
    assert len(command.run("ls", "-o", "name").stdout.split()) == 5


def test_a_dry_run_says_what_would_happen_and_what_is_new(command: Command, made: str, tmp_path: Path) -> None:
    changed, wrong = tmp_path / "changed.yaml", tmp_path / "wrong.yaml"
    changed.write_text(json.dumps(PLAN).replace("loss < 2.6", "loss < 2.4"))
    wrong.write_text(json.dumps(plan({"name": "a", "gate": {}}, {"name": "a"})))
    told = command.run("submit", str(changed), "--dry-run")
    assert told.returncode == 0
    assert "ok     b: 10 steps on 8 GPUs, from a, passes if a person approves" in told.stdout
    assert "stages.a.gate.require: ['loss < 2.6'] → ['loss < 2.4']" in told.stdout
    assert "stages.a.gate.require" in command.run("diff", str(changed)).stdout
    refused = command.run("submit", str(wrong), "--dry-run")
    assert refused.returncode == 1 and "error  stages.0.gate: judges nothing" in refused.stdout
    assert "2 things to mend" in refused.stdout
    again = command.run("submit", str(wrong))
    assert again.returncode == 1 and "stages.1.name: a is the name of an earlier stage as well" in again.stderr
    nothing = command.run("submit", "nofile.yaml")
    assert nothing.returncode == 2 and "There is no file nofile.yaml" in nothing.stderr


JOB_TEXT = "kind: Job\nmetadata: {name: x}\n"


WRONG = (
    (("show", ""), "", 2, "A lifecycle's name or id is needed."),
    (("pause", ""), "", 2, "A lifecycle's name or id is needed."),
    (("diff", " "), "", 2, "A lifecycle's name or id is needed."),
    (("pause", "a/b"), "", 2, "There is no lifecycle 'a/b': a lifecycle's name or id has letters, digits and "),
    (("cancel", ".."), "", 2, "There is no lifecycle '..'"),
    (("retry", "walk", ""), "", 2, "A stage's name is needed."),
    (("submit", ""), "", 2, "A YAML file, - for standard input, or a template's name is needed."),
    (("submit", "{folder}"), "", 2, "cannot be read: Is a directory"),
    (("submit", "{file}"), JOB_TEXT, 2, "plan.yaml is a Job: trimtab job submit {file}"),
    (("diff", "{file}"), JOB_TEXT, 2, "plan.yaml is a Job: trimtab job submit {file}"),
    (("submit", "--dry-run", "{file}"), "[" * 3000, 1, "error  line 1, column 66: lies deeper than 64 mappings"),
    (("submit", "{file}"), "just words", 1, "\n  a lifecycle is a mapping with apiVersion, kind, metadata and"),
    (("approve", "walk", "a", "--hash", "zz"), "", 2, "hash: must be a checkpoint's hash or its first 8 digits or"),
    (("promote", "walk", "A B", "ab" * 8), "", 2, "alias: must be 1 to 40 lower-case letters, digits or hyphens"),
)


def test_what_was_asked_for_wrongly_is_told_in_a_sentence(command: Command, made: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    for words, text, code, said in WRONG:
        file.write_text(text)
        answer = command.run(*(word.format(file=file, folder=tmp_path) for word in words))
        assert answer.returncode == code, answer
        assert said.format(file=file) in answer.stderr + answer.stdout


def test_what_is_asked_of_a_stage_that_waits_for_nobody_is_refused(command: Command, made: str) -> None:
    for words in (("approve", "--hash", "ab" * 8), ("retry",)):
        answer = command.run(words[0], made, "b", *words[1:])
        assert answer.returncode == 1 and "waits for nobody" in answer.stderr
    promoted = command.run("promote", made, "base", "ab" * 8)
    assert promoted.returncode == 1 and "has no checkpoint" in promoted.stderr
    cloned = command.run("clone", made, "--from", "b")
    assert cloned.returncode == 1 and "stage a is" in cloned.stderr


def test_a_lifecycle_is_cancelled_and_waited_for(command: Command, made: str) -> None:
    command.conduct()
    assert command.run("pause", made).returncode == 0
    command.conduct()
    assert command.run("wait", made, "--timeout", "60").returncode == 101
    assert command.run("cancel", made).returncode == 0
    command.conduct()
    waited = command.run("wait", made, "--timeout", "60")
    assert (waited.returncode, waited.stdout.strip()) == (103, "cancelled")


def test_what_is_printed_of_a_whole_lifecycle(sqlite_store: Store, tmp_path: Path) -> None:
    walk = Conducting(sqlite_store, tmp_path)
    made = walk.begin(
        {"name": "a", "gate": gate("loss < 2.6"), "promote": "base"}, {"name": "b", "gate": gate(approval=True)}
    )
    walk.walk(made)
    base = walk.stages(made)["a"].candidate_hash[:12]
    lines = _whole(walk.shown(made)).splitlines()
    assert lines[1:5] == [
        f"  a                 passed  step 10/10  {base}",
        "    ● loss is 2, loss < 2.6 holds",
        f"  b                 held (approval)  step 10/10  {walk.stages(made)['b'].candidate_hash[:12]}",
        f"    Stage b waits for a person to approve checkpoint {walk.stages(made)['b'].candidate_hash[:12]}.",
    ]
    assert f"  alias base → {base}" in lines
    at_work = walk.shown(made)
    message = {"channel": "ops", "stage": "b", "state": "dead", "last_error": "HTTP 503"}
    at_work["stages"][1] |= {"unread": {"sentence": "It waits: cannot read /data/x: Stale file handle, for 3 m now."}}
    lines = _whole({**at_work, "deliveries": [message, {**message, "state": "told"}]}).splitlines()
    assert "    It waits: cannot read /data/x: Stale file handle, for 3 m now." in lines
    assert [line for line in lines if "channel" in line] == ["  channel ops, stage b: given up: HTTP 503"]
    walk.taint(walk.stages(made)["a"].candidate_hash)
    walk.tick()
    with walk.store.read() as session:
        found = lifecycles.get(session, made)
        assert found is not None
        told = _lineage(lifecycles_lineage.graph(session, found)).splitlines()
    assert told[0].startswith(f"a                 {base} step 10  from nothing  passed  tainted")
    assert sum(line.startswith("tainted: ") for line in told) == 2
