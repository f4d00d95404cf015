"""All statistics of the chosen layer: this step's, the window's mean, and what chance alone makes of each.

Why it exists: a figure says nothing without its floor beside it; here every statistic has one, with its formula. The
server computes them; what they mean stands in docs/experts.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from dashboards import markup, theme, words
from dashboards.views.kept import latest

Row = Mapping[str, Any]
ENTROPY_LINE = 0.99
"""H ÷ ln E below which Zyphra's report on ZAYA1 calls a layer unbalanced."""


def _plain(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}g}".replace("-", "−")


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


# name -> how it is called, its formula, how a value is written
FIGURES: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "cv_floor": ("CV ÷ floor", "CV ÷ (CV₀·√deff)", _fixed(2)),
    "cv": ("CV", "standard deviation of r", _fixed(3)),
    "maxvio": ("MaxVio", "max r − 1", _fixed(3)),
    "avgvio": ("AvgVio", "mean |r − 1|", _fixed(3)),
    "min_load": ("min load", "min r", _fixed(3)),
    "gini": ("Gini", "Σ (2i − E − 1)·p₍ᵢ₎ ÷ E", _fixed(3)),
    "entropy": ("H ÷ ln E", "−Σ p ln p ÷ ln E", _fixed(4)),
    "effective": ("effective experts", "exp(H)", _fixed(2)),
    "dead_count": ("without a token", "c = 0, enough expected", _fixed(0)),
    "skip_share": ("skip share", "skip slot's tokens ÷ all", _percent),
    "dropped_share": ("dropped share", "copies dropped ÷ all", _percent),
    "churn": ("churn", "½·Σ |p − p before|", _fixed(4)),
    "lag1": ("lag-1", "autocorrelation of the loads", _fixed(2)),
    "design_effect": ("design effect", "variance between ranks ÷ chance", _fixed(2)),
    "bias_mean": ("bias mean", "mean b", _plain(3)),
    "bias_spread": ("bias spread", "max b − min b", _plain(3)),
    "z_loss": ("router z-loss", "mean (log Σ exp logits)²", _plain(4)),
    "margin": ("margin", "last chosen − first not chosen", _plain(3)),
}


@st.fragment(run_every=5)
def section(run_id: str, layer: int, step: int | None = None) -> None:
    """The table, of a step of the past or the newest; nothing where the step's counts are gone."""
    told = latest(f"runs/{run_id}/experts/table", step=step) or {}
    row: Row = next((row for row in told.get("by_layer") or () if row.get("layer") == layer), {})
    figures = row.get("figures")
    if not figures:
        return
    faint = "r = load ÷ mean load; beside each what chance makes of even routing"
    theme.section("Figures", faint, f"layer {layer}, step {words.number(told.get('step'))}")
    st.html(f'<div class="tt-scroll">{table(figures)}</div>')
    facts = told.get("facts_step")
    late = f" Router facts are of step {words.number(facts)}." if facts not in (None, told.get("step")) else ""
    st.html(f'<p class="tt-faint tt-small">Formulas and sources: docs/experts.md.{late}</p>')


def table(figures: Mapping[str, Row]) -> str:
    """The rows of what is known, as markup."""
    rows = []
    for name, (label, formula, text) in FIGURES.items():
        values = figures.get(name) or {}
        if all(values.get(part) is None for part in ("step", "window")):
            continue
        cells = [
            "–" if values.get(part) is None else text(float(values[part])) for part in ("step", "window", "chance")
        ]
        shown = [f"<b>{theme.escape(cell)}</b>" if at < 2 else theme.escape(cell) for at, cell in enumerate(cells)]
        rows.append([theme.escape(label), *shown, theme.escape(formula + _remark(name, values))])
    heads = [
        ("", "tt-quiet"),
        ("this step", "tt-num"),
        ("64 steps", "tt-num"),
        ("by chance", "tt-num"),
        ("", "tt-quiet"),
    ]
    return markup.table(heads, rows, "tt-compact")


def _remark(name: str, values: Row) -> str:
    mean = values.get("window")
    if name != "entropy" or mean is None:
        return ""
    return f"; {'below' if float(mean) < ENTROPY_LINE else 'above'} the line of {ENTROPY_LINE}"
