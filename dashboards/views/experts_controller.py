"""What steers the balancing bias of one layer, among all layers: what was measured, and what explains it best.

Why it exists: the map says which layer leans; this says whether its controller is on the way to mend it. Sentence and
dots come from one answer of the server, of the 64 steps up to the one that is shown. Nothing is guessed here: that a
layer swings, or that a sign is inverted and by which gain, is the alarms' word.
"""

from collections.abc import Mapping, Sequence
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
GAINS = ("ki", "kp", "kd", "sign_gain")
# gain in the summary -> its symbol and how much its model explains
SPOKEN: Mapping[str, tuple[str, str]] = {"sign_gain": ("u", "sign_r2"), "ki": ("Ki", "r2")}


@st.fragment(run_every=5)
def section(run_id: str, layer: int, step: int | None = None, gains: bool = False) -> None:
    """One sentence and one row of dots a measure, with `gains` also one a gain; of the step, or the newest."""
    summary = latest(f"runs/{run_id}/experts/summary", step=step)
    if summary is None:
        return
    facts = facts_of(summary, (*FACTS, *GAINS) if gains else tuple(FACTS))
    when = f"step {words.number(summary.get('step'))}" if step is not None else f"layer {layer}"
    theme.section("Controller, identified from the run", "least squares over 64 steps", when)
    swings = bool(_row(summary, layer).get("swings"))
    told = f"{sentence(facts, layer, swings=swings)} {identified(summary, layer)}".strip()
    st.html(f'<p class="tt-lead tt-small">{told}</p>')
    charts.controller(layer, key=f"controller_{run_id}", facts=facts)


def identified(summary: Row, layer: int) -> str:
    """Which controller explains the layer's biases, as markup; empty while nothing is known of it."""
    row = _row(summary, layer)
    kind = row.get("kind")
    if row.get("inverted_by") in SPOKEN:
        return f"<b>Its sign is inverted</b>: the biases feed the error ({_gain(row, row['inverted_by'])})."
    if kind == "sign":
        return f"It answers the error's sign, with {_gain(row, 'sign_gain')}{_direction(row, 'sign_gain', right=True)}."
    if kind == "pid":
        return f"It follows the summed error, with {_gain(row, 'ki')}{_direction(row, 'ki')}."
    is_known = row.get("r2") is not None or row.get("sign_r2") is not None
    return "No simple controller explains half of its movement." if kind == "unknown" and is_known else ""


def _row(summary: Row, layer: int) -> Row:
    return next((row for row in summary.get("controller") or () if row.get("layer") == layer), {})


def _gain(row: Row, name: str) -> str:
    symbol, r2 = SPOKEN[name]
    gain, explained = row.get(name), row.get(r2)
    if gain is None or explained is None:
        return "gain not known"
    return f"{symbol} = {float(gain):.2g}, R² {float(explained):.2f}".replace("-", "−")


def _direction(row: Row, name: str, *, right: bool = False) -> str:
    """Of a gain that no alarm calls inverted: below zero in the warm-up or near even loads; or, if asked, right."""
    gain = row.get(name)
    if gain is not None and gain < 0:
        return "; it is below zero, which no alarm calls inverted here"
    return "; the sign is correct" if right and gain else ""


def facts_of(summary: Row, names: Sequence[str] = tuple(FACTS)) -> dict[str, list[float | None]]:
    """Each known measure as a list with a value a layer, in the layers' order."""
    rows = [row for row in summary.get("controller") or () if isinstance(row, Mapping)]
    rows = sorted(rows, key=lambda row: int(row.get("layer") or 0))
    found: dict[str, list[float | None]] = {}
    for name in names:
        values = [None if row.get(name) is None else float(row[name]) for row in rows]
        if any(value is not None for value in values):
            found[name] = values
    return found


def sentence(facts: Mapping[str, list[float | None]], layer: int, *, swings: bool = False) -> str:
    """What stands out in this layer's bias, as markup; every figure in it is measured. `swings`: the alarm says so."""
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
        parts.append(f"{100 * same:.0f} % of its last changes went one way: {told}.")
    flips = _value(facts.get("sign_flips"), layer)
    if flips is not None:
        parts.append(f"{100 * flips:.0f} % went the other way than the one before.")
    if swings:
        parts.append("<b>It swings</b>: its loads come and go.")
    return " ".join(parts) or "The bias is shown as it stands; its movement is known after a window of 64 steps."


def _value(values: list[float | None] | None, layer: int) -> float | None:
    return values[layer] if values and layer < len(values) else None


def _median(values: list[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return median(known) if known else None
