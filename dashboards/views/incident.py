"""The Incident page: what happened, in order, what it cost, and what is left for the reader.

Why it exists: whoever takes an incident needs the story and the next act on one screen, the evidence one click away.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import data, figures, theme, words
from dashboards.views import incident_cards, incidents, node_acts
from dashboards.views.job_cards import incident_label
from dashboards.views.kept import latest, waiting

Row = Mapping[str, Any]

DIALOG = "incident_dialog"
NODE_VERBS = ("cordon", "uncordon")
SILENCE_MINUTES = 120


def page() -> None:
    """Draw the incident that the address names."""
    theme.style("jobs.css")
    theme.belongs_to("incidents")
    number = st.query_params.get("number")
    if not number:
        theme.empty("No incident is named in the address.", "All incidents", "incidents")
        return
    try:
        view = data.get(f"incidents/{number}")
    except data.ApiError:
        waiting(f"incidents/{number}")
        return
    if told := st.session_state.pop("incident_told", None):
        st.toast(told)
    node_acts.tell()
    _head(view)
    _story(str(number))
    _draw_dialog(view)
    node_acts.draw_dialog()


def _head(view: Row) -> None:
    number, state = str(view["number"]), str(view.get("state"))
    may = data.may_act()
    with theme.head_row():
        theme.title("Incidents", "incidents", incident_label(number), incident_cards.state_words(view), facts(view))
        over = "" if state in ("open", "acked") else f"it is {state}"
        why = may or over or ("" if state == "open" else "somebody is on it")
        st.button(
            "Take it",
            type="primary",
            key="incident_ack",
            disabled=bool(why),
            help=why or None,
            on_click=incidents.act,
            args=(number, "ack", theme.once(f"ack_{number}"), {}),
        )
        _open("Silence 2 h…", "silence", number, may or over)
        _open("Resolve…", "resolve", number, may or over)
        theme.live_badges()


def _open(label: str, verb: str, number: str, why: str) -> None:
    st.button(
        label, key=f"incident_{verb}", disabled=bool(why), help=why or None, on_click=_set_dialog, args=(verb, number)
    )


def _set_dialog(verb: str, number: str) -> None:
    st.session_state[DIALOG] = {"verb": verb, "number": number, "key": theme.new_key()}


def _drop_dialog() -> None:
    st.session_state.pop(DIALOG, None)


def facts(view: Row) -> str:
    """2 h 12 m · rule ecc_uncorrectable · sim-node-02 · run-01"""
    where = incident_cards.place(view)
    run = view.get("run")
    parts = [words.age(view.get("age_s")), f"rule {view.get('rule')}", where]
    return " · ".join(str(part) for part in [*parts, run if run != where else None] if part)


def consequence(verb: str, view: Row) -> str:
    """What the dialog says before it is done."""
    label = incident_label(view["number"])
    if verb == "silence":
        return f"For 2 hours nobody is told about {label}. It stays open, and what still fires then is told once."
    return (
        f"{label} is over for everyone. While its cause still fires it stays quiet until it clears; "
        "if it comes back within 15 minutes, the same incident opens again."
    )


def _draw_dialog(view: Row) -> None:
    opened = st.session_state.get(DIALOG)
    if not opened or opened["number"] != str(view["number"]):
        return
    title = {"silence": "Silence for 2 hours?", "resolve": "Resolve it?"}[opened["verb"]]
    st.dialog(title, on_dismiss=_drop_dialog)(_dialog_body)(view, opened)


def _dialog_body(view: Row, opened: Row) -> None:
    st.write(consequence(opened["verb"], view))
    st.text_input("Why", key="incident_reason", placeholder="what the next reader should know")
    with st.container(horizontal=True):
        st.button("Do it", type="primary", key="incident_do", on_click=_do, args=(opened,))
        st.button("Cancel", key="incident_cancel", on_click=_cancel)


def _cancel() -> None:
    _drop_dialog()
    st.rerun()


def _do(opened: Row) -> None:
    body: dict[str, Any] = {"reason": str(st.session_state.get("incident_reason") or "").strip() or "not given"}
    if opened["verb"] == "silence":
        body["minutes"] = SILENCE_MINUTES
    incidents.act(opened["number"], opened["verb"], opened["key"], body)
    _drop_dialog()
    st.rerun()


@st.fragment(run_every=5)
def _story(number: str) -> None:
    view = theme.load(f"incidents/{number}")
    if view is None:
        return
    st.html(incident_cards.sentence_block(view.get("sentence") or {}))
    theme.tiles(view.get("tiles") or [])
    left, right = st.columns([62, 38], gap="medium")
    with left:
        _order(view)
        _kernel(view)
    with right:
        _actions(view)
        _series(view)
        _where(view)
        _experts(view)
        _terminal(view)
        _told(view)


def _order(view: Row) -> None:
    rows = view.get("timeline") or []
    theme.section(
        "What happened, in order", "three lanes: what the hardware did, what the system decided, what the run did"
    )
    if rows:
        st.html(incident_cards.lanes(rows, incident_cards.origin(rows), str(view.get("run") or ""), "incident"))
    else:
        theme.empty("Nothing is recorded yet.")


def _kernel(view: Row) -> None:
    lines = view.get("kernel") or []
    node = str(view.get("node") or "")
    if lines:
        theme.section(f"Kernel log, {node}", f"{words.plural(len(lines), 'line')}, kept after node loss")
        st.html(incident_cards.kernel_block(lines))


def _actions(view: Row) -> None:
    rows = view.get("actions") or []
    if not rows:
        return
    theme.section("Actions", "each states what it stops before it runs")
    may = data.may_act()
    with st.container(horizontal=True, key="incident_actions"):
        for row in rows:
            verb = str(row.get("verb"))
            why = may or ("" if row.get("enabled") else str(row.get("why") or "not possible now"))
            missing = "" if verb in NODE_VERBS or why else "not from this page"
            st.button(
                theme.plain(str(row.get("label") or verb)),
                key=f"incident_act_{verb}",
                disabled=bool(why or missing),
                help=theme.plain(why or missing or str(row.get("why") or "")) or None,
                on_click=node_acts.open_dialog,
                args=(verb, str(view.get("node") or ""), str(view.get("label")) if verb == "cordon" else ""),
            )
    reasons = [str(row["why"]) for row in rows if row.get("why")]
    if reasons:
        st.html(f'<p class="tt-muted">{theme.escape(" ".join(reasons))}</p>')


def _series(view: Row) -> None:
    series = view.get("series")
    if not series or not series.get("t"):
        return
    theme.section(str(series.get("title") or "Around the fault"), str(series.get("unit") or ""), "UTC")
    option = figures.counter_option(series["t"], series["v"], marks(view), theme.palette())
    st.echarts_chart(
        option, height=130, key="incident_series", alt=str(view.get("title") or "the measure around the fault")
    )


def marks(view: Row) -> list[dict[str, Any]]:
    """The onset of the first fault, and the moment the run trained again."""
    found = []
    onset = incident_cards.origin([row for row in view.get("timeline") or () if row.get("level") == "fault"])
    if onset is not None:
        found.append({"at_s": onset, "label": words.clock(onset), "level": "fault"})
    again = [row["at_s"] for row in view.get("timeline") or () if row.get("level") == "ok" and row.get("lane") == "run"]
    if again and again[0] is not None:
        found.append({"at_s": float(again[0]), "label": "trains again", "level": "ok"})
    series = view.get("series") or {}
    inside = series.get("t") or [0.0]
    return [mark for mark in found if min(inside) <= float(str(mark["at_s"])) <= max(inside)]


def _where(view: Row) -> None:
    node = str(view.get("node") or "")
    if not node:
        return
    theme.section("Where", incident_cards.place(view))
    found = latest(f"nodes/{node}")
    if found is not None:
        st.html(incident_cards.node_block(found, view.get("gpu")))


def _experts(view: Row) -> None:
    """The blast radius: which experts lived on the GPU and what they carried."""
    radius = view.get("blast_radius")
    if radius:
        theme.section("Experts that lived there", "", f"rank {radius.get('rank')} of {radius.get('world')}")
        st.html(incident_cards.experts_block(radius, str(view.get("run") or "")))


def _terminal(view: Row) -> None:
    lines = [str(line) for line in view.get("cli") or ()]
    if lines:
        theme.section("Same in a terminal", "")
        st.code("\n".join(lines), language=None)


def _told(view: Row) -> None:
    rows = view.get("deliveries") or []
    theme.section("Who was told", "", words.plural(len(rows), "message"))
    if rows:
        st.html(f'<div class="tt-scroll">{incident_cards.delivery_rows(rows, data.now())}</div>')
    else:
        st.html('<p class="tt-muted">Nobody: no channel is set up, or it is silenced.</p>')
