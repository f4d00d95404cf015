"""`trimtab lifecycle …`: submit, look, decide on gates, promote, clone, compare."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.output import EXIT, Column, Exit, Form, Output, connect, hint, link, one, show
from controlplane.cli.texts import problem_lines, text_of, usage

app = typer.Typer(no_args_is_help=True, help="Lifecycles: stages with gates, from pretraining to release.")
Json = dict[str, Any]


def _named(what: str, whole: str) -> Callable[[str], str]:
    """What an argument must be before it stands in an address: no name or id has other characters."""

    def check(value: str) -> str:
        if not value.strip():
            raise usage(f"A {what} is needed.")
        if not re.fullmatch("[A-Za-z0-9-]+", value):
            raise usage(f"There is no {whole} {value!r}: a {what} has letters, digits and hyphens alone.")
        return value

    return check


_lifecycle = _named("lifecycle's name or id", "lifecycle")
Named = Annotated[str, typer.Argument(help="the lifecycle's id or name", callback=_lifecycle)]
StageName = Annotated[str, typer.Argument(help="the stage's name", callback=_named("stage's name", "stage"))]
File = Annotated[str, typer.Argument(help="a YAML file, - for standard input, or a template's name")]
Hash = Annotated[str, typer.Option("--hash", help="the checkpoint that is meant, eight digits of its hash at least")]
SHORT = 12
_ENDS = {"succeeded": EXIT.OK, "failed": EXIT.FAILED, "cancelled": EXIT.CANCELLED}

_COLUMNS: list[Column] = [
    ("lifecycle", lambda row: row["id"]),
    ("name", lambda row: row["name"]),
    ("status", lambda row: row["status"]),
    ("stage", lambda row: row["stage"]),
    ("passed", lambda row: f"{row['passed']}/{len(row['stages'])}"),
    ("step", lambda row: _far(row["progress"])),
    ("productive", lambda row: f"{row['cost']['productive_gpu_h']:.2f}"),
    ("lost", lambda row: f"{row['cost']['lost_gpu_h']:.2f}"),
    ("queued", lambda row: f"{row['cost']['queued_gpu_h']:.2f}"),
    ("waits for", lambda row: _waits_for(row)),
]
_WIDE: list[Column] = [("by", lambda row: row["created_by"]), ("reason", lambda row: row["reason"])]


def _far(progress: Json | None) -> str | None:
    """640/1000, of the run under way."""
    if progress is None or progress["step"] is None:
        return None
    return f"{progress['step']}/{progress['steps']}"


def _waits_for(row: Json) -> str | None:
    if row["waits_for_person"]:
        return "a person"
    return "a disk" if row["waits_for_disk"] else None


@app.command()
def submit(
    file: File,
    output: Output = Form.table,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would happen")] = False,
) -> None:
    """Submit a lifecycle; prints its id. With `--dry-run` exit code 1 if it would be refused."""
    client = connect()
    text = text_of(client, file, "Lifecycle")
    if dry_run:
        found = client.validate_lifecycle(text)
        one(found, output, _planned, name="sentence")
        raise Exit(EXIT.ERROR if found["problems"] else EXIT.OK)
    made = client.submit_lifecycle(text, key=secrets.token_hex(16))
    one(made, output, lambda row: str(row["id"]), name="id")
    link(client, f"lifecycle?lifecycle={made['id']}")


def _planned(found: Json) -> str:
    lines = problem_lines(found["problems"])
    for stage in found["stages"]:
        needs = "; ".join([*stage["require"], *(["a person approves"] if stage["approval"] else [])])
        source = f", from {stage['from']}" if stage["from"] else ""
        gate = f", passes if {needs}" if needs else ""
        lines.append(f"ok     {stage['name']}: {stage['steps']} steps on {stage['gpus']} GPUs{source}{gate}")
    lines += _differences(found["against"], found["diff"])
    return "\n".join([*lines, found["sentence"]])


def _differences(against: Json | None, changes: list[Json]) -> list[str]:
    if against is None:
        return []
    head = f"{len(changes)} differences from {against['id']}" if changes else f"the same as {against['id']}"
    return [head, *(f"  {row['path']}: {row['before']} → {row['after']}" for row in changes)]


@app.command("ls")
def ls(
    status: Annotated[str | None, typer.Option(help="only these, comma separated")] = None, output: Output = Form.table
) -> None:
    """List lifecycles, newest first: how far the stage under way is, and GPU-hours: productive, lost, queued."""
    show(list(connect().every("lifecycles", status=status)), _COLUMNS, output, name="id", wide=_WIDE)


@app.command("show")
def show_one(lifecycle: Named, output: Output = Form.table) -> None:
    """One lifecycle, whole: its stages with gates, progress and cost."""
    one(connect().lifecycle(lifecycle), output, _whole, name="id")


def _whole(found: Json) -> str:
    head = f"{found['id']}  {found['name']}  {found['status']}  {found['reason']}".rstrip()
    lines = [head]
    for stage in found["stages"]:
        lines += _stage(stage)
    for alias in found["aliases"]:
        tainted = ", which is tainted" if alias.get("tainted") else ""
        lines.append(f"  alias {alias['alias']} → {alias['checkpoint_hash'][:SHORT]}{tainted}")
    for told in found["deliveries"]:
        if told["state"] != "told":
            of = f"stage {told['stage']}" if told["stage"] else "its end"
            error = f": {told['last_error']}" if told["last_error"] else ""
            state = "given up" if told["state"] == "dead" else "not told yet"
            lines.append(f"  channel {told['channel']}, {of}: {state}{error}")
    cost = found["cost"]
    spent = f"{cost['productive_gpu_h']:.2f} productive, {cost['lost_gpu_h']:.2f} lost"
    lines.append(f"  GPU-hours: {spent}, {cost['queued_gpu_h']:.2f} queued")
    return "\n".join(lines)


def _stage(stage: Json) -> list[str]:
    progress, candidate = stage["progress"], stage["candidate"]
    step = f"  step {progress['step']}/{progress['steps']}" if progress["step"] is not None else ""
    kept = f"  {candidate['hash'][:SHORT]}" if candidate else ""
    state = f"{stage['state']} ({stage['hold']})" if stage["hold"] else stage["state"]
    lines = [f"  {stage['name']:16}  {state}{step}{kept}"]
    if stage["state"] == "held":
        lines.append(f"    {stage['reason']}")
    if stage["unread"] is not None:
        lines.append(f"    {stage['unread']['sentence']}")
    for asked in (stage["gate"] or {}).get("requirements", ()):
        mark = {True: "●", False: "×", None: "·"}[asked["ok"]]
        lines.append(f"    {mark} {asked['sentence'] or asked['requirement']}")
    return lines


@app.command()
def approve(
    lifecycle: Named,
    stage: StageName,
    hash: Hash,
    reason: Annotated[str, typer.Option(help="why; needed against a gate that refused")] = "",
) -> None:
    """Let a held stage pass with the checkpoint of this hash."""
    _on_stage(lifecycle, stage, "approve", {"hash": hash, "reason": reason})


@app.command()
def refuse(
    lifecycle: Named, stage: StageName, hash: Hash, reason: Annotated[str, typer.Option(help="why")] = ""
) -> None:
    """Give up a held stage: it fails, and what waits for it is cancelled."""
    _on_stage(lifecycle, stage, "refuse", {"hash": hash, "reason": reason})


@app.command()
def retry(
    lifecycle: Named,
    stage: StageName,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="its own job from the stage's source, a training with another seed")
    ] = False,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="only evaluate again")] = False,
) -> None:
    """Have a held stage tried again: what failed or was stopped, from where it came to.

    Where a gate refuses or a person is asked nothing failed: then say which, `--fresh` or `--evaluation`.
    """
    _on_stage(lifecycle, stage, "retry", {"fresh": fresh, "evaluation": evaluation})


def _on_stage(lifecycle: str, stage: str, verb: str, body: Json) -> None:
    client = connect()
    client.post(f"lifecycles/{lifecycle}/stages/{stage}/{verb}", body, key=secrets.token_hex(16))
    hint(f"{stage} of {lifecycle}: {verb} was asked for; the controller brings it about.")
    link(client, f"lifecycle?lifecycle={lifecycle}&stage={stage}")


@app.command()
def promote(
    lifecycle: Named,
    alias: Annotated[str, typer.Argument(help="the alias")],
    hash: Annotated[str, typer.Argument(help="the checkpoint's hash, eight digits of it at least")],
) -> None:
    """Point an alias at a verified checkpoint of a lifecycle."""
    client = connect()
    told = client.post(f"lifecycles/{lifecycle}/promote", {"alias": alias, "hash": hash}, key=secrets.token_hex(16))
    before = f", before at {told['before'][:SHORT]}" if told["before"] else ""
    hint(f"{told['alias']} of {told['owner']} points at {told['checkpoint_hash'][:SHORT]}{before}.")
    link(client, f"lifecycle?lifecycle={lifecycle}&show=Lineage")


@app.command()
def lineage(lifecycle: Named, output: Output = Form.table) -> None:
    """Where the checkpoints of a lifecycle come from, tainted branches included."""
    one(connect().get(f"lifecycles/{lifecycle}/lineage"), output, _lineage, name="lifecycle")


def _lineage(found: Json) -> str:
    lines = []
    for stage in found["stages"]:
        own, parent = stage["checkpoint_hash"][:SHORT] or "–", stage["parent_hash"][:SHORT] or "nothing"
        spoilt = "  tainted" if stage["tainted"] or stage["parent_tainted"] else ""
        step = f" step {stage['step']}" if stage["step"] is not None else ""
        inherited = "  inherited" if stage["inherited"] else ""
        lines.append(f"{stage['stage']:16}  {own}{step}  from {parent}  {stage['state']}{inherited}{spoilt}")
        told = ", ".join(f"{name} {value:.4g}" for name, value in stage["metrics"].items())
        lines += [f"  {told}"] if told else []
    tainted = [node for node in found["nodes"] if node["tainted"]]
    lines += [
        f"tainted: {node['hash'][:SHORT]} of {node['run']}, step {node['step']}: {node['reason']}" for node in tainted
    ]
    lines += [f"alias {one['alias']} → {one['checkpoint_hash'][:SHORT]}" for one in found["aliases"]]
    return "\n".join(lines)


def _ask(lifecycle: str, verb: str) -> None:
    client = connect()
    client.post(f"lifecycles/{lifecycle}/{verb}", key=secrets.token_hex(16))
    hint(f"{lifecycle}: {verb} was asked for; the controller brings it about.")
    link(client, f"lifecycle?lifecycle={lifecycle}")


@app.command()
def pause(lifecycle: Named) -> None:
    """Save and stop what runs and begin nothing; `resume` goes on."""
    _ask(lifecycle, "pause")


@app.command()
def resume(lifecycle: Named) -> None:
    """Go on with a paused lifecycle."""
    _ask(lifecycle, "resume")


@app.command()
def cancel(lifecycle: Named) -> None:
    """Save, stop and end a lifecycle for good."""
    _ask(lifecycle, "cancel")


@app.command()
def clone(
    lifecycle: Named,
    begin: Annotated[str, typer.Option("--from", help="the stage with which the new one begins")],
    file: Annotated[str | None, typer.Option("--file", help="a changed plan, as YAML")] = None,
    output: Output = Form.table,
) -> None:
    """A new lifecycle that begins with a stage of another; the checkpoints before it are inherited. Prints its id."""
    client = connect()
    body: Json = {"begin": begin, **({"yaml": text_of(client, file, "Lifecycle")} if file is not None else {})}
    made = client.post(f"lifecycles/{lifecycle}/clone", body, key=secrets.token_hex(16))
    one(made, output, lambda row: str(row["id"]), name="id")
    link(client, f"lifecycle?lifecycle={made['id']}")


@app.command()
def diff(
    lifecycle: Annotated[str, typer.Argument(help="an id or name; or a YAML file, against the last of its name")],
    against: Annotated[str | None, typer.Option(help="another lifecycle (the last of the name before it)")] = None,
    output: Output = Form.table,
) -> None:
    """What differs between two lifecycles, a path a line."""
    client = connect()
    if lifecycle == "-" or Path(lifecycle).is_file():
        found = client.validate_lifecycle(text_of(client, lifecycle, "Lifecycle"))
        if found["problems"]:
            one(found, output, _planned, name="sentence")
            raise Exit(EXIT.ERROR)
    else:
        found = client.get(f"lifecycles/{_lifecycle(lifecycle)}/diff", against=against)
    if found["against"] is None:
        hint("There is no earlier lifecycle of this name.")
    one(found, output, lambda row: "\n".join(_differences(row["against"], row["diff"])), name="against")


@app.command()
def wait(lifecycle: Named, timeout: Annotated[float, typer.Option(help="seconds")] = 3600) -> None:
    """Wait for the end, or for a stage that waits for a person (exit code 101)."""
    client, begun = connect(), time.monotonic()
    while True:
        found = client.lifecycle(lifecycle)
        code = _ENDS.get(found["status"])
        halted = found["waits_for_person"] or found["status"] == "paused"
        code = EXIT.UNFINISHED if code is None and halted else code
        if code is not None:
            print(found["status"])
            if code is EXIT.UNFINISHED:
                hint(f"{lifecycle} waits for a person: {found['reason'] or 'it was paused'}")
            raise Exit(code)
        if time.monotonic() > begun + timeout:
            hint(f"{lifecycle} is {found['status']}, stage {found['stage']}, after {timeout:.0f} s")
            raise Exit(EXIT.TIMEOUT)
        time.sleep(1.0)
