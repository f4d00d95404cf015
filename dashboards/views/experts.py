"""The Experts page: every layer and expert of one run live, one chosen layer over time, and what its bias does.

Why it exists: a model loses experts quietly. The map shows all of them at once; the rest of the page explains the one
layer that the address names (`?run=…&layer=23&expert=7`, `&step=` for a moment in the past: then everything but what is
marked "now" is of that step). Pixels, sentence and tiles come with the frame; a rerun only changes what is shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import streamlit as st

from dashboards import charts, data, theme, words
from dashboards.views import experts_controller

Row = Mapping[str, Any]

MODES: Mapping[str, charts.Mode] = {"Load": "load", "Bias": "bias", "Change": "change"}
TABLE = "Table"
# A model of at most this many layers has room for the table under its map.
FEW_LAYERS = 12
EXPLAINED = {
    "Load": "log₂(share × E), fixed scale",
    "Bias": "balancing bias b",
    "Change": "last change of b",
    TABLE: "the same frame in numbers",
}
# The raster's windows in steps; None is the whole run.
WINDOWS: Mapping[str, int | None] = {"128": 128, "512": 512, "2,048": 2048, "run": None}
LIVE_STATUS = ("active", "queued", "paused", "needs_human")
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
    step = replayed(summary)
    _head(runs, run, summary, step)
    if summary is None:
        theme.empty(
            f"{run.get('name')} has written no expert records yet. They begin with its first optimizer step.",
            "Open the job",
            "job",
            {"run": run_id},
        )
        return
    charts.told("tiles", run_id, tiles_of(summary), key=f"tiles_{run_id}", step=step, live=is_live(run))
    layer = number_of("layer", int(summary.get("layers") or 1))
    if layer is None:
        layer = worst_layer(summary)
    expert = number_of("expert", int(summary.get("experts") or 1))
    left, right = st.columns([52, 48], gap="medium")
    with left:
        _map(run, summary, layer, expert, step)
    with right:
        _layer(run, summary, layer, expert, step)
        experts_controller.section(run_id, layer, replay=step is not None)


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


def replayed(summary: Row | None) -> int | None:
    """The step that the address names, at most the newest one; None while the page follows the run."""
    newest = int((summary or {}).get("step") or 0)
    if "step" not in st.query_params or newest < 1:
        return None
    named = number_of("step", newest + 1)
    return newest if named is None else named


def read_summary(run_id: str, *, quiet: bool = False) -> Row | None:
    """The summary of the run's newest record; None when there is none yet or it cannot be read now."""
    path = f"runs/{run_id}/experts/summary"
    try:
        found = data.get(path)
    except data.ApiError as error:
        if error.status == 404:
            return None
        found = theme.load(path, quiet=quiet)
    return found if isinstance(found, dict) and found.get("layers") else None


def number_of(name: str, count: int) -> int | None:
    """The whole number that the address gives for `name`, when it is one of `count`; None otherwise."""
    text = str(st.query_params.get(name) or "")
    return int(text) if text.isascii() and text.isdigit() and int(text) < count else None


def worst_layer(summary: Row) -> int:
    """The layer that the summary calls the worst; the first when it does not say."""
    worst = summary.get("worst_layer")
    found = worst.get("layer") if isinstance(worst, dict) else worst
    return int(found) if isinstance(found, int | float) else 0


def sentence_of(summary: Row) -> tuple[str, str, str]:
    """(lead, rest, level) of the summary's sentence, whether it comes as text or in its parts."""
    told = summary.get("sentence")
    if isinstance(told, dict):
        return str(told.get("lead") or ""), str(told.get("rest") or ""), str(told.get("level") or "ok")
    lead, stop, rest = str(told or "").partition(". ")
    return lead + stop.strip(), rest, str(summary.get("level") or "ok")


def _head(runs: Sequence[Row], run: Row, summary: Row | None, step: int | None) -> None:
    names = {str(row["id"]): str(row.get("name") or row["id"]) for row in (*runs, run)}
    run_id = str(run["id"])
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
            charts.badge(f"/frames/experts/{run_id}", key=f"age_{run_id}", live=is_live(run))
        if (summary or run).get("simulated"):
            theme.badges(None, simulated=True)


def is_live(run: Row) -> bool:
    """True while more steps may come."""
    return run.get("status") in LIVE_STATUS


def _name_run() -> None:
    st.query_params.clear()
    st.query_params["run"] = st.session_state["experts_run"]


def tiles_of(summary: Row) -> list[dict[str, Any]]:
    """The summary's tiles, at most seven."""
    return [dict(tile) for tile in summary.get("tiles") or ()][:7]


def _map(run: Row, summary: Row, layer: int, expert: int | None, step: int | None) -> None:
    """The map of all layers, live or as it was at one step; or the same as a table."""
    run_id, newest = str(run["id"]), int(summary.get("step") or 0)
    mode = str(st.session_state.get("experts_mode") or "Load")
    with theme.section_row("Load by layer and expert", EXPLAINED[mode], key="experts_map"):
        st.segmented_control(
            "Shown", [*MODES, TABLE], key="experts_mode", default="Load", required=True, label_visibility="collapsed"
        )
        st.session_state["experts_when"] = "Live" if step is None else "Replay"
        st.segmented_control(
            "When",
            ["Live", "Replay"],
            key="experts_when",
            required=True,
            label_visibility="collapsed",
            on_change=_name_when,
            args=(newest,),
        )
    if step is not None:
        _slider(step, newest)
    count = int(summary.get("layers") or 8)
    if mode != TABLE:
        charts.experts(
            run_id,
            key=f"map_{run_id}",
            mode=MODES[mode],
            layer=layer,
            expert=expert,
            step=step,
            live=is_live(run),
            layers=count,
            label=sentence_of(summary)[0],
            history_label="64 steps",
            picked=_picked,
        )
    if mode == TABLE or count <= FEW_LAYERS:
        charts.layers(run_id, key=f"layers_{run_id}", layer=layer, step=step, live=is_live(run), picked=_picked)


def _name_when(step: int) -> None:
    if st.session_state["experts_when"] == "Replay":
        st.query_params["step"] = str(step)
    else:
        st.query_params.pop("step", None)


def _slider(step: int, newest: int) -> None:
    """The slider of a replay, bound to the address; it ends at the newest step."""
    st.session_state["experts_step"] = step
    st.slider(
        "Step", 0, newest, key="experts_step", label_visibility="collapsed", on_change=_name_step, format="step %d"
    )


def _name_step() -> None:
    st.query_params["step"] = str(st.session_state["experts_step"])


def _picked(choice: Mapping[str, Any]) -> None:
    """A click or Enter on a cell: the address names it."""
    for name in ("layer", "expert"):
        if choice.get(name) is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = str(int(choice[name]))


def _layer(run: Row, summary: Row, layer: int, expert: int | None, step: int | None) -> None:
    """One layer over time, as far as the step that is shown."""
    run_id, layers = str(run["id"]), int(summary.get("layers") or 1)
    newest = int(summary.get("step") or 0) if step is None else step
    window = str(st.session_state.get("experts_window") or "512")
    steps = WINDOWS.get(window) or max(newest, 1)
    st.session_state["experts_layer"] = layer
    with theme.section_row(f"Layer {layer}", column_words(min(steps, max(newest, 1))), key="experts_layer_head"):
        st.selectbox(
            "Layer", range(layers), key="experts_layer", format_func="layer {}".format, label_visibility="collapsed",
            on_change=_name_layer, width=118,
        )  # fmt: skip
        st.segmented_control(
            "Steps", list(WINDOWS), key="experts_window", default="512", required=True, label_visibility="collapsed",
            help="how many steps back",
        )  # fmt: skip
    first = None if WINDOWS.get(window) is None else max(newest - steps, 0)
    charts.raster(
        run_id,
        layer,
        key=f"raster_{run_id}",
        expert=expert,
        window=(first, step),
        columns=charts.RASTER_COLUMNS,
        live=is_live(run),
        picked=_picked,
    )


def _name_layer() -> None:
    st.query_params["layer"] = str(st.session_state["experts_layer"])
    st.query_params.pop("expert", None)


def column_words(steps: int) -> str:
    """How many steps one column stands for."""
    each = max(1.0, steps / charts.RASTER_COLUMNS)
    return f"one column = {words.plural(round(each), 'step')}"
