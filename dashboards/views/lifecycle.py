"""The Lifecycle page: what it does or waits for, its stages as a track, the chosen stage and its gate, its lineage.

Why it exists: whoever is asked for a word on a checkpoint needs on one screen what was required of it, what was found,
what it was made from, and what the word will do. The stage and the part shown below are in the address
(`?lifecycle=…&stage=sft&show=Plan`); text follows the API every five seconds, graphs every ten.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import data, theme, words
from dashboards.views import lifecycle_actions, lifecycle_cards, lifecycle_lineage, lifecycle_track
from dashboards.views import lifecycle_words as lw
from dashboards.views.kept import latest, waiting

Row = Mapping[str, Any]

STATE = "lifecycle_state"
LATEST = 7
SHOWS = ("Lineage", "What happened", "Plan", "Changed")
STAGE_BUTTONS = (("Approve…", "approve"), ("Refuse…", "refuse"), ("Try again…", "retry"))


def page() -> None:
    """Draw the lifecycle that the address names."""
    theme.style("jobs.css", "lifecycle.css")
    theme.belongs_to("lifecycles")
    named = st.query_params.get("lifecycle")
    if not named:
        theme.empty("No lifecycle is named in the address.", "All lifecycles", "lifecycles")
        return
    try:
        view = data.get(f"lifecycles/{named}")
    except data.ApiError:
        waiting(f"lifecycles/{named}")
        return
    named = str(view["id"])  # a name may mean another one tomorrow
    st.session_state[STATE] = state_key(view)
    if told := st.session_state.pop(lifecycle_actions.TOLD, None):
        st.toast(told)
    _head(view)
    _live_head(named)
    left, right = st.columns([60, 40], gap="medium")
    with left:
        _stage(named)
    with right:
        _cost(named)
        _aliases(named)
        _latest(named)
    _below(named)
    lifecycle_actions.draw_dialog(view)


def state_key(view: Row) -> tuple[str, ...]:
    """What the page's head and its dialogs depend on; a change draws the whole page anew."""
    stages = view.get("stages") or ()
    held = [f"{one['name']}:{one.get('state')}:{(one.get('candidate') or {}).get('hash')}" for one in stages]
    return (str(view.get("status")), str(view.get("desired")), *held)


def chosen_stage(view: Row) -> str:
    """The stage that the address names, else the one under way, else the last one."""
    names = [str(one["name"]) for one in view.get("stages") or ()]
    wanted = st.query_params.get("stage")
    if wanted in names:
        return str(wanted)
    return str(view.get("stage") or (names[-1] if names else ""))


def _head(view: Row) -> None:
    """One row: where this is, its state, its facts; the acts; the age of the data."""
    reasons = lifecycle_actions.available(view)
    pause = ("Resume", "resume") if str(view.get("desired")) == "pause" else ("Pause", "pause")
    with theme.head_row():
        status = lw.status_words(view)
        theme.title("Lifecycles", "lifecycles", str(view["name"]), status, lw.facts(view, data.now()))
        lifecycle_actions.buttons((pause, ("Clone…", "clone"), ("Cancel…", "cancel")), reasons, view)
        with st.container(width="content"):
            _badges(str(view["id"]))


@st.fragment(run_every=5)
def _badges(named: str) -> None:
    """The age of what the run under way last told, and SIMULATED where its nodes are."""
    view = latest(f"lifecycles/{named}") or {}
    run_id = working_run(view) or last_run(view)
    run = (latest(f"runs/{run_id}") if run_id else None) or {}
    live = run_id is not None and str(run.get("status")) == "active"
    over = str(view.get("status")) in lw.ENDED
    without = "it has ended" if over else "no run at work"
    theme.badges(data.age(run) if live else None, simulated=bool(run.get("simulated")), without=without)


def working_run(view: Row) -> str | None:
    """The run that is under way now, of the first stage at work."""
    for stage in view.get("stages") or ():
        if stage.get("state") in lw.AT_WORK and (stage.get("progress") or {}).get("run"):
            return str(stage["progress"]["run"])
    return None


def last_run(view: Row) -> str | None:
    """The newest run of all, or None before the first."""
    runs = [run for stage in view.get("stages") or () for run in stage.get("runs") or ()]
    return str(max(runs, key=lambda run: float(run.get("created_s") or 0.0))["id"]) if runs else None


@st.fragment(run_every=5)
def _live_head(named: str) -> None:
    """Sentence, tiles and track; when a state or a candidate changes, the whole page is drawn anew."""
    view = theme.load(f"lifecycles/{named}")
    if view is None:
        return
    if state_key(view) != st.session_state.get(STATE):
        st.session_state[STATE] = state_key(view)
        st.rerun()
    st.html(lw.lead(view) + lifecycle_cards.parent_line(view))
    theme.tiles(lifecycle_cards.tiles(view, data.now()), widest_first=True)
    with theme.section_row("Stages", "each begins from what the gate before it let pass", key="lifecycle_track"):
        st.html(lifecycle_track.LEGEND, width="content")
    st.html(lifecycle_track.track(view, chosen_stage(view), data.now()))


@st.fragment(run_every=5)
def _stage(named: str) -> None:
    """The chosen stage: its gate, what a person may do, its facts and its runs."""
    view = latest(f"lifecycles/{named}")
    if view is None:
        return
    names = [str(one["name"]) for one in view.get("stages") or ()]
    name = chosen_stage(view)
    stage = next((one for one in view.get("stages") or () if one["name"] == name), None)
    if stage is None:
        theme.empty("The plan has no stage.")
        return
    with theme.section_row(name, stage_facts(stage), key="lifecycle_stage"):
        st.session_state["lifecycle_stage_named"] = name
        st.selectbox(
            *("Stage", names),
            key="lifecycle_stage_named",
            label_visibility="collapsed",
            width=150,
            on_change=_name_stage,
        )
        reasons = lifecycle_actions.stage_reasons(view, stage)
        lifecycle_actions.buttons(STAGE_BUTTONS, reasons, view, stage)
    if stage.get("reason") and stage.get("state") != "held":  # of a held one the page's first sentence tells
        st.html(f'<p class="tt-lead tt-small">{words.tied(theme.escape(str(stage["reason"])))}</p>')
    if stage.get("unread") and view.get("desired") != "run":  # else the page's first sentence tells
        st.html(f'<p class="tt-lead tt-small">{words.tied(theme.escape(str(stage["unread"]["sentence"])))}</p>')
    st.html(lifecycle_cards.gate_block(stage))
    theme.section("Checkpoint", "what the stage starts from and what it made")
    st.html(lifecycle_cards.fact_block(view, stage))
    theme.section("Runs", "each has its own page", words.plural(len(stage.get("runs") or ()), "run"))
    if stage.get("runs"):
        st.html(lifecycle_cards.runs_table(stage))
    else:
        waits = " and ".join(str(one) for one in stage.get("after") or ()) or "the controller's next look"
        theme.empty(f"None yet: the stage begins after {waits}.")


def stage_facts(stage: Row) -> str:
    """train · training · 2 h 3 m · round 2"""
    round_ = int(stage.get("round") or 1)
    parts = [
        stage.get("role"),
        lw.stage_words(stage)[2],
        lw.lasts(stage, data.now()),
        f"round {round_}" if round_ > 1 else "",
        "kept from the lifecycle it was cloned from" if stage.get("inherited") else "",
    ]
    return " · ".join(str(part) for part in parts if part)


def _name_stage() -> None:
    if st.session_state.get("lifecycle_stage_named"):
        st.query_params["stage"] = st.session_state["lifecycle_stage_named"]
    st.rerun()


@st.fragment(run_every=10)
def _cost(named: str) -> None:
    view = latest(f"lifecycles/{named}")
    if view is None:
        return
    with theme.section_row("Cost", "GPU-hours, all stages to one scale", key="lifecycle_cost"):
        st.html(lifecycle_cards.COST_LEGEND, width="content")
    st.html(lifecycle_cards.cost_block(view.get("stages") or ()))


@st.fragment(run_every=10)
def _aliases(named: str) -> None:
    view = latest(f"lifecycles/{named}")
    lineage = latest(f"lifecycles/{named}/lineage") or {}
    if view is None:
        return
    with theme.section_row("Aliases", "a name for a checkpoint that others start from", key="lifecycle_aliases"):
        why = "" if lifecycle_actions.promotable(lineage) else "no checkpoint is verified yet"
        lifecycle_actions.buttons((("Move…", "promote"),), {"promote": why}, view)
    if view.get("aliases"):
        st.html(lifecycle_cards.alias_block(view, data.now()))
    else:
        st.html('<p class="tt-muted">None: no stage that names one has passed.</p>')


@st.fragment(run_every=5)
def _latest(named: str) -> None:
    """The newest lines of the chosen stage."""
    view = latest(f"lifecycles/{named}")
    if view is None:
        return
    name = chosen_stage(view)
    rows = [row for row in view.get("timeline") or () if row.get("stage") == name]
    theme.section(f"Latest of {name}", "", words.plural(len(rows), "line"))
    if rows:
        st.html(lifecycle_cards.story(rows[-LATEST:], data.now()))
    else:
        st.html('<p class="tt-muted">Nothing has happened in it yet.</p>')


@st.fragment(run_every=10)
def _below(named: str) -> None:
    """One of: the graph of checkpoints, what happened, the plan, what differs from the one before."""
    view = latest(f"lifecycles/{named}")
    if view is None:
        return
    with theme.section_row("Checkpoints and plan", "tainted branches are kept and never used", key="lifecycle_below"):
        shown = st.segmented_control(
            *("Show", list(SHOWS)),
            default="Lineage",
            key="show",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
        )
    if shown == "What happened":
        st.html(lifecycle_cards.story(view.get("timeline") or (), data.now()))
        if view.get("deliveries"):
            theme.section("Messages", "who was told, and what is still on its way")
            st.html(lifecycle_cards.message_block(view["deliveries"], data.now()))
    elif shown == "Plan":
        st.code(str(view.get("yaml") or ""), language="yaml")
    elif shown == "Changed":
        _changed(named)
    else:
        lineage = theme.load(f"lifecycles/{named}/lineage")
        if lineage is not None:
            st.html(lifecycle_lineage.graph(lineage, chosen_stage(view)))


def _changed(named: str) -> None:
    found = theme.load(f"lifecycles/{named}/diff")
    if found is None:
        return
    against = found.get("against")
    if not against:
        st.html(f'<p class="tt-muted">{lw.FIRST}</p>')
        return
    since = words.day_and_clock(against.get("created_s"), data.now())
    link = theme.escape(str(against.get("name")))
    changes = found.get("diff") or []
    count = words.plural(len(changes), "value")
    st.html(f'<p class="tt-muted">{count} changed since {link} of {since} UTC.</p>')
    if changes:
        st.html(lifecycle_cards.diff_view(changes))
