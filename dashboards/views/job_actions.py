"""What a person can do to a run from its page: a dialog states the consequence, then the API is called once.

Why it exists: a click must never act twice. The idempotency key is made when the dialog opens, so a repeated click, a
lost answer or a second tab repeats the same request and not the act. The API alone decides who may do what.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, markup, theme, words

Row = Mapping[str, Any]

DIALOG = "job_dialog"
FAILED = "job_dialog_error"
FINAL = ("succeeded", "failed", "cancelled")


def open_dialog(verb: str, run_id: str, checkpoint_id: str | None = None, without: Sequence[str] = ()) -> None:
    """Remember which dialog is open, with the key its request will carry; the page draws it on the next run.

    A restart's fields begin with this checkpoint (else the newest) and without these nodes.
    """
    st.session_state[DIALOG] = {"verb": verb, "run": run_id, "checkpoint": checkpoint_id, "key": theme.new_key()}
    st.session_state["restart_without"] = list(without)
    st.session_state.pop(FAILED, None)


def close_dialog() -> None:
    """Forget the dialog; dismissing it does the same."""
    st.session_state.pop(DIALOG, None)
    st.session_state.pop(FAILED, None)


def available(run: Row) -> dict[str, str]:
    """The reason why each verb is not possible now; an empty reason means that it is."""
    status, desired = str(run.get("status")), str(run.get("desired"))
    over = f"the run has {status}" if status != "cancelled" else "the run was stopped"
    ended = over if status in FINAL else ""
    attempts = run.get("attempts") or ()
    stopping = "the run is being stopped" if desired == "cancel" and not ended else ""
    return {
        "restart": ended or stopping or ("" if attempts else "there is no attempt yet"),
        "pause": ended or stopping or ("the run is paused" if desired == "pause" else ""),
        "resume": ended or stopping or ("" if desired == "pause" else "the run is not paused"),
        "stop": ended or stopping,
        "clone": "",
    }


def consequence(verb: str, run: Row, checkpoint: Row | None) -> str:
    """What will happen, in the dialog's words: what stops, what is saved, what is run again."""
    attempts = run.get("attempts") or ()
    current = attempts[-1] if attempts else {}
    number, gpus = int(current.get("no") or 0), int(run.get("gpus") or 0)
    nodes = words.plural(len(current.get("nodes") or ()), "node")
    grace = ((run.get("spec") or {}).get("spec") or {}).get("faults", {}).get("graceSeconds")
    saved = (
        f"It has {words.duration(float(grace))} to save a checkpoint. " if grace else "It saves a checkpoint first. "
    )
    step = run.get("step")
    if verb == "stop":
        freed = f"Stops attempt {number} and frees {nodes} ({gpus} GPUs). {saved}" if number else ""
        return f"{freed}The run ends here and cannot be resumed; Clone starts a new one from the same settings."
    if verb == "pause":
        freed = f"Stops attempt {number} and frees {nodes}. {saved}" if number else ""
        return f"{freed}Resume starts the next attempt from the newest verified checkpoint."
    if verb == "restart":
        begin = f"Stops attempt {number}; attempt {number + 1} starts "
        if checkpoint is None:
            return f"{begin}from step 0: all {words.number(step)} steps are run again."
        again = max(int(step or 0) - int(checkpoint["step"]), 0)
        return f"{begin}from step {words.number(checkpoint['step'])}. {words.plural(again, 'step')} will be run again."
    return ""


def usable(checkpoints: Sequence[Row]) -> list[Row]:
    """The checkpoints a person may restart from, newest first: only what was verified is offered, as the API asks."""
    return sorted(
        (row for row in checkpoints if row.get("state") == "validated"),
        key=lambda row: (int(row["step"]), int(row.get("attempt") or 0)),
        reverse=True,
    )


def clean_start(checkpoints: Sequence[Row], decision: Row) -> str | None:
    """The checkpoint that a proposed restart means, by its id: the decision's own, else the newest one from before the
    window in which the fault may have touched what was computed; "" is the beginning, None the newest of all.
    """
    if decision.get("checkpoint_id"):
        return str(decision["checkpoint_id"])
    begins = [row["begin_s"] for row in decision.get("evidence") or () if row.get("begin_s") is not None]
    if not begins:
        return None
    before = [row for row in usable(checkpoints) if (row.get("state_at_s") or 0.0) <= min(begins)]
    return str(before[0]["id"]) if before else ""


def act(verb: str, run_id: str, key: str, body: Row | None = None) -> None:
    """Send the verb once; a refusal keeps the dialog open with its reason, success closes it and says so."""
    try:
        data.post(f"runs/{run_id}/{verb}", dict(body or {}), idempotency_key=key)
    except data.ApiError as error:
        st.session_state[FAILED] = data.reason(error)
        return
    close_dialog()
    theme.spent(f"{verb}_{run_id}")
    done = {"stop": "is being stopped", "pause": "is being paused", "resume": "resumes", "restart": "restarts"}
    st.session_state["job_told"] = f"The run {done[verb]}."
    st.rerun()


def restart_body() -> dict[str, Any]:
    """The restart request from the dialog's own fields."""
    body: dict[str, Any] = {}
    if st.session_state.get("restart_from"):
        body["checkpoint_id"] = st.session_state["restart_from"]
    if st.session_state.get("restart_without"):
        body["exclude_nodes"] = list(st.session_state["restart_without"])
    return body


def draw_dialog(run: Row) -> None:
    """Draw the dialog that is open for this run, if any."""
    opened = st.session_state.get(DIALOG)
    if not opened or opened["run"] != run["id"]:
        return
    name, verb = str(run.get("name")), opened["verb"]
    titles = {"stop": f"Stop {name}?", "pause": f"Pause {name}?", "restart": f"Restart {name}"}
    st.dialog(titles[verb], on_dismiss=close_dialog)(_body)(run, opened)


def _body(run: Row, opened: Mapping[str, Any]) -> None:
    verb = opened["verb"]
    checkpoint = _restart_fields(run, opened) if verb == "restart" else None
    st.write(markup.plain(consequence(verb, run, checkpoint)))
    if st.session_state.get(FAILED):
        st.error(markup.plain(st.session_state[FAILED]))
    labels = {"stop": "Stop the run", "pause": "Pause the run", "restart": "Restart"}

    def send() -> None:
        act(verb, str(run["id"]), opened["key"], restart_body() if verb == "restart" else None)

    with st.container(horizontal=True):
        st.button(labels[verb], type="primary", on_click=send, key="job_dialog_do")
        st.button("Cancel", on_click=_cancel, key="job_dialog_cancel")


def _cancel() -> None:
    close_dialog()
    st.rerun()


def _restart_fields(run: Row, opened: Mapping[str, Any]) -> Row | None:
    rows = {str(row["id"]): row for row in usable(run.get("checkpoints") or ())}
    options = [*rows, ""]
    wanted = opened.get("checkpoint")
    chosen = st.selectbox(
        "From",
        options,
        index=options.index(wanted) if wanted in options else 0,
        format_func=lambda ident: _checkpoint_words(rows.get(ident)),
        key="restart_from",
    )
    attempts: Sequence[Row] = run.get("attempts") or ({},)
    nodes = [str(name) for name in attempts[-1].get("nodes") or ()]
    nodes += [name for name in st.session_state.get("restart_without") or () if name not in nodes]
    st.multiselect("Without these nodes", nodes, key="restart_without")
    return rows.get(chosen)


def _checkpoint_words(row: Row | None) -> str:
    if row is None:
        return "the beginning, without a checkpoint"
    return f"step {words.number(row['step'])}, attempt {row.get('attempt')}, {words.clock(row.get('written_at_s'))}"
