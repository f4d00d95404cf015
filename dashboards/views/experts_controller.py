"""What the balancing bias of one layer does, among all layers: only what was measured, no gain is guessed here.

Why it exists: the map says which layer leans; this says whether its controller is on the way to mend it. Sentence and
dots come from one answer of the server, of the newest step: beside a replay that is said.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any

import streamlit as st

from dashboards import charts, theme, words
from dashboards.views.kept import latest

Row = Mapping[str, Any]

# name in the summary -> how the row is called
FACTS: Mapping[str, str] = {
    "bias_spread": "spread",
    "drift": "change",
    "same_direction": "same direction",
    "sign_flips": "sign flips",
}


@st.fragment(run_every=5)
def section(run_id: str, layer: int, replay: bool = False) -> None:
    """One sentence and one row of dots a measure."""
    summary = latest(f"runs/{run_id}/experts/summary")
    if summary is None:
        return
    facts = facts_of(summary)
    when = f"now, step {words.number(summary.get('step'))}" if replay else f"layer {layer}"
    theme.section("Controller, as measured", "bias of this layer among all layers", when)
    st.html(f'<p class="tt-lead tt-small">{sentence(facts, layer)}</p>')
    charts.controller(layer, key=f"controller_{run_id}", facts=facts)


def facts_of(summary: Row) -> dict[str, list[float | None]]:
    """Each known measure as a list with a value a layer, in the layers' order."""
    rows = [row for row in summary.get("controller") or () if isinstance(row, Mapping)]
    rows = sorted(rows, key=lambda row: int(row.get("layer") or 0))
    found: dict[str, list[float | None]] = {}
    for name in FACTS:
        values = [None if row.get(name) is None else float(row[name]) for row in rows]
        if any(value is not None for value in values):
            found[name] = values
    return found


def sentence(facts: Mapping[str, list[float | None]], layer: int) -> str:
    """What stands out in this layer's bias, as markup; every figure in it is measured."""
    parts = []
    spread, middle = _value(facts.get("bias_spread"), layer), _median(facts.get("bias_spread"))
    if spread is not None and middle:
        times = spread / middle
        rest = f"the median layer ({words.figure(middle, 2)})"
        strong = "about as far as"
        if times >= 1.5:
            strong = f"<b>{words.figure(times, 2)} times</b>"
        elif times < 2 / 3:
            strong = "less than"
        parts.append(f"Layer {layer} holds its biases {words.figure(spread, 2)} apart, {strong} {rest}.")
    same = _value(facts.get("same_direction"), layer)
    if same is not None:
        told = "still pushing one way" if same >= 0.9 else "correcting both ways"
        parts.append(f"{100 * same:.0f} % of its last changes kept their direction: {told}.")
    flips = _value(facts.get("sign_flips"), layer)
    if flips is not None and flips >= 0.6:
        parts.append(f"<b>{100 * flips:.0f} % of them turned round</b>: it swings.")
    return " ".join(parts) or "The bias is shown as it stands; its movement is known after a window of 64 steps."


def _value(values: list[float | None] | None, layer: int) -> float | None:
    return values[layer] if values and layer < len(values) else None


def _median(values: list[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return median(known) if known else None
