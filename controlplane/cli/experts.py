"""`trimtab experts …`: the balance of a run's experts, live over all runs, and its records as a file."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli import experts_replay
from controlplane.cli.output import EXIT, Column, Exit, Form, Output, connect, hint, length, one, table
from controlplane.client import ApiError, Client, Download

app = typer.Typer(no_args_is_help=True, help="Expert balance of a run.")
Json = dict[str, Any]
Run = Annotated[str, typer.Argument(help="the run's id or name")]
BAR = 24
"""Characters of a bar of full length."""
EACH_S = 1.0
_EIGHTHS = " ▏▎▍▌▋▊▉"


def _number(name: str, digits: int = 2, sign: str = "") -> Any:
    return lambda row: None if row[name] is None else f"{row[name]:{sign}.{digits}f}"


def _share(name: str) -> Any:
    return lambda row: None if row[name] is None else f"{100 * row[name]:.2f} %"


def _times(row: Json) -> str | None:
    level = "" if row["level"] == "ok" else f" {row['level']}"
    return None if row["cv_floor"] is None else f"{row['cv_floor']:.2f}×{level}"


def _small(name: str) -> Any:
    return lambda row: None if row[name] is None else f"{row[name]:.2e}"


_LAYER: list[Column] = [
    ("layer", lambda row: row["layer"]),
    ("cv ÷ floor", _times),
    ("effective", _number("effective", 1)),
    ("dead", lambda row: row["dead"] or "0"),
    ("skip", _share("skip_share")),
    ("bias spread", _small("bias_spread")),
    ("lag-1", _number("lag1", sign="+")),
]
_FACTS: dict[str, Column] = {
    "z_loss": ("z-loss", _number("z_loss", 3)),
    "margin": ("margin", _number("margin", 4)),
    "dropped_share": ("dropped", _share("dropped_share")),
}
"""Router facts, shown where any layer's is known."""
_LIVE: list[Column] = [
    ("run", lambda row: row["run"]),
    ("step", lambda row: row["step"]),
    *_LAYER,
    ("age", lambda row: length(row["age_s"])),
]


@app.command("show")
def show_experts(
    run: Run,
    layer: Annotated[int | None, typer.Option(help="also the experts of this layer")] = None,
    step: Annotated[int | None, typer.Option(help="another step than the newest")] = None,
    output: Output = Form.table,
) -> None:
    """The balance of a run's step by layer: CV in multiples of the sampling floor, experts in use, bias, swings."""
    one(connect().get(f"runs/{run}/experts/table", layer=layer, step=step), output, picture, name="run")


def picture(row: Json) -> str:
    """A step as text for a terminal."""
    sentence = row["sentence"]
    shape = f"{row['layers']} layers, {row['experts']} experts, top-{row['top_k']}"
    when = f"step {row['step']} of attempt {row['attempt']}"
    lines = [f"{sentence['lead']} {sentence['rest']}".strip(), f"  {when}, {length(row['age_s'])} ago: {shape}"]
    lines += [f"  {tile['label']}: {tile['value']} {tile['unit']}  ({tile['context']})" for tile in row["tiles"]]
    known = [column for name, column in _FACTS.items() if any(layer[name] is not None for layer in row["by_layer"])]
    lines += ["", table(row["by_layer"], [*_LAYER, *known])]
    if known and row["facts_step"] != row["step"]:
        lines.append(f"{', '.join(name for name, _ in known)}: of step {row['facts_step']}, the newest that has them")
    if row["by_slot"] is not None:
        lines += ["", f"Layer {row['layer']}: figures", figures(row["by_layer"][row["layer"]]["figures"])]
        lines += ["", f"Layer {row['layer']}: tokens of each expert, 1.00 is its fair share", *bars(row["by_slot"])]
    return "\n".join(lines)


def figures(found: Json) -> str:
    """All statistics of a layer that are known, a row each: this step's, the window's mean, what chance makes of it."""
    rows = [
        {"name": name, **values} for name, values in found.items() if values["step"] is not None or values["window"]
    ]
    parts = [
        ("this step", lambda row: _short(row["step"])),
        ("64 steps", lambda row: _short(row["window"])),
        ("by chance", lambda row: _short(row["chance"])),
    ]
    return table(rows, [("figure", lambda row: row["name"]), *parts])


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def bars(slots: Sequence[Json]) -> list[str]:
    """A line a slot: a bar of its load (share × E), the load, the bias; of a skip slot its tokens, not a load."""
    full = max([2.0, *(slot["load"] for slot in slots if slot["load"] is not None)])
    lines = []
    for slot in slots:
        load, bias = slot["load"], slot["bias"]
        words = f"{slot['count']:>7} tokens" if slot["skip"] else f"{'–' if load is None else f'{load:.2f}':>7}"
        words += "      –" if bias is None else f"  {bias:+.5f}"
        name = "skip" if slot["skip"] else str(slot["slot"])
        drawn = " " * BAR if load is None else bar(load, full)
        lines.append(f"  {name:>4} {drawn}{words}{'  dead' if slot['dead'] else ''}")
    return lines


def bar(value: float, full: float) -> str:
    """`value` of `full` as a bar of BAR characters, to an eighth of one, with a mark where 1 is."""
    eighths = round(8 * BAR * min(max(value / full, 0.0), 1.0))
    drawn = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    fair = min(BAR - 1, round(BAR / full))
    return "".join(drawn[at] if at < len(drawn) else "┊" if at == fair else " " for at in range(BAR))


# --- live ------------------------------------------------------------------------------------------------------------


@app.command()
def top(
    run: Annotated[str | None, typer.Argument(help="the run's id or name; every active run if none is named")] = None,
    once: Annotated[bool, typer.Option("--once", help="print one table and end")] = False,
) -> None:
    """The layers farthest from even, worst first, each second anew until Ctrl-C."""
    client = connect()
    try:
        while True:
            size = shutil.get_terminal_size()
            frame = live(client, run, rows=10**6 if once else max(1, size.lines - 4))
            clear = "\x1b[H\x1b[J" if sys.stdout.isatty() and not once else ""
            print(f"{clear}{frame}", flush=True)
            if once:
                return
            time.sleep(EACH_S)
    except KeyboardInterrupt:
        print()


def live(client: Client, run: str | None, *, rows: int) -> str:
    """One frame: a line on how many runs and layers there are, and the worst layers."""
    found = [told for name in _runs(client, run) if (told := _told(client, name, needed=run is not None))]
    about = [{name: told[name] for name in ("run", "step", "age_s")} for told in found]
    layers = [{**row, **whose} for told, whose in zip(found, about, strict=True) for row in told["by_layer"]]
    layers.sort(key=lambda row: (bool(row["dead"]), row["cv_floor"] or -1.0), reverse=True)
    settling = [told["run"] for told in found if told["settling"]]
    head = f"{len(found)} run{'' if len(found) == 1 else 's'}, {len(layers)} layers"
    head += f"; in the warm-up, not judged: {', '.join(settling)}" if settling else ""
    return f"{head}\n{table(layers[:rows], _LIVE)}" if layers else f"{head}: no active run has expert records"


def _runs(client: Client, run: str | None) -> Iterator[str]:
    if run is not None:
        yield run
        return
    yield from (row["id"] for row in client.every("runs", status="active"))


def _told(client: Client, run: str, *, needed: bool) -> Json | None:
    try:
        found: Json = client.get(f"runs/{run}/experts/table")
        return found
    except ApiError as error:
        if needed or error.status != 404:
            raise
        return None  # it has no record yet, or is gone


# --- files -----------------------------------------------------------------------------------------------------------


class Format(StrEnum):
    """How a file of records is written."""

    csv = "csv"
    parquet = "parquet"
    npz = "npz"


class What(StrEnum):
    """Counts, shares and biases of each expert, or the statistics of each layer."""

    loads = "loads"
    layers = "layers"


@app.command()
def export(
    run: Run,
    form: Annotated[Format, typer.Option("--format", help="csv and parquet have rows, npz matrices")] = Format.csv,
    what: Annotated[What, typer.Option(help="of each expert, or of each layer")] = What.loads,
    layers: Annotated[str | None, typer.Option(help="as in 0-5,9; all if not given")] = None,
    first: Annotated[int | None, typer.Option("--from", help="first step")] = None,
    last: Annotated[int | None, typer.Option("--to", help="last step")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="the file or its folder, - for stdout")] = "",
) -> None:
    """A run's expert records as a file; prints its name.

    loads: a row a step, layer and slot with count, share and bias. layers: a row a step and layer with its statistics.
    npz: arrays of steps × layers × slots, or steps × layers.
    """
    client = connect()
    asked = {"format": form.value, "what": what.value, "layers": layers, "from": first, "to": last}
    with client.download(f"runs/{run}/experts/export", **asked) as sent:
        if output == "-":
            for piece in sent.pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        path = Path(output or sent.name)
        if path.is_dir():
            path /= sent.name
        try:
            _write(sent, path)
        except OSError as error:
            hint(f"{path} cannot be written: {error.strerror or error}")
            raise Exit(EXIT.ERROR) from error
    print(path)


def _write(sent: Download, path: Path) -> None:
    """Writes beside the file and names it when it is whole: what broke off leaves nothing that looks like a file."""
    part = path.with_name(f"{path.name}.part")
    shown, size, begun, told = sys.stderr.isatty(), 0, time.monotonic(), 0.0
    try:
        with part.open("wb") as file:
            for piece in sent.pieces:
                file.write(piece)
                size += len(piece)
                if shown and time.monotonic() - told > 0.2:
                    told = time.monotonic()
                    print(f"\r{size / 1e6:.1f} MB, {length(told - begun)} ", end="", file=sys.stderr, flush=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        if shown and told:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    hint(f"{size / 1e6:.1f} MB")


app.command("replay")(experts_replay.replay_command)
