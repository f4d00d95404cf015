"""The Lifecycles page: every lifecycle in one table, those that wait for a person first; and a new one from a plan.

Why it exists: the list answers "does anything wait for me" and "how far is it" without opening anything. `?new=toy`
(a template, or `paste`) opens the form in its place.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from dashboards import data, markup, theme, words
from dashboards.views import lifecycle_submit, lifecycle_track
from dashboards.views import lifecycle_words as lw
from dashboards.views.job_cards import glyph_chip

Row = Mapping[str, Any]

ALL, WAITS = "all", {"waits_for_person": True}
GROUPS: Mapping[str, Mapping[str, Any]] = {
    ALL: {},
    "live": {"status": "active,paused"},
    "needs a person": WAITS,
    "ended": {"status": ",".join(lw.ENDED)},
}
"""What each choice asks the server for: it filters, so that no age hides what a person is waited for."""
LIMIT = 100
HEADS = (
    ("name", ""),
    ("state", "tt-nowrap"),
    ("stages", "tt-nowrap"),
    ("stage under way", ""),
    ("progress", "tt-nowrap"),
    ("GPU-hours productive", "tt-num"),
    ("lost", "tt-num"),
    ("queued", "tt-num"),
    ("by", "tt-muted"),
    ("age", "tt-num tt-muted"),
)


def page() -> None:
    """Draw the list, or the form when the address asks for a new one."""
    theme.style("jobs.css", "lifecycle.css")
    if st.query_params.get("new"):
        lifecycle_submit.draw(str(st.query_params["new"]))
        return
    _head()
    _list()


def _head() -> None:
    with theme.head_row():
        theme.title("", "", "Lifecycles", None, "stages with gates, from pretraining to a release")
        st.segmented_control(
            *("Show", list(GROUPS)),
            key="group",
            default=ALL,
            bind="query-params",
            required=True,
            label_visibility="collapsed",
        )
        to = ("lifecycles", {"new": lifecycle_submit.PASTE})
        st.button("New lifecycle", type="primary", key="lifecycles_new", on_click=theme.go, args=to)
        theme.live_badges()


@st.fragment(run_every=5)
def _list() -> None:
    asked = GROUPS.get(str(st.session_state.get("group")), {})
    answer = theme.load("lifecycles", limit=LIMIT, **asked)
    if answer is None:
        return
    rows = answer.get("lifecycles") or []
    if not rows:
        _none(asked)
        return
    more = bool(answer.get("next"))
    if more and not asked:
        rows = _with_waiting(rows)
    st.html(f'<div class="tt-scroll">{list_table(ordered(rows), data.now())}</div>')
    if more:
        older = " and, of the older ones, those that wait for a person" if len(rows) > LIMIT else ""
        st.html(f'<p class="tt-muted">The newest {LIMIT}{" of these" if asked else ""}{older} are shown.</p>')


def _with_waiting(rows: Sequence[Row]) -> list[Row]:
    """The newest lifecycles, and the older ones that wait for a person."""
    waiting = (theme.load("lifecycles", limit=LIMIT, **WAITS) or {}).get("lifecycles") or ()
    known = {row.get("id") for row in rows}
    return [*rows, *(row for row in waiting if row.get("id") not in known)]


def _none(asked: Mapping[str, Any]) -> None:
    """Nothing to list: whether there is any lifecycle at all is another question."""
    any_ = theme.load("lifecycles", limit=1) if asked else {}
    if any_ is None:
        return
    if any_.get("lifecycles"):
        theme.empty("No lifecycle matches this filter.")
    else:
        _none_yet()


def _none_yet() -> None:
    """Why the list is empty: the templates that ship, each opening the form, and the same in a terminal."""
    templates = (theme.load("lifecycle-templates") or {}).get("templates") or []
    theme.empty("No lifecycle has been submitted yet.", "Paste a plan", "lifecycles", {"new": "paste"})
    if not templates:
        return
    theme.section("Templates", "each opens with its plan, its stages and what the server says of it")
    st.html(f'<div class="tt-scroll">{template_table(templates)}</div>')
    theme.section("Same in a terminal", "--dry-run only says what would happen")
    st.code(f"trimtab lifecycle submit {templates[0]['name']} --dry-run", language="bash")


def template_table(templates: Sequence[Row]) -> str:
    """The templates that ship, with the stages of each."""
    heads = (("template", ""), ("lifecycle", "tt-muted"), ("stages", ""))
    body = [
        (
            markup.link(one.get("name"), "lifecycles", {"new": one.get("name")}, "tt-strong"),
            escape(str(one.get("lifecycle") or "")),
            escape(" → ".join(str(name) for name in one.get("stages") or ())),
        )
        for one in templates
    ]
    return markup.table(heads, body)


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Those that wait for a person first, then what is open, then the newest."""

    def urgency(row: Row) -> tuple[bool, bool, float]:
        open_ = row.get("status") not in lw.ENDED
        return (not row.get("waits_for_person"), not open_, -float(row.get("created_s") or 0.0))

    return sorted(rows, key=urgency)


def list_table(rows: Sequence[Row], now_s: float) -> str:
    """The lifecycles as a table; each name opens its page."""
    return markup.table(HEADS, [_row(row, now_s) for row in rows], "tt-lifecycles")


def _row(row: Row, now_s: float) -> tuple[str, ...]:
    level, sign, text = lw.status_words(row)
    stages = row.get("stages") or ()
    current = next((one for one in stages if one.get("name") == row.get("stage")), None)
    where = {"lifecycle": row.get("id")}
    told = ""
    if current is not None and row.get("status") not in lw.ENDED:
        at = {**where, "stage": current["name"]}
        told = f"{markup.link(current['name'], 'lifecycle', at)} {glyph_chip(*lw.stage_words(current))}"
    cost = row.get("cost") or {}
    created = row.get("created_s")
    return (
        markup.link(row.get("name"), "lifecycle", where, "tt-strong"),
        f'<span title="{escape(str(row.get("reason") or ""))}">{glyph_chip(level, sign, text)}</span>',
        lifecycle_track.small(stages),
        told,
        _progress(row, current),
        *(escape(lw.gpu_hours(cost.get(f"{part}_gpu_h"))) for part in ("productive", "lost", "queued")),
        escape(str(row.get("created_by") or "")),
        words.age(now_s - float(created) if created else None),
    )


def _progress(row: Row, stage: Row | None) -> str:
    """A bar and its step while a run is at work; nothing to show otherwise."""
    progress = row.get("progress") or {}
    if stage is None or stage.get("state") not in lw.AT_WORK:
        return ""
    share = min(max(float(progress.get("share") or 0.0), 0.0), 1.0)
    return f'<span class="tt-progress"><i style="width:{100 * share:.1f}%"></i></span>{escape(lw.far(progress))}'
