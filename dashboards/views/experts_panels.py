"""The panels beside the map: a layer, an expert, the controller, all layers over time, expert-parallel ranks.

Why it exists: the map says that something leans; each panel answers one question about it. All share the page's time
cursor. Two runs side by side are experts_compare's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from dashboards import charts, theme, words
from dashboards.views import experts_address as address
from dashboards.views import experts_controller, experts_figures
from dashboards.views.experts_shown import Shown
from dashboards.views.kept import latest

# The phase plot needs single steps: a mean over several hides a swing.
PHASE_STEPS = 256


def layer(shown: Shown) -> None:
    """One layer over time: loads, distance from the floor, biases, skips; and what its bias does."""
    _head(shown, f"Layer {shown.layer}", column_words(shown), key="layer")
    charts.of_layer(
        "raster",
        shown.stretch,
        shown.layer,
        key=f"raster_{shown.run_id}",
        expert=shown.expert,
        picked=address.picked,
    )
    experts_controller.section(shown.run_id, shown.layer, shown.step)
    experts_figures.section(shown.run_id, shown.layer, shown.step)


def expert(shown: Shown) -> None:
    """One expert among the others of its layer."""
    named = f"Expert {shown.expert}" if shown.expert is not None else "The farthest expert"
    faint = "click a cell of the map for another" if shown.expert is None else column_words(shown)
    _head(shown, f"{named} of layer {shown.layer}", faint, key="expert")
    charts.of_layer(
        "expert",
        shown.stretch,
        shown.layer,
        key=f"expert_{shown.run_id}",
        expert=shown.expert,
        picked=address.picked,
    )


def controller(shown: Shown) -> None:
    """What the balancing bias does: the layer's path in error and bias, and how all layers swing."""
    of = f"layer {shown.layer}" if shown.expert is None else f"expert {shown.expert} of layer {shown.layer}"
    _head(shown, f"Phase of {of}", "load error against bias, step by step", key="phase", windows=False)
    stretch = charts.Stretch(shown.run_id, PHASE_STEPS, shown.step, shown.live)
    charts.of_layer(
        "phase",
        stretch,
        shown.layer,
        key=f"phase_{shown.run_id}",
        expert=shown.expert,
        columns=2 * PHASE_STEPS,
        picked=address.picked,
    )
    theme.section("Oscillation map", "how the loads of each layer repeat after so many steps; 64 steps")
    charts.swings(
        shown.run_id,
        shown.layer,
        key=f"swings_{shown.run_id}",
        step=shown.step,
        live=shown.live,
        picked=address.picked,
    )
    experts_controller.section(shown.run_id, shown.layer, shown.step, gains=True)


def layers(shown: Shown) -> None:
    """Every layer over time."""
    _head(shown, "All layers over time", column_words(shown), key="layers")
    charts.history(shown.stretch, shown.layer, key=f"history_{shown.run_id}", picked=address.picked)


def ranks(shown: Shown) -> None:
    """Expert parallelism: which rank carries how much."""
    _head(shown, "Expert-parallel ranks", "load of each rank ÷ mean of its layer", key="ranks", windows=False)
    charts.ranks(
        shown.run_id,
        shown.layer,
        key=f"ranks_{shown.run_id}",
        step=shown.step,
        live=shown.live,
        picked=address.picked,
    )
    _told_of_ranks(shown.run_id, shown.step)


@st.fragment(run_every=5)
def _told_of_ranks(run_id: str, step: int | None = None) -> None:
    """Whether the fullest rank is hot or sick, and what uneven ranks cost, up to the step that is shown."""
    summary = latest(f"runs/{run_id}/experts/summary", step=step) or {}
    parallel = summary.get("parallel")
    if not parallel:
        return
    when = "now" if step is None else f"step {words.number(summary.get('step'))}"
    theme.section("Hot or sick?", "load joined with step time and the health of the ranks' GPUs", when)
    st.html(f'<p class="tt-lead tt-small">{theme.escape(str(parallel.get("sentence") or ""))}</p>')
    theme.tiles(rank_tiles(parallel))


def rank_tiles(parallel: Mapping[str, Any]) -> list[dict[str, str]]:
    """The fullest rank, and the imbalance tax as a share of the step and in seconds."""
    skew, tax = float(parallel.get("skew") or 0.0), parallel.get("tax")
    layer, sick = parallel.get("layer"), parallel.get("sick") or {}
    cost, context = "–", "step time is not known or never moved with the load"
    if tax:
        cost = f"{100 * float(tax['share']):.1f} %"
        context = f"{words.figure(tax['seconds'], 2)} s a step, R² {float(tax['r2']):.2f}"
    return [
        {
            "label": "fullest rank",
            "value": f"{skew:.2f}×",
            "unit": f"mean · rank {parallel.get('rank')}",
            "context": f"in L{layer}, of {parallel.get('ranks')} ranks, 64 steps",
            "level": str(parallel.get("level") or "ok"),
        },
        {
            "label": "imbalance tax",
            "value": cost,
            "unit": "of the step" if tax else "",
            "context": context,
            "level": "ok",
        },
        {
            "label": "sick ranks",
            "value": str(len(sick)),
            "unit": "",
            "context": ", ".join(f"rank {rank}" for rank in sick) or "no firing fault on their GPUs",
            "level": "warn" if sick else "ok",
        },
    ]


PANELS: Mapping[str, Callable[[Shown], None]] = {
    "layer": layer,
    "expert": expert,
    "controller": controller,
    "layers": layers,
    "ranks": ranks,
}


def _head(shown: Shown, heading: str, faint: str, *, key: str, windows: bool = True) -> None:
    """A panel's head: its subject, the choice of the layer, and of the stretch where it has a time axis."""
    st.session_state["experts_layer"] = shown.layer
    with theme.section_row(heading, faint, key=f"experts_{key}"):
        st.selectbox(
            "Layer", range(shown.layers), key="experts_layer", format_func="layer {}".format, width=118,
            label_visibility="collapsed", on_change=_name_layer,
        )  # fmt: skip
        if windows:
            address.segmented("Steps", "window", address.WINDOWS, address.WINDOW)


def _name_layer() -> None:
    address.put("layer", st.session_state["experts_layer"])
    address.put("expert", None)


def column_words(shown: Shown) -> str:
    """How many steps one column stands for."""
    known = max(shown.newest, 1)
    each = max(1.0, min(shown.steps or known, known) / charts.RASTER_COLUMNS)
    return f"one column = {words.plural(round(each), 'step')}"
