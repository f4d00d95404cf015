"""A new lifecycle from a template or from pasted YAML: what the server says of it stands beside it before it is sent.

Why it exists: a plan of ten stages with one wrong path fails days later. Each change asks the server for all problems
at once, each behind its path, for the stages as they would run, and for what differs from the last of the same name.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import data, theme, words
from dashboards.views import lifecycle_cards, lifecycle_track
from dashboards.views import lifecycle_words as lw
from dashboards.views.kept import waiting

Row = Mapping[str, Any]

STATE = "lifecycle_draft"
BOX = "lifecycle_yaml"
PASTE = "paste"
BEGIN = "apiVersion: trimtab/v1\nkind: Lifecycle\nmetadata: {name: my-lifecycle}\nspec:\n  stages: []\n"


def draw(source: str) -> None:
    """The form, begun once from the template that the address names."""
    try:
        templates = data.get("lifecycle-templates")["templates"]
        _begin(source)
    except data.ApiError:
        waiting("lifecycle-templates")
        return
    text = str(st.session_state[STATE]["text"])
    answer = validate(text)
    _head(answer)
    problems = answer.get("problems") or []
    glyph = '<i class="tt-glyph tt-fault">×</i> ' if problems else ""
    st.html(f'<p class="tt-lead tt-narrow">{glyph}{theme.escape(str(answer.get("sentence") or ""))}</p>')
    form, review = st.columns([40, 60], gap="large")
    with form:
        _form(source, [str(one["name"]) for one in templates])
    with review:
        _review(answer)


def _begin(source: str) -> None:
    state = st.session_state.get(STATE)
    if state is not None and state["source"] == source:
        return
    text = BEGIN if source == PASTE else str(data.get(f"lifecycle-templates/{source}")["yaml"])
    st.session_state[STATE] = {"source": source, "text": text}
    st.session_state.pop(BOX, None)


def validate(text: str) -> dict[str, Any]:
    """The server's answer; when it cannot be asked, a problem that says so, and no submission."""
    try:
        answer: dict[str, Any] = data.post("lifecycles/validate", {"yaml": text})
    except data.ApiError as error:
        problems = list(error.problems) or [{"path": "server", "message": data.reason(error)}]
        return {"problems": problems, "sentence": "The server cannot say what this plan would do.", "stages": []}
    return answer


def blocked(answer: Row) -> str:
    """Why the plan cannot be submitted; empty when it can."""
    if may := data.may_act():
        return may
    problems = answer.get("problems") or ()
    return f"{words.plural(len(problems), 'thing')} to change first" if problems else ""


def _head(answer: Row) -> None:
    why = blocked(answer)
    state = st.session_state[STATE]
    key = state.setdefault("key", theme.new_key())
    with theme.head_row():
        theme.title("Lifecycles", "lifecycles", "New lifecycle", None, "")
        with st.popover("Copy as CLI"):
            st.code(as_command(str(state["text"])), language="bash")
        st.button(
            "Submit lifecycle",
            type="primary",
            key="lifecycle_submit",
            disabled=bool(why),
            help=theme.plain(why) or None,
            on_click=_submit,
            args=(key,),
        )
        theme.live_badges()
    if refused := state.get("refused"):
        st.error(theme.plain(str(refused)))


def as_command(text: str) -> str:
    """The same submission for a shell: the YAML on standard input, quoted so that no shell reads its lines."""
    end = "TRIMTAB"
    while end in text:
        end += "_"
    return f"trimtab lifecycle submit - <<'{end}'\n{text.rstrip()}\n{end}\n"


def _submit(key: str) -> None:
    """Submit the plan once and go to its page; a refusal stays here with its reason."""
    state = st.session_state[STATE]
    try:
        made = data.post("lifecycles", {"yaml": state["text"]}, idempotency_key=key)
    except data.ApiError as error:
        state["refused"] = data.reason(error)
        return
    st.session_state.pop(STATE)
    theme.go("lifecycle", {"lifecycle": str(made["id"])})


def _form(source: str, names: list[str]) -> None:
    with theme.section_row("Plan", "a template, or YAML of your own", key="lifecycle_plan"):
        options = [*names, PASTE]
        st.session_state["lifecycle_source"] = source if source in options else None
        st.selectbox(
            *("From", options),
            key="lifecycle_source",
            on_change=_choose,
            width=210,
            label_visibility="collapsed",
            format_func=lambda name: "paste a plan" if name == PASTE else name,
        )
    st.session_state[BOX] = str(st.session_state[STATE]["text"])
    st.text_area("YAML", key=BOX, height=620, on_change=_take, label_visibility="collapsed")


def _choose() -> None:
    if st.session_state.get("lifecycle_source"):
        st.query_params["new"] = st.session_state["lifecycle_source"]


def _take() -> None:
    """What was written is another plan and another submission."""
    state = st.session_state[STATE]
    state["text"] = str(st.session_state[BOX])
    state.pop("key", None)
    state.pop("refused", None)


def _review(answer: Row) -> None:
    problems, stages = answer.get("problems") or [], answer.get("stages") or []
    if problems:
        theme.section("Problems", "all of them, as the server would refuse it", words.plural(len(problems), "problem"))
        st.html(lifecycle_cards.problem_block(problems))
    if stages:
        theme.section("Stages", "as they would run", words.plural(len(stages), "stage"))
        st.html(lifecycle_track.planned(stages))
        st.html(f'<div class="tt-scroll">{lifecycle_cards.plan_table(stages)}</div>')
    against, changes = answer.get("against"), answer.get("diff") or []
    if against:
        since = words.day_and_clock(against.get("created_s"), data.now())
        theme.section("Changed", f"against {against.get('name')} of {since} UTC", words.plural(len(changes), "value"))
        if changes:
            st.html(lifecycle_cards.diff_view(changes))
        else:
            st.html('<p class="tt-muted">Nothing: it is the same plan.</p>')
    elif stages:
        theme.section("Changed", "", "")
        st.html(f'<p class="tt-muted">{lw.FIRST}</p>')
