"""`trimtab job …`: submit, look, stop, restart, and why it restarted."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from operator import itemgetter
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from controlplane.cli.output import EXIT, Column, Exit, Form, Output, connect, hint, length, link, one, show
from controlplane.cli.texts import problem_lines, text_of

app = typer.Typer(no_args_is_help=True, help="Training runs.")
Json = dict[str, Any]
Run = Annotated[str, typer.Argument(help="the run's id or name")]
LOOKS = 4
"""Looks, a second apart, at which a run must wait for a person to be unfinished: a wish just made may be under way."""
WAITING = ("queued", "paused", "needs_human")
"""States of a run of which nothing is under way: its reason says why."""
_ENDS = {"succeeded": EXIT.OK, "failed": EXIT.FAILED, "cancelled": EXIT.CANCELLED}


def _percent(row: Json) -> str | None:
    return None if row["progress"] is None else f"{100 * row['progress']:.1f} %"


_COLUMNS = [
    ("run", lambda row: row["id"]),
    ("status", lambda row: row["status"]),
    ("stage", lambda row: row["stage"]),
    ("attempt", lambda row: row["attempt"] or None),
    ("nodes", lambda row: row["nodes"]),
    ("step", lambda row: None if row["step"] is None else f"{row['step']}/{row['steps']}"),
    ("done", _percent),
]
_WHY: Column = ("reason", lambda row: row["reason"] if row["status"] in WAITING else None)
_WIDE = [
    ("loss", lambda row: None if row["loss"] is None else f"{row['loss']:.3f}"),
    ("tokens/s", lambda row: None if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}"),
    ("backend", lambda row: row["backend"]),
    ("by", lambda row: row["created_by"]),
    ("reason", lambda row: row["reason"]),
]


class DryRun(StrEnum):
    """What is only said, not done: the control plane's checks, or also what the cluster is sent and answers."""

    none = "none"
    checks = "checks"
    server = "server"


class _Submit(TyperCommand):
    """`--dry-run` alone is `--dry-run=checks`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--dry-run=checks" if word == "--dry-run" else word for word in args])


@app.command(cls=_Submit)
def submit(
    file: Annotated[str, typer.Argument(help="a YAML file, - for standard input, or a template's name")],
    output: Output = Form.table,
    dry_run: Annotated[
        DryRun, typer.Option("--dry-run", help="only say what would happen; server: and what the cluster answers")
    ] = DryRun.none,
) -> None:
    """Submit a job; prints the run's id.

    `--dry-run` only says what the control plane finds: exit code 1 if it would refuse the job, or if a check is an
    error, which bars the Submit page's button too: as it is the job would never start. What it would wait for, be it
    for more nodes than there are, is a warning. `--dry-run=server` also shows the objects that the cluster would be
    sent, with the API server's word on them: 6 if no cluster could be asked.
    """
    client = connect()
    text = text_of(client, file, "Job")
    if dry_run is not DryRun.none:
        raise Exit(_said(client.validate(text), output, dry_run))
    run = client.submit(text, key=secrets.token_hex(16))
    one(run, output, lambda row: str(row["id"]), name="id")
    link(client, f"job?run={run['id']}")


def _said(found: Json, output: Form, dry_run: DryRun) -> EXIT:
    """Prints a preflight; how the command ends by it."""
    cluster = found["cluster"]
    shown = cluster["manifests"] if cluster and dry_run is DryRun.server else ""
    one(found, output, lambda row: "\n".join(filter(None, [_checks(row), shown.rstrip()])), name="sentence")
    if output in (Form.table, Form.wide):
        hint(found["sentence"])
    never = any(check["level"] == "error" for check in found["checks"])
    if found["problems"] or never:
        return EXIT.ERROR
    if dry_run is not DryRun.server or (cluster and cluster["asked"]):
        return EXIT.OK
    hint(cluster["unasked"][0] if cluster else "Runs of this server are processes of its machine: no cluster is asked.")
    return EXIT.UNREACHABLE


def _checks(found: Json) -> str:
    lines = problem_lines(found["problems"])
    lines += [f"{check['level']:5}  {check['name']}: {check['sentence']}" for check in found["checks"]]
    lines += [_capacity(found["cluster"]["capacity"])] if found["cluster"] and found["cluster"]["capacity"] else []
    for node in found["candidates"]:
        why = f": {node['reason']}" if node["reason"] else ""
        lines.append(f"{'ok' if node['ok'] else 'no':5}  {node['node']}{why}")
    return "\n".join(lines)


def _capacity(has: Json) -> str:
    """What the cluster has, and what of it this job could use now."""
    whole = f"{has['nodes']} nodes with {has['gpus']} GPUs in the cluster"
    return f"ok     capacity: {whole}, {has['free_nodes']} with {has['free_gpus']} can be used now"


@app.command("ls")
def ls(
    status: Annotated[str | None, typer.Option(help="only these, comma separated")] = None, output: Output = Form.table
) -> None:
    """List runs, newest first."""
    columns = _COLUMNS if output is Form.wide else [*_COLUMNS, _WHY]
    show(list(connect().every("runs", status=status)), columns, output, name="id", wide=_WIDE)


@app.command()
def get(run: Run, output: Output = Form.table) -> None:
    """One run, whole."""
    one(connect().run(run), output, _text, name="id")


def _text(run: Json) -> str:
    lines = [f"{run['id']}  {run['status']}  {progress(run)}  {run['reason']}".rstrip()]
    for attempt in run["attempts"]:
        steps = f"steps {attempt['first_step'] or '–'} to {attempt['last_step'] or '–'}"
        resumed = f", from checkpoint {attempt['resume_step']}" if attempt["resume_step"] is not None else ""
        lines.append(f"  attempt {attempt['no']}  {attempt['state']}  {', '.join(attempt['nodes'])}  {steps}{resumed}")
    last = run["last_checkpoint"]
    lines.append(f"  last verified checkpoint: {last['step'] if last else 'none'}")
    return "\n".join(lines)


@app.command()
def logs(
    run: Run,
    rank: Annotated[int | None, typer.Option(help="whose output (the one that failed first, else 0)")] = None,
    attempt: Annotated[int | None, typer.Option(help="which attempt (the last)")] = None,
    limit: Annotated[int, typer.Option(help="bytes from the end")] = 65_536,
) -> None:
    """The end of a rank's output."""
    found = connect().get(f"runs/{run}/logs", rank=rank, attempt=attempt, limit=limit)
    print(found["text"], end="")
    ended = found["ended"]
    if ended:
        words = ": ".join(str(one) for one in (ended["class"], ended["message"]) if one)
        code = f"code {ended['exit_code']}" if ended["exit_code"] is not None else "no code"
        kept = "; this is what was kept of it" if found["kept"] else ""
        lost = f"; its output could not be kept: {ended['missing']}" if ended["missing"] else ""
        hint(f"rank {found['rank']} on {ended['node']} ended with {code} ({words or 'it left no record'}){kept}{lost}")
    if not found["text"]:
        told = f"rank {found['rank']} of attempt {found['attempt']} has written nothing"
        hint(f"{run}: {told if found['attempt'] is not None else 'there is no attempt yet'}.")


@app.command()
def members(
    run: Run,
    attempt: Annotated[int | None, typer.Option(help="which attempt (the last)")] = None,
    output: Output = Form.table,
) -> None:
    """Where an attempt's members (pods, launchers) are and what they do, asked of the platform now."""
    found = connect().get(f"runs/{run}/members", attempt=attempt)
    if found["problem"]:
        hint(f"{found['backend']}: {found['problem']}")
    columns: list[Column] = [(name, itemgetter(name)) for name in ("index", "node", "pod", "state", "reason")]
    show(found["members"], columns, output, name="node")


def _ask(run: str, verb: str, body: Json | None = None) -> None:
    client = connect()
    client.post(f"runs/{run}/{verb}", body, key=secrets.token_hex(16))
    hint(f"{run}: {verb} was asked for; the controller brings it about.")
    link(client, f"job?run={run}")


@app.command()
def stop(run: Run) -> None:
    """Save, stop and end a run for good."""
    _ask(run, "stop")


@app.command()
def pause(run: Run) -> None:
    """Save and stop; `resume` goes on."""
    _ask(run, "pause")


@app.command()
def resume(run: Run) -> None:
    """Go on with a paused run, or with one that waits for a person."""
    _ask(run, "resume")


@app.command()
def restart(
    run: Run,
    checkpoint: Annotated[int | None, typer.Option(help="the step to go back to (the newest verified one)")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="a node to leave out; may be repeated")] = None,
) -> None:
    """End the attempt and begin another from a checkpoint."""
    body: Json = {"exclude_nodes": exclude or []}
    if checkpoint is not None:
        found = connect().get(f"runs/{run}/checkpoints")["checkpoints"]
        chosen = next((one for one in found if one["step"] == checkpoint), None)
        if chosen is None:
            hint(
                f"{run} has no checkpoint {checkpoint}; it has {', '.join(str(one['step']) for one in found) or 'none'}"
            )
            raise Exit(EXIT.NOT_FOUND)
        body["checkpoint_id"] = chosen["id"]
    _ask(run, "restart", body)


@app.command()
def wait(run: Run, timeout: Annotated[float, typer.Option(help="seconds")] = 3600) -> None:
    """Wait for the end; the exit code says which one it was: 101 if the run waits for a person."""
    client, begun, halted = connect(), time.monotonic(), 0
    while True:
        found = client.run(run)
        halted = halted + 1 if _waits_for_a_person(found) else 0
        code = _ENDS.get(found["status"], EXIT.UNFINISHED if halted >= LOOKS else None)
        if code is not None:
            print(found["status"])
            if code is EXIT.UNFINISHED:
                hint(f"{run} waits for a person: {found['reason'] or 'it was paused'}")
            raise Exit(code)
        if time.monotonic() > begun + timeout:
            why = f": {found['reason']}" if found["status"] in WAITING and found["reason"] else ""
            hint(f"{run} is {found['status']}, {progress(found)}, after {timeout:.0f} s{why}")
            raise Exit(EXIT.TIMEOUT)
        time.sleep(1.0)


def _waits_for_a_person(run: Json) -> bool:
    return bool(run["status"] == "needs_human" or (run["status"] == "paused" and run["desired"] == "pause"))


def progress(run: Json) -> str:
    """Where a run is, in words: what is not known yet is no zero."""
    attempt = run["attempts"][-1] if run["attempts"] else None
    if attempt is not None and attempt["first_step"] is None and attempt["resume_step"] is not None:
        return f"starts from {attempt['resume_step']} of {run['steps']}"
    if run["step"] is None:
        return f"no step yet of {run['steps']}"
    return f"step {run['step']} of {run['steps']}"


@app.command()
def why(run: Run, output: Output = Form.table) -> None:
    """Why a run restarted, or does not start: the cause, the decision, what was lost, and the timeline."""
    one(connect().why(run), output, story, name="run")


def story(told: Json) -> str:
    """A Why as text for a terminal."""
    lines: list[str] = []
    for restart_ in told["restarts"]:
        lines += [f"Restart after attempt {restart_['no']}", f"  {restart_['sentence']}"]
        parts = [f"{part['name']} {length(part['seconds'])}" for part in restart_["phases"]]
        lines.append(f"  {' · '.join(parts)}")
        lost = f"{restart_['gpu_hours_lost']:.2f} GPU-hours, {restart_['steps_again']} steps run twice"
        lines.append(f"  lost: {lost}")
        decision = restart_["decision"]
        if decision and decision["verification"]:
            lines.append(f"  {decision['state']}: {decision['verification']['sentence']}")
        lines.append("")
    now = [] if told["restarts"] else [f"{told['run']} has not restarted."]
    now += [told["waits"]] if told["waits"] else []
    lines += [" ".join(now), ""] if now else []
    lines.append("Timeline (UTC)")
    begun = None
    for line in told["timeline"]:
        begun = begun if begun is not None else line["at_s"]
        clock = datetime.fromtimestamp(line["at_s"], UTC).strftime("%H:%M:%S")
        mark = {"fault": "×", "warn": "!", "ok": "●"}.get(line["level"], "·")
        lines.append(f"  {clock}  +{length(line['at_s'] - begun):>10}  {line['lane']:8}  {mark} {line['sentence']}")
    return "\n".join(lines)


@app.command()
def diff(run: Run) -> None:
    """What differs from the template of the same command."""
    for row in connect().run(run)["diff"]:
        print(f"{row['path']}: {row['before']} → {row['after']}")
