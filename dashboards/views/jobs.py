"""The Jobs page: every run in one table, the ones that need a person first.

Why it exists: the list answers "is mine running, and until when" without opening anything. Filters live in the address.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from dashboards import data, markup, theme, words
from dashboards.views.job_cards import glyph_chip, status_words

Row = Mapping[str, Any]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "live": ("active", "queued", "paused", "needs_human", "waiting_gate"),
    "needs a person": ("needs_human",),
    "ended": ("succeeded", "failed", "cancelled"),
}
ORDER = ("needs_human", "active", "queued", "waiting_gate", "paused", "draft", "failed", "succeeded", "cancelled")
LIMIT = 200


def page() -> None:
    """Draw the list."""
    theme.style("jobs.css")
    _head()
    _list()


def _head() -> None:
    with theme.head_row():
        theme.title("", "", "Jobs", None, "every run, newest first; what needs a person on top")
        st.text_input(
            "Find",
            key="find",
            placeholder="name, node or person",
            bind="query-params",
            label_visibility="collapsed",
            width=220,
        )
        st.segmented_control(
            "Show",
            list(GROUPS),
            key="group",
            default="all",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
        )
        st.button("Submit a run", type="primary", key="jobs_submit", on_click=theme.go, args=("submit", {}))
        theme.live_badges()


@st.fragment(run_every=5)
def _list() -> None:
    answer = theme.load("runs", limit=LIMIT)
    if answer is None:
        return
    rows = answer.get("runs") or []
    if not rows:
        theme.empty("No run has been submitted yet.", "Submit the first run", "submit")
        return
    group = str(st.session_state.get("group") or "all")
    found = chosen(rows, group, str(st.session_state.get("find") or ""))
    if not found:
        theme.empty(f"None of {words.plural(len(rows), 'run')} matches this filter.")
        return
    st.html(f'<div class="tt-scroll">{run_table(found, data.now())}</div>')
    if answer.get("next"):
        st.html(f'<p class="tt-muted">The newest {LIMIT} runs are shown.</p>')


def chosen(rows: Sequence[Row], group: str, find: str) -> list[Row]:
    """The runs of a group whose name, id, nodes or submitter contain the text, in order of urgency, then newest."""
    states = GROUPS.get(group, ())
    text = find.strip().lower()

    def has(row: Row) -> bool:
        words_of = [row.get("name"), row.get("id"), row.get("created_by"), row.get("stage"), *(row.get("nodes") or ())]
        return any(text in str(word).lower() for word in words_of if word)

    kept = [row for row in rows if (not states or row.get("status") in states) and (not text or has(row))]
    rank = {status: place for place, status in enumerate(ORDER)}
    return sorted(kept, key=lambda row: (rank.get(str(row.get("status")), 0), -float(row.get("created_s") or 0.0)))


HEADS = (
    ("name", ""),
    ("state", ""),
    ("stage", "tt-muted"),
    ("nodes", "tt-muted"),
    ("progress", ""),
    ("stage done, UTC", "tt-muted"),
    ("tok/s", "tt-num"),
    ("loss", "tt-num"),
    ("attempt", "tt-num"),
    ("on", "tt-muted"),
    ("by", "tt-muted"),
    ("age", "tt-num tt-muted"),
)


def run_table(rows: Sequence[Row], now_s: float) -> str:
    """The runs as a table; each name opens its page."""
    return markup.table(HEADS, [_row(row, now_s) for row in rows], "tt-runs")


def _row(row: Row, now_s: float) -> tuple[str, ...]:
    level, glyph, text = status_words(row)
    nodes = [str(node) for node in row.get("nodes") or ()]
    shown = ", ".join(nodes[:2]) + (f" and {len(nodes) - 2} more" if len(nodes) > 2 else "")
    simulated = ' <span class="tt-faint">simulated</span>' if row.get("simulated") else ""
    created = row.get("created_s")
    return (
        markup.link(row.get("name"), "job", {"run": row.get("id")}, "tt-strong") + simulated,
        glyph_chip(level, glyph, text),
        escape(str(row.get("stage") or "")),
        escape(shown) or words.UNKNOWN,
        progress(row),
        escape(done_by(row, now_s)),
        words.number(row.get("tokens_per_s")),
        words.figure(row.get("loss"), 4),
        words.number(row.get("attempt") or None),
        escape(str(row.get("backend") or "")),
        escape(str(row.get("created_by") or "")),
        words.age(now_s - float(created) if created else None),
    )


def progress(row: Row) -> str:
    """A bar and its step; where a restarting run starts from; a dash before the first step."""
    share, step = row.get("progress"), row.get("step")
    if share is None or step is None:
        return f'<span class="tt-faint">{words.UNKNOWN}</span>'
    start = "from " if row.get("starts_from") is not None else ""
    steps = f" of {words.number(row['steps'])}" if row.get("steps") else ""
    return (
        f'<span class="tt-progress"><i style="width:{100 * min(max(float(share), 0.0), 1.0):.1f}%"></i></span>'
        f"{start}{words.number(step)}{steps}"
    )


def done_by(row: Row, now_s: float) -> str:
    """The likely range of its end, or why there is none."""
    if row.get("status") in ("succeeded", "failed", "cancelled"):
        return ""
    eta = row.get("eta")
    return words.eta_range(float(eta["low_s"]), float(eta["high_s"]), now_s) if eta else words.UNKNOWN
