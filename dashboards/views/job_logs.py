"""The lowest section of the Job page: what ranks wrote, where they are, what settings changed, what happened in order.

Why it exists: these are read last and grow longest, so they have one place and only the chosen one is fetched.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import streamlit as st

from dashboards import draft, markup, theme
from dashboards.views import incident_cards, job_cards
from dashboards.views.kept import latest

Row = Mapping[str, Any]

VIEWS = ("Log", "Members", "Config diff", "Events")
SHOWN_MEMBERS = 64
LOG_BYTES = 200_000
LOG_LINES = 1000


def fold(lines: Sequence[str]) -> list[tuple[str, int]]:
    """Neighbouring lines that are the same, each once with its count."""
    return [(line, len(list(group))) for line, group in groupby(lines)]


def log_block(text: str) -> str:
    """The last lines of a log as markup: repeated ones folded, errors in bold."""
    rows = []
    for line, count in fold(text.splitlines()[-LOG_LINES:]):
        shown = escape(line) or "&nbsp;"
        if any(word in line for word in ("Error", "ERROR", "Traceback", "FATAL")):
            shown = f"<b>{shown}</b>"
        if count > 1:
            shown += f' <span class="tt-faint">× {count}</span>'
        rows.append(f"<div>{shown}</div>")
    return f'<div class="tt-console tt-tall" tabindex="0">{"".join(rows)}</div>'


def section(run_id: str) -> None:
    """Draw the section with the view that the address names (`show=`), following the API every five seconds."""
    named = st.query_params.get("show")
    if "job_show" not in st.session_state:
        st.session_state["job_show"] = named if named in VIEWS else VIEWS[0]
    _body(run_id)


@st.fragment(run_every=5)
def _body(run_id: str) -> None:
    view = st.session_state.get("job_show") or VIEWS[0]
    notes = {
        "Log": f"the last {LOG_LINES:,} lines of one rank; identical neighbours are folded",
        "Members": "the newest attempt's, asked of the platform now",
        "Config diff": "against the template that it came from",
        "Events": "hardware, rules and the run in one order, UTC",
    }
    run = latest(f"runs/{run_id}")
    if run is None:
        return
    with theme.section_row(str(view), notes[view], key="job_log"):
        chosen = _log_choices(run) if view == "Log" else None
        st.segmented_control(
            "Show", VIEWS, key="job_show", required=True, label_visibility="collapsed", on_change=_name_view
        )
    if view == "Log":
        _log(run_id, chosen)
    elif view == "Members":
        _members(run_id)
    elif view == "Config diff":
        _config(run)
    else:
        _events(run_id)


def _members(run_id: str) -> None:
    answer = latest(f"runs/{run_id}/members")
    if answer is None:
        return
    if answer.get("problem"):
        theme.sentence("It cannot be looked at now.", str(answer["problem"]), "nodata")
    if answer.get("members"):
        st.html(f'<div class="tt-scroll">{members_table(answer)}</div>')
    elif not answer.get("problem"):
        theme.empty("Nothing of it is on the platform now: it waits, or has ended.")


def members_table(answer: Row) -> str:
    """A row a member, as markup: its ranks, its node and pod, what it does. Those in trouble are on top."""
    rows: Sequence[Row] = answer.get("members") or ()
    pods = any(row.get("pod") for row in rows)
    heads = [("ranks", "tt-num"), ("node", ""), *([("pod", "")] if pods else []), ("state", ""), ("why", "")]
    cells = []
    for row in rows[:SHOWN_MEMBERS]:
        first, last = row["ranks"]
        node = markup.link(row["node"], "fleet", {"node": row["node"]}) if row.get("node") else "not placed yet"
        level = str(row.get("level"))
        sign = markup.glyph(level) if level in ("fault", "warn") else ""
        cells.append(
            [
                str(first) if first == last else f"{first}–{last}",
                node,
                *([f"<code>{escape(str(row.get('pod') or ''))}</code>"] if pods else []),
                f"{sign} {escape(str(row['state']))}",
                escape(str(row.get("reason") or "")),
            ]
        )
    more = len(rows) - SHOWN_MEMBERS
    rest = f'<p class="tt-faint">and {more:,} more, which run</p>' if more > 0 else ""
    return markup.table(heads, cells) + rest


def _name_view() -> None:
    st.query_params["show"] = st.session_state["job_show"]


def _log_choices(run: Row) -> tuple[int, int] | None:
    """(attempt, rank) whose log is shown; the newest attempt and rank 0 unless chosen otherwise."""
    rows: Sequence[Row] = run.get("attempts") or ()
    if not rows:
        return None
    attempts = [int(row["no"]) for row in rows]
    attempt = st.selectbox(
        "Attempt",
        attempts[::-1],
        format_func=lambda number: f"attempt {number}",
        key="job_log_attempt",
        label_visibility="collapsed",
        width=120,
    )
    shown = next((row for row in rows if row["no"] == attempt), rows[-1])
    ranks = ranks_of(run, shown)
    if st.session_state.get("job_log_rank") not in ranks:
        st.session_state.pop("job_log_rank", None)
    rank = st.selectbox(
        "Rank",
        list(ranks),
        format_func=lambda number: f"rank {number}",
        key="job_log_rank",
        label_visibility="collapsed",
        width=100,
    )
    return int(attempt or attempts[-1]), int(rank or 0)


def ranks_of(run: Row, attempt: Row) -> range:
    """The ranks of an attempt: so many on each of its nodes as the job asks for."""
    resources = ((run.get("spec") or {}).get("spec") or {}).get("resources") or {}
    return range(max(len(attempt.get("nodes") or ()), 1) * int(resources.get("ranksPerNode") or 1))


def _log(run_id: str, chosen: tuple[int, int] | None) -> None:
    if chosen is None:
        theme.empty("No attempt has started, so nothing has been written.")
        return
    answer = latest(f"runs/{run_id}/logs", attempt=chosen[0], rank=chosen[1], limit=LOG_BYTES)
    if answer is None:
        return
    text = log_text(answer)
    if note := end_note(answer):
        st.html(f'<p class="tt-muted">{escape(note)}</p>')
    if text.strip():
        st.html(log_block(text))
    else:
        theme.empty(f"Rank {chosen[1]} of attempt {chosen[0]} has written nothing yet.")


def end_note(answer: Row) -> str:
    """How the member whose log it is ended, and whether only what was kept of it is left; empty while it runs."""
    ended = answer.get("ended")
    if not ended:
        return ""
    words = ": ".join(str(one) for one in (ended.get("class"), ended.get("message")) if one)
    code = ended.get("exit_code")
    parts = [f"Ended on {ended.get('node')} with {'no code' if code is None else f'code {code}'}"]
    parts += [words] if words else []
    parts += ["what follows was kept before its pod went"] if answer.get("kept") else []
    parts += [f"its output could not be kept: {ended['missing']}"] if ended.get("missing") else []
    return "; ".join(parts) + "."


def log_text(answer: Row) -> str:
    """The text of the API's answer, whether it is one text or a list of lines."""
    lines = answer.get("lines")
    return "\n".join(str(line) for line in lines) if lines is not None else str(answer.get("text") or "")


def _config(run: Row) -> None:
    rows = run.get("diff") or []
    if rows:
        st.html(job_cards.diff_block(diff_lines(rows)))
        return
    st.html('<p class="tt-muted">Nothing differs from its template. These are its settings:</p>')
    text = str(run.get("yaml") or draft.to_yaml(run.get("spec") or {}))
    st.html(job_cards.diff_block([(" ", line) for line in text.splitlines()]))


def diff_lines(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The API's differences {path, before, after} as (sign, text): what was there, then what is there now."""
    lines = []
    for row in rows:
        for sign, side in (("-", "before"), ("+", "after")):
            if row.get(side) is not None:
                lines.append((sign, f"{row.get('path')}: {json.dumps(row[side], ensure_ascii=False)}"))
    return lines


def _events(run_id: str) -> None:
    why = latest(f"runs/{run_id}/why")
    if why is None:
        return
    rows = why.get("timeline") or []
    if rows:
        st.html(incident_cards.lanes(rows, incident_cards.origin(rows), run_id))
    else:
        theme.empty("Nothing has happened yet.")
