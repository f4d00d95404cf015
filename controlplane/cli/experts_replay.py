"""`trimtab experts replay`: what other balancing controllers would have made of a run, from its records.

Takes a run of the server, whose records it fetches as `trimtab experts export` does, or such a file. Fits and replays
here; controlplane.simulate.balance says what a replay can know, docs/counterfactual.md how far it was off.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from controlplane.cli.output import EXIT, Column, Exit, Form, Output, connect, hint, show
from controlplane.rules.expert_response import Record, Response, fit_response, record_of
from controlplane.rules.experts import trailing_design_effect
from controlplane.simulate.balance import candidates, ranked, replay

Json = dict[str, Any]
_COLUMNS: Sequence[Column] = (
    ("controller", lambda row: row["label"]),
    ("cv", lambda row: f"{row['cv_floor']:.2f}×"),
    ("interval", lambda row: f"{row['cv_low']:.2f}–{row['cv_high']:.2f}"),
    ("maxvio", lambda row: f"{row['maxvio']:.2f}"),
    ("lag-1", lambda row: f"{row['lag1']:.2f}"),
    ("settles in", lambda row: f"{row['settle_steps']:.0f} steps"),
)


def replay_command(
    run: Annotated[str, typer.Argument(help="a run's id or name, or an .npz file of one")],
    steps: Annotated[int, typer.Option(min=64, help="of the last steps; the later half is judged")] = 400,
    top_k: Annotated[int | None, typer.Option(min=1, help="experts a token, where a file does not say")] = None,
    design: Annotated[float | None, typer.Option(min=0.1, help="the design effect, where it was measured")] = None,
    best: Annotated[int, typer.Option(min=1, help="how many controllers to show")] = 12,
    output: Output = Form.table,
) -> None:
    """Other balancing controllers over a run's records: the balance that each is predicted to give."""
    try:
        content = Path(run).read_bytes() if run.endswith(".npz") and Path(run).is_file() else _fetched(run, steps)
        found = np.load(io.BytesIO(content))
        record = _record(found, steps, top_k)
        response = fit_response(record, design if design is not None else _design(found, steps))
    except (ValueError, KeyError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        hint(f"{run} cannot be replayed: {error}")
        raise Exit(EXIT.USAGE) from error
    tried = candidates(response, record.experts)
    if not tried:
        hint("How load answers bias cannot be told of any layer: the biases hardly moved, or were not answered.")
        raise Exit(EXIT.ERROR)
    _say_fit(response)
    judged_from = len(record.counts) // 2
    outcomes = ranked(replay(record, response, one, judged_from=judged_from, draws=8) for one in tried)
    rows = [{**asdict(one), "label": one.controller.label()} for one in outcomes[:best]]
    show(rows, _COLUMNS, output, name="label")


def _fetched(run: str, steps: int) -> bytes:
    """The matrices of the run's last `steps` steps and of the one before them from the server."""
    client = connect()
    first = client.get(f"runs/{run}/experts/table")["step"] - steps
    with client.download(f"runs/{run}/experts/export", **{"format": "npz", "what": "loads", "from": first}) as sent:
        return b"".join(sent.pieces)


def _design(found: Mapping[str, Any], steps: int) -> NDArray[np.float64] | None:
    """[L] the design effect over the last steps, as the ranks told it; None where the file has none of it."""
    if "design_effect" not in found or not found["spread_freedom"].any():
        return None
    return trailing_design_effect(found["design_effect"].T, found["spread_freedom"].T, steps)[:, -1]


def _record(found: Mapping[str, Any], steps: int, top_k: int | None) -> Record:
    """The last consecutive steps of one attempt."""
    counts, bias = found["counts"], found["bias"]
    if "step" in found:
        breaks = np.flatnonzero((np.diff(found["step"]) != 1) | (np.diff(found["attempt"]) != 0))
        first = int(breaks[-1]) + 1 if len(breaks) else 0
        counts, bias = counts[first:], bias[first:]
    if top_k is None and "top_k" not in found:
        raise ValueError("it does not say how many experts a token takes; --top-k does")
    top_k = int(found["top_k"]) if top_k is None else top_k
    return record_of(counts[-steps - 1 :], bias[-steps - 1 :], int(found["experts"]), top_k)


def _say_fit(response: Response) -> None:
    known = response.known()
    low, middle, high = np.percentile(response.gain[known], (0, 50, 100))
    hint(
        f"{known.sum()} of {len(known)} layers answer their biases ({response.model}): a bias that rises by 0.001 "
        f"raises a fair share by {middle / 10:.2f} % at once, from {low / 10:.2f} to {high / 10:.2f} % by layer."
    )
    hint("A prediction, not a promise: the router itself would have learned otherwise. docs/counterfactual.md")
