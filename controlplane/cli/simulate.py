"""`trimtab simulate …`: what the restart policy would make of a month, and the interval and spares that lose least.

Needs no server: the policy's own code runs in a virtual cluster. Inputs are printed with every result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from controlplane.cli.output import EXIT, Column, Exit, Form, Output, hint, length, table
from controlplane.runs.causes import MIX, Costs, measured_from, restart_from
from controlplane.simulate.campaign import DAYS, GOALS, SEEDS, Tell, run, scenarios
from controlplane.simulate.search import search

app = typer.Typer(no_args_is_help=True, help="What the restart policy would make of a month.")
Json = dict[str, Any]
_DEFAULT = Costs()

Gpus = Annotated[list[int] | None, typer.Option(help="GPUs of the run, each option a size; 1024 and 8192 if none")]
Seeds = Annotated[int, typer.Option(min=2, help="months, each with stops of its own")]
Days = Annotated[float, typer.Option(min=0.1, help="length of a month")]
Measured = Annotated[Path | None, typer.Option(exists=True, help="JSON file with restart times; docs/ettr.md")]
Blocking = Annotated[float, typer.Option(min=0.001, help="seconds that a checkpoint blocks the ranks")]
Write = Annotated[float, typer.Option(min=0, help="seconds from there until it can be resumed from")]
Load = Annotated[float, typer.Option(min=0, help="seconds to initialise and load")]
Hang = Annotated[float, typer.Option(min=1, help="seconds until a hang is one")]
Step = Annotated[float, typer.Option(min=0.001, help="seconds of a step")]
Repair = Annotated[float, typer.Option(min=0, help="hours until a node is back")]
Spares = Annotated[float, typer.Option(min=0, max=100, help="spare nodes in percent of the run's")]
Silent = Annotated[float, typer.Option(min=0, help="hours until silent corruption is found")]
Person = Annotated[float, typer.Option(min=0, help="minutes until a person who is called acts")]


@app.command("ettr")
def ettr(
    gpus: Gpus = None,
    seeds: Seeds = SEEDS,
    days: Days = DAYS,
    only: Annotated[list[str] | None, typer.Option(help="a scenario by its name; all if none")] = None,
    measured: Measured = None,
    blocking: Blocking = _DEFAULT.blocking_s,
    write: Write = _DEFAULT.write_s,
    load: Load = _DEFAULT.load_s,
    hang: Hang = _DEFAULT.hang_s,
    step: Step = _DEFAULT.step_s,
    repair_hours: Repair = _DEFAULT.repair_s / 3600,
    spares: Spares = _DEFAULT.spare_share * 100,
    silent_hours: Silent = _DEFAULT.silent_s / 3600,
    person_minutes: Person = _DEFAULT.person_s / 60,
    output: Output = Form.table,
) -> None:
    """Months of training under Llama 3's failure mix: the mean ETTR with its 95 % interval, and where the rest went."""
    costs = _costs(blocking, write, load, hang, step, repair_hours, spares, silent_hours, person_minutes)
    results = []
    for size in gpus or list(GOALS):
        at_size = _with_restart(costs, measured, size)
        chosen = [one for one in scenarios(at_size) if not only or one.name in only]
        if not chosen:
            raise typer.BadParameter(
                f"known are {', '.join(one.name for one in scenarios(costs))}", param_hint="--only"
            )
        for scenario in chosen:
            told = run(scenario, size, range(seeds), days, _teller(scenario.name))
            results.append({**told.as_dict(), "inputs": scenario.costs.as_dict()})
    _show({"mix": _mix(), "results": results}, output, _ettr_text)


@app.command("advise")
def advise(
    gpus: Gpus = None,
    seeds: Seeds = 64,
    days: Days = DAYS,
    measured: Measured = None,
    blocking: Blocking = _DEFAULT.blocking_s,
    write: Write = _DEFAULT.write_s,
    load: Load = _DEFAULT.load_s,
    hang: Hang = _DEFAULT.hang_s,
    step: Step = _DEFAULT.step_s,
    repair_hours: Repair = _DEFAULT.repair_s / 3600,
    silent_hours: Silent = _DEFAULT.silent_s / 3600,
    output: Output = Form.table,
) -> None:
    """The checkpoint interval and the spare nodes that lose least, each tried; Young and Daly's interval beside it."""
    costs = _costs(blocking, write, load, hang, step, repair_hours, 0.0, silent_hours, 0.0)
    results = []
    for size in gpus or list(GOALS):
        at_size = _with_restart(costs, measured, size)
        found = search(size, at_size, range(seeds), days, hint)
        results.append({**asdict(found), "inputs": at_size.as_dict()})
    _show({"mix": _mix(), "results": results}, output, _advise_text)


def _costs(
    blocking: float,
    write: float,
    load: float,
    hang: float,
    step: float,
    repair_hours: float,
    spares: float,
    silent_hours: float,
    person_minutes: float,
) -> Costs:
    return Costs(
        blocking_s=blocking,
        write_s=write,
        load_s=load,
        hang_s=hang,
        step_s=step,
        repair_s=repair_hours * 3600,
        spare_share=spares / 100,
        silent_s=silent_hours * 3600,
        person_s=person_minutes * 60,
    )


def _with_restart(costs: Costs, measured: Path | None, gpus: int) -> Costs:
    """The restart times of the file for a gang of this size; a sentence and exit code 2 if it cannot be used."""
    if measured is None:
        return costs
    try:
        told = {"source": measured.name, **measured_from(measured.read_text())}
        return replace(costs, restart=restart_from(told, costs.nodes(gpus)))
    except (ValueError, TypeError, AttributeError) as error:
        hint(f"{measured}: {error}")
        raise Exit(EXIT.USAGE) from error


def _teller(name: str) -> Tell:
    return lambda words: hint(f"{name}: {words}")


def _mix() -> list[Json]:
    return [{"cause": one.name, "stops": one.stops, "effect": one.effect, "rule": one.rule or None} for one in MIX]


def _show(told: Json, form: Form, text: Any) -> None:
    if form is Form.json:
        print(json.dumps(told, indent=2))
    elif form is Form.yaml:
        print(yaml.safe_dump(told, sort_keys=False), end="")
    else:
        print(text(told["results"]))


# --- as text ---

_ETTR: Sequence[Column] = (
    ("gpus", lambda row: f"{row['gpus']:,}"),
    ("scenario", lambda row: row["scenario"]),
    ("ettr %", lambda row: f"{row['ettr_percent']:.2f}"),
    ("95 % interval", lambda row: f"{row['low_percent']:.2f}–{row['high_percent']:.2f}"),
    ("goal", lambda row: _goal(row)),
    ("checkpoint each", lambda row: f"{row['interval_steps']} steps, {length(row['interval_s'])}"),
    ("spares", lambda row: row["spares"]),
    ("stops", lambda row: f"{row['stops']:.1f}"),
    ("calls", lambda row: f"{row['calls']:.1f}"),
    ("waits", lambda row: f"{row['waits']:.2f}"),
)
_TRIED: Sequence[Column] = (
    ("checkpoint each", lambda row: f"{row['interval_steps']} steps, {length(row['interval_s'])}"),
    ("spares", lambda row: row["spares"]),
    ("ettr %", lambda row: f"{row['ettr_percent']:.2f}"),
    ("lost gpu-hours", lambda row: f"{row['lost_gpu_h']:,.0f}"),
    ("more than the best", lambda row: f"{row['more_gpu_h']:,.0f} ± {row['doubt_gpu_h']:,.0f}"),
)


def _goal(row: Json) -> str | None:
    goal = row["goal_percent"]
    return None if goal is None else f"≥ {goal:g}, {'met' if row['low_percent'] >= goal else 'missed'}"


def _ettr_text(rows: Sequence[Json]) -> str:
    parts = [_inputs(rows[0]["inputs"], rows[0]["seeds"], rows[0]["days"]), table(rows, _ETTR)]
    for row in rows:
        if row["scenario"] == rows[0]["scenario"]:
            parts.append(_lost(row))
    for row in rows:
        if row["wrong"] or row["ignored"]:
            parts.append(
                f"{row['gpus']:,} GPUs, {row['scenario']}: in a month {row['wrong']:.2f} attempts went on from a state "
                f"that was known to be wrong, {row['ignored']:.2f} silent corruptions were found and nothing was done."
            )
    return "\n\n".join(parts)


def _inputs(told: Mapping[str, Any], seeds: int, days: float) -> str:
    lines = [
        f"  {name} = {value:,.5g}" if isinstance(value, float) else f"  {name} = {value}"
        for name, value in told.items()
    ]
    return "\n".join([f"{seeds} months of {days:g} days with:", *lines])


def _lost(row: Json) -> str:
    rows = [{"name": cause, "gpu_h": value} for cause, value in row["lost_by_cause_gpu_h"].items()]
    rows.append({"name": "in all", "gpu_h": row["lost_gpu_h"]})
    whole = row["gpus"] * row["days"] * 24
    columns: Sequence[Column] = (
        ("lost to", lambda one: one["name"]),
        ("gpu-hours a month", lambda one: f"{one['gpu_h']:,.0f}"),
        ("%", lambda one: f"{100 * one['gpu_h'] / whole:.3f}"),
    )
    phases = ", ".join(f"{name} {value:,.0f}" for name, value in row["lost_by_phase_gpu_h"].items() if value >= 0.5)
    return f"{row['gpus']:,} GPUs, {row['scenario']}\n{table(rows, columns)}\nby phase: {phases}"


def _advise_text(rows: Sequence[Json]) -> str:
    parts = [_inputs(rows[0]["inputs"], rows[0]["seeds"], DAYS)]
    for row in rows:
        best, closed = row["best"], row["closed"]
        parts.append(
            f"{row['gpus']:,} GPUs, a stop each {length(closed['mtbf_s'])}\n"
            f"  tried:        each {best['interval_steps']} steps ({length(best['interval_s'])}), "
            f"{best['spares']} spares\n"
            f"  closed form:  each {closed['interval_steps']} steps ({length(closed['interval_s'])}), "
            f"{closed['spares']} spares\n"
            f"  Young, Daly:  {length(closed['young_daly_s'])}\n\n{table(row['tried'], _TRIED)}"
        )
    return "\n\n".join(parts)
