"""How a page is put together: the one style block, rows, tiles, sections, and the states a page can be in.

Why it exists: every page has the same head, the same gaps and the same words for empty, broken and old. The markup
itself is markup.py's, escaped there; this module is the only one that knows how Streamlit lays it out.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboards import charts, data, markup, tokens, words
from dashboards.markup import file_name, plain

__all__ = [
    "badges",
    "belongs_to",
    "empty",
    "escape",
    "file_name",
    "foot",
    "go",
    "head_row",
    "live_badges",
    "load",
    "new_key",
    "palette",
    "plain",
    "problem",
    "section",
    "section_row",
    "sentence",
    "style",
    "tiles",
    "title",
]

STATIC = Path(__file__).parent / "static"
STALE_S = 10.0
PAGES = "tt_pages"


def style(*names: str) -> None:
    """Put style sheets of static/ on the page; without a name the product's own one with its tokens."""
    sheets = "".join((STATIC / Path(name).name).read_text(encoding="utf-8") for name in names or ("trimtab.css",))
    st.html(f"<style>{'' if names else tokens.css(appearance())}{sheets}</style>")


def appearance() -> str:
    """light or dark, as the viewer sees the page."""
    return str(st.context.theme.type or "light")


def palette() -> dict[str, str]:
    """The tokens as plain colours in the viewer's appearance, for charts."""
    return tokens.palette(appearance())


def head_row() -> DeltaGenerator:
    """The page's first row: subject or sentence, actions, badges at the far right."""
    return st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="tt_head")


def title(
    parent: str, parent_page: str, name: str, status: tuple[str, str, str] | None, facts: str, extra: str = ""
) -> None:
    """Breadcrumb, name, state and facts; `extra` is safe markup."""
    st.html(markup.title(parent, parent_page, name, status, facts, extra), width="stretch")


def sentence(lead: object, rest: object = "", level: object = None, *, big: bool = False) -> None:
    """The page's first sentence."""
    st.html(markup.sentence(lead, rest, level, big), width="stretch")


def badges(age_s: float | None, *, simulated: bool, without: str = "") -> None:
    """The age of the data, or why it has none, and SIMULATED; put last in the head row."""
    text = without if age_s is None else f"data {words.duration(age_s)} old"
    stale = (age_s or 0.0) > STALE_S
    st.html(markup.badges(text, stale=stale, simulated=simulated, quiet=age_s is None), width="content")


def live_badges(what: str = "data") -> None:
    """The age of what the fleet last told, counted up by the browser, and SIMULATED; put last in the head row."""
    with st.container(key="tt_age", width=150):
        charts.badge("/frames/fleet", key="tt_age_badge", what=what)
    if data.simulated():
        badges(None, simulated=True)


def tiles(rows: Sequence[Mapping[str, Any]], *, widest_first: bool = False, big: bool = False) -> None:
    """A row of tiles; nothing when there are none."""
    if rows:
        st.html(markup.tiles(rows, widest_first=widest_first, big=big))


def section(heading: str, faint: str = "", right: str = "") -> None:
    """A section's head without controls."""
    st.html(markup.section(heading, faint, right))


def section_row(heading: str, faint: str = "", *, key: str) -> DeltaGenerator:
    """A section's head with room for small controls at its right: `with section_row(…): …`."""
    row = st.container(
        horizontal=True, vertical_alignment="center", gap="xsmall", key=f"tt_section_{file_name(key).replace('.', '_')}"
    )
    row.html(markup.section(heading, faint), width="stretch")
    return row


def empty(text: str, action: str = "", page: str = "", params: Mapping[str, object] | None = None) -> None:
    """An empty place: why, and one action as a link to a page."""
    st.html(markup.empty(text, action, page, params))


def problem(error: data.ApiError) -> None:
    """What could not be read, and that the runs themselves go on."""
    if error.status == 401:
        st.html(markup.empty("Your session has ended.", "Sign in", "signin"))
        return
    if error.status == 404:
        st.html(markup.empty(f"{error.title} {error.detail}".strip()))
        return
    lead = "The control plane does not answer." if error.status == 0 else error.title
    detail = "" if error.status == 0 else " ".join(part for part in (error.detail, error.hint) if part)
    note = "Tried again every 5 s. Runs go on without this page."
    st.html(markup.problem(lead, detail, error.code, note))


def load(path: str, *, quiet: bool = False, **params: Any) -> Any:
    """The JSON at `path`; while the API fails what was last read, said so; None after a reason in its place.

    `quiet` leaves it to another part of the page to say that the values are old.
    """
    try:
        return data.get(path, **params)
    except data.ApiError as error:
        known = data.last(path, **params) if error.status == 0 or error.status >= 500 else None
        if known is None:
            problem(error)
        elif not quiet:
            st.html(markup.old_values("The control plane does not answer." if error.status == 0 else error.title))
        return known


def go(page: str, params: Mapping[str, str] | None = None) -> None:
    """Open another page with this query, from the script or from a callback."""
    pages = st.session_state.get(PAGES) or {}
    if page in pages:
        st.switch_page(pages[page], query_params=dict(params or {}))
    st.session_state["tt_went"] = (page, dict(params or {}))


@st.fragment(run_every=5)
def foot() -> None:
    """The last line of every page: the same address in the other appearance, and the way out."""
    other = "light" if st.context.theme.type == "dark" else "dark"
    query = urlencode([*_named_now(), ("embed_options", f"{other}_theme")])
    change = f'<a href="?{escape(query)}" target="_self">{other}</a>'
    st.html(f'<div class="tt-foot">{change}<a href="/signout" target="_self">sign out</a></div>')


def _named_now() -> list[tuple[str, str]]:
    """What the address names, as (name, value); Streamlit keeps its own options out of it."""
    return [(name, value) for name in st.query_params for value in st.query_params.get_all(name)]


def belongs_to(page: str) -> None:
    """Light the tab of the list that this page was opened from; Streamlit lights only a page's own."""
    st.html(f"<style>{markup.lit_tab(page)}</style>")


def new_key() -> str:
    """A key that makes one act one act: made when its dialog opens."""
    return str(uuid4())


def once(act: str) -> str:
    """The key of a button that acts without a dialog: the same until `spent`, so that trying again is no second act."""
    return str(st.session_state.setdefault(f"once_{act}", new_key()))


def spent(act: str) -> None:
    """The act is done: the next click means another one. A refusal, or no answer, leaves the key as it is."""
    st.session_state.pop(f"once_{act}", None)
