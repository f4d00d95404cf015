"""`trimtab node …`, `trimtab drill`: machines, and faults on simulated nodes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agents import drills
from controlplane.cli.output import Form, Output, connect, hint, length, link, one, show

nodes = typer.Typer(no_args_is_help=True, help="Machines.")
Json = dict[str, Any]
Node = Annotated[str, typer.Argument(help="the node's name")]


def _gpus(row: Json) -> str:
    counts: dict[str, int] = {}
    for gpu in row["gpus"]:
        counts[gpu["state"]] = counts.get(gpu["state"], 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())


_COLUMNS = [
    ("node", lambda row: row["name"]),
    ("state", lambda row: row["state"] + (", cordoned" if row["cordoned"] else "")),
    ("gpus", _gpus),
    ("nics up", lambda row: f"{row['nics_up']}/{row['nics']}"),
    ("run", lambda row: row["run"]),
    ("age", lambda row: length(row["age_s"])),
    ("source", lambda row: row["source"]),
]
_WIDE = [("why", lambda row: row["state_reason"])]


@nodes.command("ls")
def ls(output: Output = Form.table) -> None:
    """List nodes."""
    show(connect().nodes(), _COLUMNS, output, name="name", wide=_WIDE)


@nodes.command()
def get(node: Node, output: Output = Form.table) -> None:
    """One node with its GPUs and what happened."""

    def text(row: Json) -> str:
        lines = [f"{row['name']}  {row['state']}  {row['state_reason']}".rstrip()]
        for gpu in row["gpus"]:
            power, heat = gpu["power_w"], gpu["temperature_hotspot_c"]
            words = f"{power:.0f} W  {heat:.0f} °C" if power is not None and heat is not None else "no data"
            lines.append(f"  GPU {gpu['index']}  {gpu['state']:8}  {words}")
        lines += [f"  {fault['sentence']}" for fault in row["findings"]]
        return "\n".join(lines)

    one(connect().get(f"nodes/{node}"), output, text, name="name")


@nodes.command()
def cordon(node: Node, reason: Annotated[str, typer.Option(help="why")] = "") -> None:
    """Keep new ranks off a node."""
    client = connect()
    client.post(f"nodes/{node}/cordon", {"reason": reason})
    hint(f"{node} takes no more ranks; undo: trimtab node return {node}")
    link(client, f"fleet?node={node}")


@nodes.command()
def drain(node: Node, reason: Annotated[str, typer.Option(help="why")] = "") -> None:
    """Take a node out of service; what runs on it saves, stops and goes on without it."""
    client = connect()
    answer = client.post(f"nodes/{node}/drain", {"reason": reason})
    for run in answer["runs"]:
        hint(f"{run['name']} {f'saves, stops and goes on without {node}' if run['asked'] else run['why']}")
    done = "is being emptied" if answer["runs"] else "was idle and takes no work now"
    hint(f"{node} {done}; undo: trimtab node return {node}")
    link(client, f"fleet?node={node}")


@nodes.command("uncordon")
@nodes.command("return")
def give_back(
    node: Node,
    reason: Annotated[str, typer.Option(help="why")] = "",
    force: Annotated[bool, typer.Option("--force", help="also while a fault fires there; needs a reason")] = False,
) -> None:
    """Return a node to service; refused while a fault fires there that asks for more than an alert."""
    client = connect()
    answer = client.post(f"nodes/{node}/uncordon", {"reason": reason, "force": force})
    if answer["firing"]:
        rest = "until this clears or its incident is resolved, no rank is placed there"
        hint(f"{node} is back in service; {rest}: {'; '.join(answer['firing'])}")
    else:
        hint(f"{node} takes ranks again.")
    link(client, f"fleet?node={node}")


def drill(
    kind: Annotated[str, typer.Argument(help=", ".join((*drills.DRILLS, "or clear, the repair of all")))],
    node: Annotated[str, typer.Option(help="a simulated node")],
    gpu: Annotated[int, typer.Option(help="the GPU, or the NIC of that number; a host has but one")] = 0,
) -> None:
    """Make a simulated device report a fault. Real nodes are refused."""
    client = connect()
    client.drill(node, kind, gpu)
    every = f"end the drills of GPU {gpu}, NIC {gpu} and its host"
    did = every if kind == "clear" else f"report {drills.told(kind, gpu)}"
    hint(f"{node} will {did} with its next sample.")
    link(client, f"fleet?node={node}")
