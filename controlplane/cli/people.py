"""`trimtab incident|token|channel|rules …` and `doctor`: who is told, who may do what, what is missing here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli.output import EXIT, Exit, Form, Output, connect, dashboard, hint, length, link, one, show
from controlplane.settings import HELP, load

incidents = typer.Typer(no_args_is_help=True, help="What needs a person.")
tokens = typer.Typer(no_args_is_help=True, help="Who may do what.")
channels = typer.Typer(no_args_is_help=True, help="Who is told.")
rules = typer.Typer(no_args_is_help=True, help="What is looked for.")
Json = dict[str, Any]


def _number(given: str) -> int:
    digits = given.upper().removeprefix("INC-")
    if not digits.isdecimal():
        raise typer.BadParameter("an incident is named by its number or its label: 7, INC-0007")
    return int(digits)


Number = Annotated[int, typer.Argument(parser=_number, metavar="NUMBER", help="the incident's number, or its label")]


@incidents.command("ls")
def list_incidents(
    state: Annotated[str | None, typer.Option(help="open, acked, resolved, merged, closed")] = None,
    output: Output = Form.table,
) -> None:
    """List incidents, newest first."""
    columns = [
        ("incident", lambda row: row["label"]),
        ("state", lambda row: row["state"]),
        ("severity", lambda row: row["severity"]),
        ("what", lambda row: row["title"]),
        ("run", lambda row: row["run"]),
        ("age", lambda row: length(row["age_s"])),
        ("owner", lambda row: row["owner"]),
    ]
    show(connect().get("incidents", state=state)["incidents"], columns, output, name="label")


@incidents.command("get")
def get_incident(number: Number, output: Output = Form.table) -> None:
    """One incident with its story."""

    def text(row: Json) -> str:
        told = row["sentence"]
        lines = [f"{row['label']}  {row['state']}  {row['title']}", f"  {told['lead']} {told['rest']}"]
        if told.get("left"):
            lines.append(f"  left for you: {told['left']}")
        lines += [f"  {line['lane']:8}  {line['sentence']}" for line in row["timeline"]]
        return "\n".join(lines)

    one(connect().get(f"incidents/{number}"), output, text, name="label")


@incidents.command()
def ack(number: Number) -> None:
    """Take an incident for four hours."""
    client = connect()
    client.post(f"incidents/{number}/ack")
    hint(f"INC-{number:04d} is yours for 4 h.")
    link(client, f"incident?number={number}")


@incidents.command()
def resolve(number: Number, reason: Annotated[str, typer.Option(help="why it is over")]) -> None:
    """End an incident by hand."""
    client = connect()
    client.post(f"incidents/{number}/resolve", {"reason": reason})
    hint(f"INC-{number:04d} is resolved.")
    link(client, f"incident?number={number}")


@tokens.command("create")
def create_token(
    kind: Annotated[Literal["personal", "agent", "link"], typer.Option(help="whose it is")] = "personal",
    role: Annotated[Literal["viewer", "operator", "admin"] | None, typer.Option(help="what it may do")] = None,
    node: Annotated[str | None, typer.Option(help="the node of an agent's token")] = None,
    days: Annotated[float, typer.Option(help="its life")] = 30,
) -> None:
    """Make a token; it is printed once and never again. Of a link, the address that opens one session."""
    client = connect()
    made = client.post("tokens", {"kind": kind, "role": role, "node": node, "days": days})
    base = dashboard(client) if kind == "link" else ""
    print(f"{base}/open/{made['token']}" if base else made["token"])
    if kind == "link" and not base:
        hint("It opens one session at /open/… of the dashboard, whose address this server does not know.")


@tokens.command("admin")
def admin_token(data: Annotated[Path | None, typer.Option(help=HELP["data"])] = None) -> None:
    """Make an administrator's token in the server's own database, when the first one is lost; needs no token."""
    from controlplane.cli import serve as server  # heavy: the whole server's parts

    print(server.new_admin(load({"data": data})))


@tokens.command("ls")
def list_tokens(output: Output = Form.table) -> None:
    """List tokens, without their secrets."""
    columns = [
        ("id", lambda row: row["id"]),
        ("kind", lambda row: row["kind"]),
        ("role", lambda row: row["role"] or row["node"]),
        ("subject", lambda row: row["subject"]),
        ("state", lambda row: row["state"]),
    ]
    show(connect().get("tokens")["tokens"], columns, output, name="id")


@tokens.command("revoke")
def revoke_token(identifier: Annotated[str, typer.Argument(help="the token's id")]) -> None:
    """End a token at once."""
    connect().call("DELETE", f"tokens/{identifier}")


@channels.command("ls")
def list_channels(output: Output = Form.table) -> None:
    """List channels."""
    columns = [(name, lambda row, name=name: row[name]) for name in ("name", "kind", "url", "enabled", "signed")]
    show(connect().get("channels")["channels"], columns, output, name="name")


@channels.command("set")
def set_channel(
    name: Annotated[str, typer.Argument(help="letters, digits, hyphens")],
    url: Annotated[str, typer.Option(help="where messages are posted")],
    secret: Annotated[str | None, typer.Option(help="whsec_…; one is made if it is left out")] = None,
) -> None:
    """Make or change a webhook channel."""
    shown = connect().call("PUT", f"channels/{name}", body={"kind": "webhook", "url": url, "secret": secret})
    if shown.get("secret"):
        hint("The signing secret, shown once:")
        print(shown["secret"])


@channels.command("test")
def test_channel(name: Annotated[str, typer.Argument(help="the channel")]) -> None:
    """Send a marked message now."""
    outcome = connect().post(f"channels/{name}/test")
    print("ok" if outcome["ok"] else f"failed: {outcome['error']}")
    if not outcome["ok"]:
        raise Exit(EXIT.ERROR)


@rules.command("ls")
def list_rules(output: Output = Form.table) -> None:
    """Every rule in force, the agents' and the server's."""
    columns = [
        (name, lambda row, name=name: row.get(name)) for name in ("id", "runs_in", "severity", "action", "sentence")
    ]
    show(connect().get("rules")["rules"], columns, output, name="id")


def doctor() -> None:
    """Looks at this machine and says what is missing."""
    problems = 0

    def say(ok: bool, what: str, how: str = "") -> None:
        nonlocal problems
        problems += not ok
        print(f"{'ok' if ok else 'no':3} {what}{'' if ok else ': ' + how}")

    say(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "3.11 or newer is needed")
    for name, extra in (("fastapi", "server"), ("sqlalchemy", "server"), ("streamlit", "ui"), ("torch", "train")):
        say(importlib.util.find_spec(name) is not None, name, f"pip install '.[{extra}]' in a checkout of Trimtab")
    owners = importlib.metadata.packages_distributions().get("agents", [])
    foreign = [owner for owner in owners if owner != "trimtab"]
    say(
        not foreign, "the package `agents` is ours", f"{', '.join(foreign)} installs one too: use separate environments"
    )
    free = shutil.disk_usage(".").free / 1e9
    say(free > 8, f"{free:.0f} GB free here", "8 GB are needed for a full set-up")
    if problems:
        raise Exit(EXIT.ERROR)
