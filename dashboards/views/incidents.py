"""The Incidents page: what is open and who is on it, the rules in force, and whether telling people works.

Why it exists: alerts of one cause stand in one row, the worst unowned first; taking one needs no other page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, theme, words
from dashboards.views import incident_cards
from dashboards.views.job_cards import incident_label
from dashboards.views.kept import latest

Row = Mapping[str, Any]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "open": ("open", "acked"),
    "nobody on it": ("open",),
    "over": ("resolved", "closed", "merged"),
    "all": (),
}


def page() -> None:
    """Draw the list, the rules and the channels."""
    theme.style("jobs.css")
    with theme.head_row():
        theme.title("", "", "Incidents", None, "one row a cause, the worst first")
        st.segmented_control(
            "Show",
            list(GROUPS),
            key="state",
            default="open",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
        )
        theme.live_badges()
    if told := st.session_state.pop("incident_told", None):
        st.toast(told)
    _list()
    left, right = st.columns([60, 40], gap="medium")
    with left:
        _rules()
    with right:
        _channels()


@st.fragment(run_every=5)
def _list() -> None:
    answer = theme.load("incidents")
    if answer is None:
        return
    rows = answer.get("incidents") or []
    st.html(f'<p class="tt-lead">{summary(rows)}</p>')
    group = str(st.session_state.get("state") or "open")
    found = [row for row in rows if not GROUPS.get(group) or row.get("state") in GROUPS[group]]
    if not found:
        text = "Nothing is open." if rows else "No rule has fired yet."
        theme.empty(f"{text} What the rules watch stands below." if group != "over" else "None is over.")
        return
    st.html(f'<div class="tt-scroll">{incident_cards.incident_rows(found)}</div>')
    _take(found)


def summary(rows: Sequence[Row]) -> str:
    """One sentence on what needs a person; counts only, so nothing here needs escaping."""
    alone = sum(row.get("state") == "open" for row in rows)
    owned = sum(row.get("state") == "acked" for row in rows)
    if not alone and not owned:
        return "Nothing needs a person."
    parts = (
        [f"<b>{words.plural(alone, 'incident')}</b> {'has nobody on it' if alone == 1 else 'have nobody on them'}"]
        if alone
        else []
    )
    if owned:
        parts.append(f"{words.plural(owned, 'incident')} {'is' if owned == 1 else 'are'} being handled")
    return "; ".join(parts) + "."


def _take(rows: Sequence[Row]) -> None:
    """A button for each incident that nobody has."""
    alone = [row for row in incident_cards.in_order(rows) if row.get("state") == "open"][:6]
    if not alone:
        return
    may = data.may_act()
    with st.container(horizontal=True, key="incident_take"):
        for row in alone:
            number = str(row["number"])
            st.button(
                f"Take {incident_label(number)}",
                key=f"ack_{number}",
                disabled=bool(may),
                help=may or None,
                on_click=act,
                args=(number, "ack", theme.once(f"ack_{number}"), {}),
            )


def act(number: str, verb: str, key: str, body: Row) -> None:
    """Send one verb of an incident; what came of it is said on the next run."""
    done = {"ack": "is yours", "resolve": "is resolved", "silence": "is silenced"}
    try:
        data.post(f"incidents/{number}/{verb}", dict(body), idempotency_key=key)
    except data.ApiError as error:
        st.session_state["incident_told"] = f"{incident_label(number)}: {theme.plain(data.reason(error))}"
        return
    theme.spent(f"{verb}_{number}")
    st.session_state["incident_told"] = f"{incident_label(number)} {done[verb]}."


def _rules() -> None:
    rules = (latest("rules") or {}).get("rules") or []
    theme.section("Rules", "data, not code: they run in the agent and in the server", words.plural(len(rules), "rule"))
    if rules:
        st.html(f'<div class="tt-scroll">{incident_cards.rule_rows(rules)}</div>')


def _channels() -> None:
    answer = latest("channels")
    rows = (answer or {}).get("channels") or []
    theme.section("Channels", "who is told; a test sends a marked message", words.plural(len(rows), "channel"))
    if answer is not None and not rows:
        theme.empty("Nobody is told yet. An administrator adds one: trimtab channel set ops --url …")
    may = "" if data.session().get("role") == "admin" else "An administrator tests channels."
    for row in rows:
        name = str(row["name"])
        with st.container(horizontal=True, vertical_alignment="center", key=f"channel_{theme.file_name(name)}"):
            st.html(channel_line(row))
            st.button(
                "Test",
                key=f"channel_test:{name}",
                disabled=bool(may),
                help=may or None,
                on_click=_test,
                args=(name, theme.once(f"test_{name}")),
            )


def channel_line(row: Row) -> str:
    """A channel's name, kind and where it goes; the secret is never among the data."""
    level, glyph = ("ok", "●") if row.get("enabled", True) else ("off", "○")
    text = " · ".join(str(row[part]) for part in ("kind", "url") if row.get(part))
    return (
        f'<span class="tt-glyph tt-{level}">{glyph}</span> <b>{theme.escape(str(row["name"]))}</b> '
        f'<span class="tt-muted">{theme.escape(text)}</span>'
    )


def _test(name: str, key: str) -> None:
    try:
        answer = data.post(f"channels/{name}/test", {}, idempotency_key=key)
    except data.ApiError as error:
        st.session_state["incident_told"] = f"{theme.plain(name)}: {theme.plain(data.reason(error))}"
        return
    theme.spent(f"test_{name}")
    failed = f"{name} did not take it: {answer.get('error') or 'no reason given'}"
    st.session_state["incident_told"] = theme.plain(f"{name} took the test message." if answer.get("ok") else failed)
