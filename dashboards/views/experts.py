"""The Experts page: every layer and expert of one run live, one time cursor over all of it, and panels that explain.

Why it exists: a model loses experts quietly. The map shows all of them at once; the panel beside it explains what the
address chose (`?run=…&panel=layer&layer=23&expert=7`, `&step=` for a moment in the past: then everything but what is
marked "now" is of that step). Pixels, sentence and tiles come with frames; a rerun only changes what is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast
from urllib.parse import quote

import streamlit as st

from dashboards import charts, data, theme
from dashboards.views import experts_address as address
from dashboards.views import experts_compare, experts_panels, experts_shown
from dashboards.views.experts_shown import Shown, is_live, read_summary, sentence_of

Row = Mapping[str, Any]

# A model of at most this many layers has room for the table under its map.
FEW_LAYERS = 12
EXPLAINED = {
    "load": "log₂(share × E), fixed scale",
    "counts": "tokens of each expert",
    "bias": "balancing bias b",
    "change": "last change of b",
    "table": "the same frame in numbers",
}
RUNS = 50


def page() -> None:
    """Draw the run that the address names, else the newest that trains."""
    try:
        runs = data.get("runs", limit=RUNS).get("runs") or []
    except data.ApiError as error:
        theme.problem(error)
        return
    if not runs:
        theme.empty("No run has trained yet, so there are no experts to look at.", "Submit the first run", "submit")
        return
    run = chosen_run(runs, st.query_params.get("run"))
    if run is None:
        return
    run_id = str(run["id"])
    summary = read_summary(run_id)
    _head(runs, run, summary)
    if summary is None:
        theme.empty(
            f"{run.get('name')} has written no expert records yet. They begin with its first optimizer step.",
            "Open the job",
            "job",
            {"run": run_id},
        )
        return
    shown = experts_shown.of(run, summary)
    charts.told("tiles", run_id, tiles_of(summary), key=f"tiles_{run_id}", step=shown.step, live=shown.live)
    charts.timeline(shown.stretch, key=f"timeline_{run_id}", newest=shown.newest, picked=address.picked)
    _body(runs, shown)


def _body(runs: Sequence[Row], shown: Shown) -> None:
    """The map at the left, the chosen panel at the right; two runs have a map each."""
    panel = address.choice("panel", address.PANELS, "layer")
    left, right = st.columns([52, 48], gap="medium")
    with left:
        if panel == "compare":
            experts_compare.maps(runs, shown)
        else:
            _map(shown)
    with right:
        _panel_row(shown)
        if panel == "compare":
            experts_compare.figures(runs, shown)
        else:
            experts_panels.PANELS[panel](shown)


def _panel_row(shown: Shown) -> None:
    """Which panel stands here, and what can be saved of the page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="tt_section_experts_panels"):
        address.segmented("Panel", "panel", address.PANELS, "layer")
        with st.container(key="experts_saving", width="stretch"):
            charts.saving(
                saved_stretch(shown),
                shown.name,
                theme.file_name(shown.name),
                key=f"saving_{shown.run_id}",
                newest=shown.newest,
                query=records_of(shown),
            )


def records_of(shown: Shown) -> dict[str, Any]:
    """Which records are saved: one layer's loads beside a panel of one layer, else the statistics of all layers."""
    panel = address.choice("panel", address.PANELS, "layer")
    if panel in ("layer", "expert", "controller"):
        return {"what": "loads", "layers": shown.layer}
    return {"what": "loads" if panel == "ranks" else "layers"}


def saved_stretch(shown: Shown) -> charts.Stretch:
    """Of which steps: those that the panel shows. Ranks are of one step, the courses of two runs of all."""
    panel = address.choice("panel", address.PANELS, "layer")
    of = {"ranks": 1, "compare": None, "controller": experts_panels.PHASE_STEPS}
    return replace(shown.stretch, steps=of.get(panel, shown.steps))


def chosen_run(runs: Sequence[Row], named: str | None) -> Row | None:
    """The run of this id or name, however old it is; without a name the newest that trains, else the newest.

    None after a word in its place: there is no such run, or it cannot be read now.
    """
    if not named:
        return next((run for run in runs if run.get("status") == "active"), runs[0])
    for run in runs:
        if named in (str(run.get("id")), str(run.get("name"))):
            return run
    try:
        found: Row = data.get(f"runs/{quote(named, safe='')}")
    except data.ApiError as error:
        if error.status == 404:
            theme.empty(f"There is no run {named}.", "All jobs", "jobs")
        else:
            theme.problem(error)
        return None
    return found


def _head(runs: Sequence[Row], run: Row, summary: Row | None) -> None:
    names = {str(row["id"]): str(row.get("name") or row["id"]) for row in (*runs, run)}
    run_id, step = str(run["id"]), experts_shown.replayed(summary)
    st.session_state["experts_run"] = run_id
    with theme.head_row():
        st.selectbox(
            "Run", list(names), key="experts_run", format_func=names.__getitem__, label_visibility="collapsed",
            on_change=_name_run, width=190,
        )  # fmt: skip
        with st.container(key="experts_sentence", width="stretch"):
            if summary is not None:
                first = dict(zip(("lead", "rest", "level"), sentence_of(summary), strict=True))
                charts.told("sentence", run_id, first, key=f"said_{run_id}", step=step, live=is_live(run))
        with st.container(key="experts_age", width=150):
            charts.badge(f"/frames/experts/{quote(run_id, safe='')}", key=f"age_{run_id}", live=is_live(run))
        if (summary or run).get("simulated"):
            theme.badges(None, simulated=True)


def _name_run() -> None:
    address.go_to_run(st.session_state["experts_run"])


def tiles_of(summary: Row) -> list[dict[str, Any]]:
    """The summary's tiles, at most seven."""
    return [dict(tile) for tile in summary.get("tiles") or ()][:7]


def _map(shown: Shown) -> None:
    """The map of all layers, live or as it was at one step; or the same as a table."""
    mode = address.choice("mode", address.MODES, "load")
    with theme.section_row("Layers and experts", EXPLAINED[mode], key="experts_map"):
        address.segmented("Shown", "mode", address.MODES, "load")
    run_id, few = shown.run_id, shown.layers <= FEW_LAYERS
    if mode != "table":
        charts.experts(
            run_id,
            key=f"map_{run_id}",
            mode=cast("charts.Mode", mode),
            layer=shown.layer,
            expert=shown.expert,
            step=shown.step,
            live=shown.live,
            layers=shown.layers,
            label=sentence_of(shown.summary)[0],
            history_label="64 steps",
            picked=address.picked,
        )
    if mode == "table" or few:
        charts.layers(
            run_id, key=f"layers_{run_id}", layer=shown.layer, step=shown.step, live=shown.live, picked=address.picked
        )
