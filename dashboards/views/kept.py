"""What a page shows when the API stops answering: the last good data, one reason, and a new try every five seconds.

Why it exists: a page whose parts each vanish behind their own error tells less than the minute-old page it replaces.
One part of a page shows the reason (theme.load); the others keep what they had and the age badge says how old it is.
"""

from typing import Any

import streamlit as st

from dashboards import data, theme

KEPT = "tt_kept"
LIMIT = 32
RETRY_S = 5


def latest(path: str, **params: Any) -> Any:
    """The JSON at `path`, or the last one this session read there, or None when there never was one."""
    kept: dict[Any, Any] = st.session_state.setdefault(KEPT, {})
    key = (path, tuple(sorted((name, str(value)) for name, value in params.items())))
    try:
        answer = data.get(path, **params)
    except data.ApiError:
        return kept.get(key)
    if len(kept) >= LIMIT and key not in kept:
        kept.clear()
    kept[key] = answer
    return answer


@st.fragment(run_every=RETRY_S)
def waiting(path: str) -> None:
    """Why the page cannot be drawn; the page itself again as soon as `path` answers."""
    try:
        data.get(path)
    except data.ApiError as error:
        theme.problem(error)
        return
    st.rerun()
