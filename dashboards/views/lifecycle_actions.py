"""What a person can do to a lifecycle: a dialog states the consequence and the checkpoint, then the API is called once.

Why it exists: a word on a checkpoint must be about the checkpoint that was looked at. The dialog keeps the hash with
which it was opened, shows it whole and sends that one, so a newer candidate is never approved by an older look. The
idempotency key is made when the dialog opens. The API alone decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, markup, theme, words
from dashboards.views import lifecycle_words as lw

Row = Mapping[str, Any]

DIALOG = "lifecycle_dialog"
FAILED = "lifecycle_dialog_error"
TOLD = "lifecycle_told"
PLAN = "lifecycle_clone_yaml"
STAGE_VERBS = ("approve", "refuse", "retry")
LABELS = {
    "approve": "Approve",
    "refuse": "Refuse the stage",
    "retry": "Try again",
    "pause": "Pause",
    "resume": "Resume",
    "cancel": "Cancel the lifecycle",
    "clone": "Clone",
    "promote": "Move the alias",
}
TITLES = {
    "approve": "Approve {stage}?",
    "refuse": "Refuse {stage}?",
    "retry": "Try {stage} again",
    "pause": "Pause {name}?",
    "resume": "Resume {name}?",
    "cancel": "Cancel {name}?",
    "clone": "Clone {name}",
    "promote": "Move an alias of {name}",
}
DONE = {
    "approve": "{stage} is approved.",
    "refuse": "{stage} is refused.",
    "retry": "{stage} is tried again.",
    "pause": "{name} is being paused.",
    "resume": "{name} goes on.",
    "cancel": "{name} is being cancelled.",
    "promote": "{alias} points at {hash}.",
}
RETRIES = {
    "again": "what failed or was stopped, from where it came to",
    "fresh": "its training from the beginning, with another seed",
    "evaluation": "its evaluation alone",
}
OTHER_FRESH = "its own job, from the checkpoint that it starts from"


def open_dialog(verb: str, view: Row, stage: Row | None = None) -> None:
    """Remember which dialog is open, for which checkpoint, with the key its request will carry."""
    st.session_state[DIALOG] = {
        "verb": verb,
        "id": str(view["id"]),
        "stage": str(stage["name"]) if stage else "",
        "hash": str(((stage or {}).get("candidate") or {}).get("hash") or ""),
        "key": theme.new_key(),
    }
    st.session_state.pop(FAILED, None)
    st.session_state.pop(PLAN, None)
    st.rerun()


def close_dialog() -> None:
    """Forget the dialog; dismissing it does the same."""
    st.session_state.pop(DIALOG, None)
    st.session_state.pop(FAILED, None)


def available(view: Row) -> dict[str, str]:
    """Why each verb of the whole lifecycle is not possible now; empty where it is."""
    status, desired = str(view.get("status")), str(view.get("desired"))
    ended = f"it has {status}; clone it" if status in ("succeeded", "failed") else ""
    ended = ended or ("it was cancelled; clone it" if status == "cancelled" else "")
    going = "it is being cancelled" if desired == "cancel" and not ended else ""
    return {
        "pause": ended or going or ("it is paused" if desired == "pause" else ""),
        "resume": ended or going or ("" if desired == "pause" else "it is not paused"),
        "cancel": ended or going,
        "clone": "",
    }


def stage_reasons(view: Row, stage: Row) -> dict[str, str]:
    """Why each verb of a stage is not possible now; empty where the API offers it."""
    can, name, state = stage.get("can") or (), str(stage.get("name")), str(stage.get("state"))
    barred = available(view)["cancel"]
    if state != "held":
        why = f"stage {name} is {state}: it waits for nobody"
        return dict.fromkeys(STAGE_VERBS, barred or why)
    reasons = {}
    for verb in STAGE_VERBS:
        why = "" if verb in can else _not_offered(verb, stage)
        reasons[verb] = barred or why
    return reasons


def _not_offered(verb: str, stage: Row) -> str:
    if not stage.get("can"):
        return "a person's word on it is being carried out"
    if verb == "retry":
        return "what it starts from is tainted: clone the lifecycle from the stage before"
    if (stage.get("candidate") or {}).get("tainted"):
        return "its checkpoint is tainted: nobody may approve it"
    return f"it is not held for a word on a checkpoint: {lw.stage_words(stage)[2]}"


def consequence(verb: str, view: Row, stage: Row | None = None, opened: Row | None = None) -> str:
    """What will happen, in the dialog's words."""
    name = str((stage or {}).get("name") or "")
    behind = [str(one["name"]) for one in view.get("stages") or () if name and name in (one.get("after") or ())]
    then = f" Then {' and '.join(behind)} can begin from it." if behind else ""
    about = lw.short((opened or {}).get("hash"))
    if verb == "approve":
        alias = f" Alias {stage['promote']} moves to it." if stage and stage.get("promote") else ""
        return (
            f"Stage {name} passes with checkpoint {about}.{alias}{then} The word holds once, for this checkpoint alone."
        )
    if verb == "refuse":
        lost = (
            f" {' and '.join(behind)} and all that waits for {'it' if len(behind) == 1 else 'them'}" if behind else ""
        )
        cut = f" and{lost} is cancelled" if behind else ""
        return f"Stage {name} fails with checkpoint {about}{cut}. It cannot be undone; a clone can begin before it."
    if verb == "retry":
        told = f"Stage {name} goes on, and its GPU-hours count anew. What it has saved so far stays on disk."
        loses = (opened or {}).get("hash") and "fresh" in retries(stage or {}) and (stage or {}).get("role") == "train"
        return f"{told} Trained from the beginning, it has {about} as its checkpoint no longer." if loses else told
    if verb == "pause":
        return "Its runs save a checkpoint and stop, and nothing else begins. Resume goes on from there."
    if verb == "resume":
        return "Its runs go on from their newest verified checkpoints, and stages begin again when their turn comes."
    if verb == "cancel":
        return "Its runs save and end for good, and all of its stages that have not passed are cancelled."
    return ""


def draw_dialog(view: Row) -> None:
    """Draw the dialog that is open for this lifecycle, if any."""
    opened = st.session_state.get(DIALOG)
    if not opened or opened["id"] != str(view["id"]):
        return
    stage = next((one for one in view.get("stages") or () if one["name"] == opened["stage"]), None)
    title = TITLES[opened["verb"]].format(name=view.get("name"), stage=opened["stage"])
    wide = opened["verb"] in ("clone", "promote")
    st.dialog(theme.plain(title), width="medium" if wide else "small", on_dismiss=close_dialog)(_body)(
        view, stage, opened
    )


def _body(view: Row, stage: Row | None, opened: Row) -> None:
    verb = str(opened["verb"])
    if told := consequence(verb, view, stage, opened):
        st.write(markup.plain(told))
    if verb in ("approve", "refuse"):
        _checkpoint(stage, opened)
        asked = "Why, although the gate refuses" if verb == "approve" and refused(stage) else "Why"
        st.text_input(asked, key="lifecycle_why", placeholder="what the next reader should know")
    elif verb == "retry":
        st.radio("Do again", retries(stage or {}), key="lifecycle_again", format_func=lambda how: retried(how, stage))
    elif verb == "cancel":
        st.text_input(f"Type {theme.plain(str(view.get('name')))} to cancel it", key="lifecycle_typed")
    elif verb == "clone":
        _clone_fields(view)
    elif verb == "promote":
        _promote_fields(view)
    if st.session_state.get(FAILED):
        st.error(markup.plain(st.session_state[FAILED]))
    with st.container(horizontal=True):
        st.button(LABELS[verb], type="primary", key="lifecycle_do", on_click=act, args=(view, stage, opened))
        st.button("Close", key="lifecycle_close", on_click=_close)


def _checkpoint(stage: Row | None, opened: Row) -> None:
    """The checkpoint that the word is about, whole; said when the stage has another one by now."""
    st.code(str(opened["hash"]) or "no checkpoint", language=None, wrap_lines=True)
    if stage is None:
        return
    if str((stage.get("candidate") or {}).get("hash") or "") != opened["hash"]:
        st.warning("The stage has another checkpoint by now. Close this and look at it first.")
    if refused(stage):
        st.html(f'<p class="tt-muted">{theme.escape(str((stage.get("gate") or {}).get("sentence") or ""))}</p>')


def refused(stage: Row | None) -> bool:
    """Whether the gate's requirements refuse the stage."""
    return bool(stage) and (stage or {}).get("hold") == "refused"


def retries(stage: Row) -> list[str]:
    """Which ways of trying again make sense for a stage; where nothing failed the one that costs least comes first."""
    evaluated = any(run.get("role") == "evaluate" for run in stage.get("runs") or ())
    candidate = stage.get("candidate") or {}
    anew = ["fresh"] if stage.get("role") == "train" else []
    evaluation = ["evaluation"] if evaluated and candidate and not candidate.get("tainted") else []
    if stage.get("hold") in ("approval", "refused"):
        return evaluation + anew or ["fresh"]
    return ["again", *anew, *evaluation]


def retried(how: str, stage: Row | None) -> str:
    """A way of trying a stage again, in words."""
    other = how == "fresh" and (stage or {}).get("role") != "train"
    return OTHER_FRESH if other else RETRIES[how]


def _clone_fields(view: Row) -> None:
    st.write("A new lifecycle of the same plan. The stages before the chosen one keep what they passed with.")
    names = [str(one["name"]) for one in view.get("stages") or ()]
    hashes = {str(one["name"]): (one.get("candidate") or {}).get("hash") for one in view.get("stages") or ()}
    source = {str(one["name"]): one.get("from") for one in view.get("stages") or ()}

    def named(name: str) -> str:
        kept = hashes.get(str(source.get(name)))
        return f"{name}, from {lw.short(kept)}" if kept else name

    current = str(view.get("stage") or "")
    at = names.index(current) if current in names else 0
    st.selectbox("Begin with", names, index=at, key="lifecycle_begin", format_func=named)
    if st.toggle("change the plan", key="lifecycle_change"):
        st.session_state.setdefault(PLAN, str(view.get("yaml") or ""))
        st.text_area("YAML", key=PLAN, height=360, label_visibility="collapsed")


def _promote_fields(view: Row) -> None:
    known = {str(one["alias"]): str(one.get("checkpoint_hash") or "") for one in view.get("aliases") or ()}
    nodes = promotable(data.last(f"lifecycles/{view['id']}/lineage") or {})
    alias = st.selectbox("Alias", list(known), key="lifecycle_alias", accept_new_options=True, placeholder="a name")
    chosen = st.selectbox("Checkpoint", list(nodes), key="lifecycle_to", format_func=nodes.__getitem__)
    if alias and chosen:
        before = known.get(str(alias))
        moves = f"moves from {lw.short(before)}" if before else "is new; it points"
        st.write(markup.plain(f"{alias} {moves} to {lw.short(chosen)}. Stages that have begun keep their checkpoint."))


def promotable(lineage: Row) -> dict[str, str]:
    """Checkpoints at which an alias may point, newest first: hash → its words. Only verified ones are offered."""
    rows = [one for one in lineage.get("nodes") or () if one.get("state") == "validated" and not one.get("tainted")]
    rows = sorted(rows, key=lambda one: (bool(one.get("candidate")), float(one.get("at_s") or 0.0)), reverse=True)
    return {
        str(one["hash"]): f"{lw.short(one['hash'])}, {one.get('stage')}, step {words.number(one.get('step'))}"
        for one in rows
    }


def request(view: Row, stage: Row | None, opened: Row) -> tuple[str, dict[str, Any], str]:
    """(path, body, why not) of the open dialog's act from its fields."""
    verb, state = str(opened["verb"]), st.session_state
    base = f"lifecycles/{opened['id']}"
    if verb in ("approve", "refuse"):
        why = str(state.get("lifecycle_why") or "").strip()
        missing = "Say why it is approved although the gate refuses." if verb == "approve" and refused(stage) else ""
        body = {"hash": opened["hash"], "reason": why}
        return f"{base}/stages/{opened['stage']}/{verb}", body, "" if why else missing
    if verb == "retry":
        how = str(state.get("lifecycle_again") or retries(stage or {})[0])
        body = {"fresh": how == "fresh", "evaluation": how == "evaluation"}
        return f"{base}/stages/{opened['stage']}/retry", body, ""
    if verb == "cancel":
        same = str(state.get("lifecycle_typed") or "").strip() == str(view.get("name"))
        return f"{base}/cancel", {}, "" if same else f"Type {view.get('name')} as it is written."
    if verb == "clone":
        body = {"begin": str(state.get("lifecycle_begin") or "")}
        changed = state.get("lifecycle_change") and str(state.get(PLAN) or "").strip()
        return f"{base}/clone", {**body, "yaml": str(state[PLAN])} if changed else body, ""
    if verb == "promote":
        alias, to = str(state.get("lifecycle_alias") or "").strip(), str(state.get("lifecycle_to") or "")
        return (
            f"{base}/promote",
            {"alias": alias, "hash": to},
            "" if alias and to else "Name an alias and a checkpoint.",
        )
    return f"{base}/{verb}", {}, ""


def act(view: Row, stage: Row | None, opened: Row) -> None:
    """Send the open dialog's act once; a refusal keeps the dialog open with its reason."""
    path, body, why_not = request(view, stage, opened)
    if why_not:
        st.session_state[FAILED] = why_not
        return
    try:
        answer = data.post(path, body, idempotency_key=str(opened["key"]))
    except data.ApiError as error:
        st.session_state[FAILED] = data.reason(error)
        # what is sent next may say something else and is another request then
        if error.status not in (0, 502):
            st.session_state[DIALOG] = {**opened, "key": theme.new_key()}
        return
    close_dialog()
    if opened["verb"] == "clone":
        theme.go("lifecycle", {"lifecycle": str(answer["id"])})
        return
    names = {"name": view.get("name"), "stage": opened["stage"], "alias": body.get("alias")}
    st.session_state[TOLD] = theme.plain(DONE[opened["verb"]].format(**names, hash=lw.short(body.get("hash"))))
    st.rerun()


def _close() -> None:
    close_dialog()
    st.rerun()


def buttons(verbs: Sequence[tuple[str, str]], reasons: Mapping[str, str], view: Row, stage: Row | None = None) -> None:
    """A button a verb, in this order; a disabled one says why. The first one that can be pressed to go on is blue."""
    may = data.may_act()
    for label, verb in verbs:
        why = reasons[verb] or may
        st.button(
            label,
            key=f"lifecycle_{verb}",
            type="primary" if verb == "approve" and not why else "secondary",
            disabled=bool(why),
            help=theme.plain(why) or None,
            on_click=open_dialog,
            args=(verb, view, stage),
        )
