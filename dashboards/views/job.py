"""The Job page: one run from its first attempt to its end, why it restarted, what is saved, what it wrote.

Why it exists: a person called at night reads it from the top and knows after one screen whether the run is safe. Text
follows the API every five seconds and the chart every ten, each in its own fragment; nothing here holds state that the
address does not name (`?run=…&restart=2&show=Log`), and every act passes through job_actions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, figures, theme, words
from dashboards.views import advice, incident_cards, job_actions, job_cards, job_logs
from dashboards.views.job_tiles import tiles
from dashboards.views.kept import latest, waiting

Row = Mapping[str, Any]

SHOWN_CHECKPOINTS = 7
CHART_HEIGHT = 360
POINTS = 600


def page() -> None:
    """Draw the run that the address names."""
    run_id = st.query_params.get("run")
    theme.style("jobs.css")
    theme.belongs_to("jobs")
    if not run_id:
        theme.empty("No run is named in the address.", "All jobs", "jobs")
        return
    try:
        run = data.get(f"runs/{run_id}")
    except data.ApiError:
        waiting(f"runs/{run_id}")
        return
    st.session_state["job_status"] = _state_key(run)
    if told := st.session_state.pop("job_told", None):
        st.toast(told)
    _head(run)
    _live_head(run_id)
    _proposal(run_id)
    _chart(run_id)
    left, right = st.columns([60, 40], gap="medium")
    with left:
        _why(run_id)
        _cost(run_id)
    with right:
        _checkpoints(run_id)
    job_logs.section(run_id)
    job_actions.draw_dialog(run)


def _state_key(run: Row) -> tuple[str, ...]:
    attempts = run.get("attempts") or ()
    return (str(run.get("status")), str(run.get("desired")), str(len(attempts)))


def _head(run: Row) -> None:
    """One row: where this is, its state, its facts; the acts; the age of the data."""
    reasons = job_actions.available(run)
    may = data.may_act()
    run_id = str(run["id"])
    with theme.head_row():
        theme.title("Jobs", "jobs", str(run["name"]), job_cards.status_words(run), facts(run))
        _act("Restart from…", "restart", run_id, reasons, may)
        if str(run.get("desired")) == "pause":
            why, given = reasons["resume"] or may, ("resume", run_id, theme.once(f"resume_{run_id}"))
            st.button("Resume", on_click=job_actions.act, args=given, disabled=bool(why), help=why or None)
        else:
            _act("Pause", "pause", run_id, reasons, may)
        st.button("Clone", on_click=_clone, args=(run_id,), key="job_clone", disabled=bool(may), help=may or None)
        _act("Stop", "stop", run_id, reasons, may)
        with st.container(width="content"):
            _badges(run_id)


@st.fragment(run_every=5)
def _badges(run_id: str) -> None:
    run = latest(f"runs/{run_id}") or {}
    age = data.age(run) if run.get("status") == "active" else None
    without = "run has ended" if str(run.get("status")) in job_actions.FINAL else "no data yet"
    theme.badges(age, simulated=bool(run.get("simulated")), without=without)


def _act(label: str, verb: str, run_id: str, reasons: Mapping[str, str], may: str) -> None:
    why = reasons[verb] or may
    open_it = job_actions.open_dialog
    st.button(label, on_click=open_it, args=(verb, run_id), key=f"job_{verb}", disabled=bool(why), help=why or None)


def _clone(run_id: str) -> None:
    theme.go("submit", {"clone": run_id})


def facts(run: Row) -> str:
    """attempt 2 · pretrain · 2 nodes × 8 GPU · admin · local"""
    nodes, gpus = len(run.get("nodes") or ()), int(run.get("gpus") or 0)
    resources = ((run.get("spec") or {}).get("spec") or {}).get("resources") or {}
    per_node = gpus // nodes if nodes and gpus else resources.get("gpusPerNode")
    size = (
        f"{words.plural(nodes, 'node')} × {per_node} GPU" if nodes else f"{resources.get('nodes', '–')} nodes asked for"
    )
    attempt = f"attempt {run['attempt']}" if run.get("attempt") else "no attempt yet"
    parts = (attempt, run.get("stage"), size, run.get("created_by"), run.get("backend"))
    return " · ".join(str(part) for part in parts if part)


@st.fragment(run_every=5)
def _live_head(run_id: str) -> None:
    """Stages and tiles; when the run's state changes, the whole page is drawn anew with other acts."""
    run = theme.load(f"runs/{run_id}")
    if run is None:
        return
    if _state_key(run) != st.session_state.get("job_status"):
        st.session_state["job_status"] = _state_key(run)
        st.rerun()
    if reason := waits(run):
        st.html(f'<p class="tt-lead tt-narrow">{theme.escape(reason)}</p>')
    st.html(job_cards.stage_bar(run))
    steps = latest(f"runs/{run_id}/steps", points=POINTS) or {}
    theme.tiles(tiles(run, steps, data.now()), widest_first=True)


def waits(run: Row) -> str:
    """Why a run that does not train does not; empty for one that does, or has done."""
    return str(run.get("reason") or "") if run.get("status") not in ("active", "succeeded") else ""


@st.fragment(run_every=5)
def _proposal(run_id: str) -> None:
    """What the system would do and only a person may: its sentence, and the restart dialog with its fields filled."""
    run, asked = latest(f"runs/{run_id}"), (latest(f"runs/{run_id}/why") or {}).get("proposal")
    if run is None or not asked:
        return
    decision = asked.get("decision") or {}
    without = [str(name) for name in decision.get("excluded_nodes") or ()]
    barred = job_actions.available(run)["restart"] or data.may_act()
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="tt_section_proposal"):
        st.html(job_cards.proposal_row(asked, data.now()), width="stretch")
        st.button(
            f"Restart without {theme.plain(', '.join(without))}…" if without else "Restart…",
            type="primary",
            key="job_proposal",
            disabled=bool(barred),
            help=barred or None,
            on_click=_open_restart,
            args=(run_id, job_actions.clean_start(run.get("checkpoints") or (), decision), without),
        )


@st.fragment(run_every=10)
def _chart(run_id: str) -> None:
    """Attempts, loss and throughput on one wall-clock axis."""
    run, steps = latest(f"runs/{run_id}"), latest(f"runs/{run_id}/steps", points=POINTS)
    why = latest(f"runs/{run_id}/why")
    if run is None or steps is None or why is None:
        return
    with theme.section_row(
        "Attempts, loss, throughput", "one wall-clock axis, UTC; ctrl + wheel to zoom", key="job_chart"
    ):
        st.html(job_cards.LEGEND, width="content")
        choices = {"hour": "1 h", "attempt": "this attempt", "all": "all"}
        choice = st.segmented_control(
            "Range",
            list(choices),
            format_func=choices.__getitem__,
            default="all",
            key="job_range",
            required=True,
            label_visibility="collapsed",
        )
    attempts = run.get("attempts") or []
    if not attempts:
        theme.empty("No attempt yet: the chart begins with the first one.")
        return
    end = max((float(row["ended_s"]) for row in attempts if row.get("ended_s")), default=data.now())
    now_s = end if str(run.get("status")) in job_actions.FINAL else data.now()
    trace = figures.Trace(
        attempts,
        steps.get("attempts") or [],
        run.get("checkpoints") or [],
        fault_marks(why),
        now_s,
        int(run.get("gpus") or 0),
    )
    option = figures.timeline_option(trace, theme.palette(), figures.time_window(attempts, now_s, choice or "all"))
    st.echarts_chart(option, height=CHART_HEIGHT, key="job_timeline", alt=chart_words(run, why))


def fault_marks(why: Row) -> list[dict[str, Any]]:
    """A mark for each restart and for what a person was asked about: at its fault, or where the attempt ended.

    What a person did is no fault: its mark is quiet.
    """
    marks = []
    for told in (*(why.get("restarts") or ()), *(why.get("proposed") or ())):
        fault = told.get("fault") or {}
        decision = told.get("decision") or {}
        label = str(decision.get("failure_class") or decision.get("action") or "restart")
        level = "fault"
        if fault:
            where = incident_cards.place(
                {"node": fault.get("node"), "gpu": gpu_of(fault), "entity": fault.get("entity")}
            )
            label = f"{plain_rule(str(fault.get('rule') or label))}, {where}"
        elif not decision or decision.get("rule") == "person" or decision.get("failure_class") == "person":
            level, label = "quiet", f"restarted by {asked_by(decision)}" if decision else "paused and resumed"
        marks.append({"at_s": float(told["at_s"]), "label": label, "level": level})
    return marks


def asked_by(decision: Row) -> str:
    """Who asked for a restart, as its evidence names them."""
    people = [str(row.get("id")) for row in decision.get("evidence") or () if row.get("kind") == "person"]
    return people[0] if people else "a person"


def plain_rule(name: str) -> str:
    """A rule's name as words: hbm-uncorrectable is hbm uncorrectable."""
    return name.replace("_", " ").replace("-", " ")


def gpu_of(fault: Row) -> int | None:
    """The GPU's number of a fault's entity (gpu3), or None."""
    entity = str(fault.get("entity") or "")
    return int(entity[3:]) if entity.startswith("gpu") and entity[3:].isdigit() else None


def chart_words(run: Row, why: Row) -> str:
    """The chart's finding for a screen reader."""
    attempts, restarts = len(run.get("attempts") or ()), len(why.get("restarts") or ())
    return (
        f"{run.get('name')}: {words.plural(attempts, 'attempt')}, {words.plural(restarts, 'restart')}, "
        f"loss {words.figure(run.get('loss'), 4)} at step {words.number(run.get('step'))}"
    )


@st.fragment(run_every=5)
def _why(run_id: str) -> None:
    """The chosen restart told in one sentence, with its durations and its evidence."""
    why = latest(f"runs/{run_id}/why")
    if why is None:
        return
    restarts = why.get("restarts") or []
    with theme.section_row("Why did it restart?", "rules, not a guess: every figure opens its evidence", key="job_why"):
        chosen = _choose_restart(restarts)
    if chosen is None:
        st.html(f'<p class="tt-lead tt-muted">{never_restarted(why)}</p>')
    else:
        st.html(job_cards.why_card(chosen, run_id))


def never_restarted(why: Row) -> str:
    """Why there is no restart to tell of, as markup."""
    if why.get("proposal"):
        return "It did not: the restart above is proposed, and its policy leaves it to a person."
    if waits := why.get("waits"):
        return f"It did not. {theme.escape(str(waits))}"
    return "It did not. The first attempt is the only one."


def _choose_restart(restarts: Sequence[Row]) -> Row | None:
    """The restart that the address names, else the newest; a selector when there are several."""
    if not restarts:
        return None
    numbers = [str(row["no"]) for row in restarts]
    named = st.query_params.get("restart")
    current = named if named in numbers else numbers[-1]
    if len(numbers) > 1:
        labels = {str(row["no"]): f"{row['no']} · {words.short_clock(row.get('at_s'))}" for row in restarts}
        st.segmented_control(
            "Restart",
            numbers[-6:],
            default=current if current in numbers[-6:] else None,
            format_func=labels.__getitem__,
            key="job_which",
            label_visibility="collapsed",
            on_change=_name_restart,
        )
    return restarts[numbers.index(current)]


def _name_restart() -> None:
    if st.session_state.get("job_which"):
        st.query_params["restart"] = st.session_state["job_which"]


@st.fragment(run_every=10)
def _cost(run_id: str) -> None:
    """How often a stop is to be expected, what it costs, and how often a checkpoint would lose least."""
    told = (latest(f"runs/{run_id}") or {}).get("advice")
    theme.section("Cost of a failure", advice.faint(told))
    st.html(advice.block(told))


@st.fragment(run_every=5)
def _checkpoints(run_id: str) -> None:
    """The newest checkpoints, and a button a row to restart from one that may be used."""
    run = latest(f"runs/{run_id}")
    if run is None:
        return
    rows = job_cards.noted(run.get("checkpoints") or (), run.get("attempts") or ())
    everything = bool(st.session_state.get("job_all_checkpoints"))
    shown = rows if everything else job_cards.worth_showing(rows, SHOWN_CHECKPOINTS)
    with theme.section_row("Checkpoints", "a tainted one is kept and never used", key="job_checkpoints"):
        if len(rows) > SHOWN_CHECKPOINTS:
            st.toggle(f"all {len(rows)}", key="job_all_checkpoints")
    if not rows:
        theme.empty("None yet: the first one is written after its interval of steps.")
        return
    usable = {str(row["id"]) for row in job_actions.usable(rows)}
    barred = job_actions.available(run)["restart"] or data.may_act()
    with st.container(key="job_checkpoint_rows", horizontal=True, wrap=False, gap=None):
        st.html(job_cards.checkpoint_table(shown, data.now()))
        with st.container(key="job_checkpoint_acts", width="content", gap=None):
            for row in shown:
                _restart_from(
                    run_id, str(row["id"]), barred or ("" if str(row["id"]) in usable else "not offered: not safe")
                )


def _restart_from(run_id: str, checkpoint_id: str, why_not: str) -> None:
    st.button(
        "restart from",
        type="tertiary",
        key=f"from_{checkpoint_id}",
        disabled=bool(why_not),
        help=why_not or None,
        on_click=_open_restart,
        args=(run_id, checkpoint_id),
    )


def _open_restart(run_id: str, checkpoint_id: str | None, without: Sequence[str] = ()) -> None:
    job_actions.open_dialog("restart", run_id, checkpoint_id, without)
    st.rerun()
