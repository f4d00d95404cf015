"""What an operator may do to a node, from whichever page: cordon it, return it to service, drill it if it is simulated.

Why it exists: two pages lead to the same acts, and must state the same consequence before anything happens. An act goes
out once (the key is made when its dialog opens) and the API alone decides. A node that still has a finding is returned
only by somebody who says so and says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, markup, theme
from dashboards.views.kept import latest

Row = Mapping[str, Any]

DIALOG = "node_dialog"
FAILED = "node_dialog_error"
TOLD = "node_told"
STILL_FIRES = "node_still_fires"
LABELS = {"cordon": "Cordon", "drain": "Drain", "uncordon": "Return to service", "drill": "Start the drill"}

TOLD_OF = {
    "cordon": "{node} takes no new work.",
    "drain": "{node} is being emptied.",
    "uncordon": "{node} may take work again.",
}


def open_dialog(verb: str, node: str, why: str = "") -> None:
    """Remember which dialog is open, with the key its request will carry; `why` stands in its reason at first."""
    st.session_state[DIALOG] = {"verb": verb, "node": node, "key": theme.new_key()}
    st.session_state["node_why"] = why
    st.session_state.pop("node_force", None)
    st.session_state.pop(FAILED, None)
    st.rerun()


def close_dialog() -> None:
    """Forget the dialog."""
    st.session_state.pop(DIALOG, None)
    st.session_state.pop(FAILED, None)


def tell() -> None:
    """Say once what came of the last act."""
    if told := st.session_state.pop(TOLD, None):
        st.toast(told)


def draw_dialog() -> None:
    """Draw the dialog that is open, if any."""
    opened = st.session_state.get(DIALOG)
    if not opened:
        return
    node = theme.plain(str(opened["node"]))
    titles = {
        "cordon": f"Cordon {node}?",
        "drain": f"Drain {node}?",
        "uncordon": f"Return {node} to service?",
        "drill": f"Fault drill on {node}",
    }
    st.dialog(titles[opened["verb"]], on_dismiss=close_dialog)(_body)(opened)


def firing(node: str) -> list[Row]:
    """The findings that stand against the node now."""
    found = latest(f"nodes/{node}") or {}
    return [row for row in found.get("findings") or () if isinstance(row, Mapping)]


def findings_block(rows: Sequence[Row]) -> str:
    """What still fires, as markup, each with its incident."""
    parts = []
    for row in rows:
        number = row.get("incident")
        linked = f" {markup.link(f'INC-{int(number):04d}', 'incident', {'number': number})}" if number else ""
        sentence = theme.escape(str(row.get("sentence") or row.get("rule") or ""))
        parts.append(f"<p>{markup.glyph(row.get('severity'))} {sentence}.{linked}</p>")
    return f'<div class="tt-problem-block">{"".join(parts)}</div>'


def _body(opened: Row) -> None:
    verb, node = str(opened["verb"]), str(opened["node"])
    if verb == "drill":
        drills = {str(one["kind"]): str(one["title"]) for one in (latest(f"nodes/{node}") or {}).get("drills") or ()}
        st.selectbox("What happens", list(drills), key="drill_kind", format_func=lambda kind: f"{kind}: {drills[kind]}")
        st.selectbox("GPU", range(8), key="drill_gpu")
        st.write(
            "Changes the registers of this simulated device with its agent's next batch. From then on nothing can tell "
            "it from a real fault: rules, decision and restart run as they would."
        )
    elif verb == "cordon":
        st.write("No new attempt is placed here. What runs on it goes on. Return to service undoes it.")
    elif verb == "drain":
        st.write(
            "No new attempt is placed here, and what runs on it saves, stops and goes on from its checkpoint on other "
            "nodes. It waits for one if none is free. Return to service undoes the first, not the second."
        )
    else:
        _return_body(opened, firing(node))
    if verb != "drill":
        st.text_input("Why", key="node_why", placeholder="what the next reader should know")
    if st.session_state.get(FAILED):
        st.error(theme.plain(st.session_state[FAILED]))
    with st.container(horizontal=True):
        st.button(LABELS[verb], type="primary", key="node_dialog_do", on_click=act, args=(opened,))
        st.button("Cancel", key="node_dialog_cancel", on_click=_cancel)


def _return_body(opened: Row, rows: Sequence[Row]) -> None:
    """What returning means; with a finding it is refused unless it is asked for in so many words."""
    st.write("The next attempt may be placed here again.")
    if rows:
        st.html(findings_block(rows))
    if rows or opened.get("fires"):
        st.checkbox("Return it although this still fires; a reason is needed", key="node_force")


def _cancel() -> None:
    close_dialog()
    st.rerun()


def act(opened: Row) -> None:
    """Send the open dialog's act once; a refusal keeps the dialog open with its reason."""
    node, verb = str(opened["node"]), str(opened["verb"])
    if verb == "drill":
        path, body = "drills", {"kind": str(st.session_state["drill_kind"]), "gpu": int(st.session_state["drill_gpu"])}
        told = f"Drill {body['kind']} is on its way to {node}."
    else:
        why = str(st.session_state.get("node_why") or "").strip()
        path, body = verb, {"reason": why}
        told = TOLD_OF[verb].format(node=node)
        if verb == "uncordon" and st.session_state.get("node_force"):
            if not why:
                st.session_state[FAILED] = "Say why it is returned although this still fires."
                return
            body["force"] = True
    if _send(f"nodes/{node}/{path}", body, opened):
        close_dialog()
        st.session_state[TOLD] = theme.plain(told)
        st.rerun()


def _send(path: str, body: dict[str, Any], opened: Row) -> bool:
    try:
        data.post(path, body, idempotency_key=opened["key"])
    except data.ApiError as error:
        st.session_state[FAILED] = data.reason(error)
        if error.code == STILL_FIRES:
            # what is sent next says more and is another request
            st.session_state[DIALOG] = {**opened, "fires": True, "key": theme.new_key()}
        return False
    return True
