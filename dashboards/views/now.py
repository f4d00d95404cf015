"""The Now page: what needs a person, and if nothing does, that in one line.

Why it exists: it is the page on the wall and the first one at night. One sentence, a row for each thing that needs a
person with who has it and for how long, then figures, the fleet in one strip, what runs, what is open, what was lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import charts, data, figures_now, theme, words
from dashboards.views import now_rows

Row = Mapping[str, Any]

LOST_HEIGHT = 190
# The worst come first; the rest is a line, so that a bad night leaves room for the fleet.
SHOWN_NEEDS = 4


def page() -> None:
    """Draw the present."""
    if told := st.session_state.pop("now_told", None):
        st.toast(told)
    try:
        view = data.get("now")
    except data.ApiError as error:
        theme.problem(error)
        return
    _head(view)
    _needs()
    _tiles()
    if (view.get("fleet") or {}).get("nodes"):
        _fleet(view)
    else:
        theme.section("Fleet", "")
        theme.empty("No node has reported yet. An agent enrols one: trimtab-agent --server … --token …")
    left, right = st.columns([58, 42], gap="medium")
    with left:
        _running()
    with right:
        _incidents()
    _lost()


def _head(view: Row) -> None:
    with theme.head_row():
        with st.container(key="now_sentence", width="stretch"):
            _sentence()
        if (view.get("fleet") or {}).get("nodes"):
            with st.container(key="now_age", width=150):
                charts.badge("/frames/fleet", key="now_age_badge")
        if view.get("simulated"):
            theme.badges(None, simulated=True)


@st.fragment(run_every=5)
def _sentence() -> None:
    view = theme.load("now")
    if view is not None:
        told = view.get("sentence") or {}
        theme.sentence(told.get("lead", ""), told.get("rest", ""), big=True)


@st.fragment(run_every=5)
def _needs() -> None:
    needs = (theme.load("now", quiet=True) or {}).get("needs") or []
    may = data.may_act()
    for index, need in enumerate(needs[:SHOWN_NEEDS]):
        _need(index, need, may)
    if len(needs) > SHOWN_NEEDS:
        st.html(now_rows.more_needs(len(needs) - SHOWN_NEEDS))


def _need(index: int, need: Row, may: str) -> None:
    """One thing that needs a person: what, how long, who has it, open it, take it."""
    number = need.get("incident")
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key=f"tt_section_need_{index}"):
        st.html(now_rows.need(need), width="stretch")
        label, page_name, params = now_rows.target(need)
        if page_name:
            first = "primary" if index == 0 else "secondary"
            kind: Any = first
            st.button(label, key=f"need_open_{index}", type=kind, on_click=theme.go, args=(page_name, params))
        if number and not need.get("owner"):
            st.button(
                "Take it",
                key=f"need_take_{index}",
                disabled=bool(may),
                help=may or None,
                on_click=take,
                args=(number, theme.once(f"ack_{number}")),
            )


def take(number: int, key: str) -> None:
    """Acknowledge the incident as one's own, once."""
    try:
        data.post(f"incidents/{number}/ack", {}, idempotency_key=key)
    except data.ApiError as error:
        st.session_state["now_told"] = theme.plain(data.reason(error))
    else:
        theme.spent(f"ack_{number}")
        st.session_state["now_told"] = f"INC-{int(number):04d} is yours."
    st.session_state.pop(f"take_{number}", None)
    st.rerun()


@st.fragment(run_every=5)
def _tiles() -> None:
    theme.tiles((theme.load("now", quiet=True) or {}).get("tiles") or [], big=True)


def _fleet(view: Row) -> None:
    fleet = view["fleet"]
    nodes = int(fleet.get("nodes") or 0)
    gpus = int(fleet.get("gpus") or 0) // max(nodes, 1)
    _fleet_head(nodes, gpus)
    charts.ribbon(key="now_ribbon", picked=_picked)


def _picked(choice: Mapping[str, Any]) -> None:
    if choice.get("node"):
        theme.go("fleet", {"node": str(choice["node"])})


@st.fragment(run_every=5)
def _fleet_head(nodes: int, gpus: int) -> None:
    counts = ((theme.load("now", quiet=True) or {}).get("fleet") or {}).get("counts") or {}
    faint = f"{words.plural(nodes, 'node')} × {gpus} GPUs, one column a node"
    st.html(now_rows.section_with_legend("Fleet", faint, counts))


@st.fragment(run_every=5)
def _running() -> None:
    view = theme.load("now", quiet=True)
    if view is None:
        return
    rows: Sequence[Row] = view.get("running") or []
    st.html(now_rows.section_with_link("Running", now_rows.running_words(rows), "all jobs", "jobs"))
    if rows:
        st.html(f'<div class="tt-scroll">{now_rows.running_table(rows, data.now())}</div>')
    else:
        theme.empty("Nothing runs.", "Submit a run", "submit")


@st.fragment(run_every=5)
def _incidents() -> None:
    view = theme.load("now", quiet=True)
    if view is None:
        return
    rows: Sequence[Row] = view.get("incidents") or []
    told = now_rows.incident_words(
        rows, int(view.get("incidents_open") or len(rows)), int(view.get("incidents_cleared") or 0)
    )
    st.html(now_rows.section_with_link("Incidents", told, "all incidents", "incidents"))
    if rows:
        st.html(f'<div class="tt-scroll">{now_rows.incident_table(rows)}</div>')
    else:
        st.html('<p class="tt-muted">None is open.</p>')


@st.fragment(run_every=30)
def _lost() -> None:
    """GPU-hours lost by cause, where it is known; nothing where it is not."""
    view = theme.load("now", quiet=True) or {}
    rows = view.get("lost") or []
    if not rows:
        return
    of = view.get("lost_of") or {}
    bars, gpus, told = figures_now.bars_of(rows), int(of.get("gpus") or 0), figures_now.lost_words(rows, of)
    theme.section("GPU-hours lost", figures_now.span_words(bars, gpus), told)
    option = figures_now.lost_option(bars, theme.palette(), gpus)
    st.echarts_chart(option, height=LOST_HEIGHT, key="now_lost", alt=f"{told} lost, by cause")
