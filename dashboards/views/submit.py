"""The Submit page: a template or a preset, a form, and beside it at all times what the server says about it.

Why it exists: nobody should find out after an hour in a queue that a value was wrong. Each change asks the server for
the same checks that it runs at submit; the form, the YAML box and the command for a terminal are one draft.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import data, draft, theme, words
from dashboards.views import advice, job_cards, submit_form, submit_review
from dashboards.views.kept import latest, waiting
from dashboards.views.submit_form import PARTS, STATE, STEPS

Row = Mapping[str, Any]

YAML_WRONG = "submit_yaml_error"
KINDS = {
    "template": "Templates: they run as they are",
    "preset": "Presets: jobs for other trainers, with a model and data to put in",
}


def page() -> None:
    """Draw the draft of this session, begun from the template or the run that the address names."""
    theme.style("jobs.css")
    try:
        ship = shipped(data.get("templates"))
        _begin(ship)
    except data.ApiError:
        waiting("templates")
        return
    if STATE not in st.session_state:
        theme.empty("No template is installed.")
        return
    job = submit_form.current()
    answer = _validate(job)
    _head(job, answer)
    st.html(submit_review.sentence_block(answer))
    form, review = st.columns([36, 64], gap="large")
    with form:
        _form(ship, answer.get("problems") or [])
    with review:
        _review(job, answer)


def shipped(answer: Row) -> dict[str, str]:
    """The jobs that the server brings, by name: whether each is a template or a preset; templates first."""
    return {str(row["name"]): kind for kind in KINDS for row in answer.get(f"{kind}s") or ()}


def _begin(ship: Mapping[str, str]) -> None:
    """Start a draft once: from `?clone=run`, from `?template=name`, or from the first template."""
    clone, wanted = st.query_params.get("clone"), st.query_params.get("template")
    source = f"run {clone}" if clone else str(wanted or (st.session_state.get(STATE) or {}).get("template") or "")
    state = st.session_state.get(STATE)
    if state is not None and source in (state["source"], state["template"]):
        return
    if clone:
        run = data.get(f"runs/{clone}")
        base = dict(run["spec"])
        job = draft.with_value(base, "metadata.name", f"{run['name']}-again")
        st.session_state[STATE] = {"source": source, "template": source, "base": base, "draft": job}
        return
    if ship:
        _use_template(wanted if wanted is not None and wanted in ship else next(iter(ship)))


def _use_template(name: str) -> None:
    answer = data.get(f"templates/{name}")
    job = draft.from_yaml(str(answer["yaml"]))
    st.session_state[STATE] = {"source": name, "template": name, "base": job, "draft": job}
    _drop_yaml()


def _choose(name: str) -> None:
    """Begin anew from a template or a preset; what the address named before no longer counts."""
    for part in ("clone", "template"):
        st.query_params.pop(part, None)
    try:
        _use_template(name)
    except (data.ApiError, draft.DraftError) as error:
        st.session_state[STATE]["refused"] = str(error)


def _validate(job: Row) -> dict[str, Any]:
    """The server's answer; when it cannot be asked, a problem that says so, and no submission."""
    try:
        answer: dict[str, Any] = data.post("runs/validate", {"spec": dict(job)})
    except data.ApiError as error:
        reason = {"path": "server", "message": data.reason(error)}
        return {"problems": list(error.problems) or [reason], "checks": [], "candidates": [], "sentence": ""}
    return answer


def _blocked(answer: Row) -> str:
    if may := data.may_act():
        return may
    if st.session_state.get(YAML_WRONG) and st.session_state.get("submit_edit"):
        return "the YAML does not read, so the draft is still the one before it"
    wrong = list(answer.get("problems") or ()) + [
        row for row in answer.get("checks") or () if row.get("level") == "error"
    ]
    return f"{words.plural(len(wrong), 'thing')} to change first" if wrong else ""


def _head(job: Row, answer: Row) -> None:
    problems = answer.get("problems") or []
    wrong = {
        name: bool(parts) and any(draft.problems_at(problems, *part.paths) for part in parts) for name, parts in STEPS
    }
    name = str(draft.get(job, "metadata.name") or "")
    with theme.head_row():
        theme.title("", "", "Submit", None, "", extra=submit_review.step_bar(wrong))
        st.download_button(
            "Save as template",
            draft.to_yaml(job),
            f"{theme.file_name(name)}.yaml",
            "application/yaml",
            on_click="ignore",
        )
        with st.popover("Copy as CLI"):
            st.code(draft.as_command(job), language="bash")
        blocked = _blocked(answer)
        key = st.session_state[STATE].setdefault("key", theme.new_key())
        st.button(
            f"Submit {theme.plain(name)}",
            type="primary",
            key="submit_do",
            disabled=bool(blocked),
            help=blocked or None,
            on_click=_submit,
            args=(key,),
        )
        theme.live_badges("capacity")
    if refused := st.session_state[STATE].get("refused"):
        st.error(theme.plain(refused))


def _submit(key: str) -> None:
    """Submit the draft once and go to its page; a refusal stays on this page with its reason."""
    state = st.session_state[STATE]
    try:
        run = data.post("runs", {"spec": state["draft"]}, idempotency_key=key)
    except data.ApiError as error:
        state["refused"] = data.reason(error)
        return
    st.session_state.pop(STATE)
    theme.go("job", {"run": str(run["id"])})


def _form(ship: Mapping[str, str], problems: list[Row]) -> None:
    source = st.session_state[STATE]["source"]
    for number, part in enumerate(PARTS):
        note = "" if number else f"from {ship[source] + ' ' if source in ship else ''}{source}"
        st.html(submit_review.anchor(part.anchor))
        with theme.section_row(part.heading, note, key=f"submit_{part.anchor}"):
            if not number and len(ship) > 1:
                with st.popover("change", type="tertiary"):
                    _choice(ship)
        submit_form.draw(part, problems)


def _choice(ship: Mapping[str, str]) -> None:
    """A button for each job that the server brings, under what it is."""
    for kind, heading in KINDS.items():
        names = [name for name, of in ship.items() if of == kind]
        if names:
            st.caption(heading)
        for name in names:
            st.button(theme.plain(name), key=f"template:{name}", on_click=_choose, args=(name,))


def _review(job: Row, answer: Row) -> None:
    checks, problems = answer.get("checks") or [], answer.get("problems") or []
    st.html(submit_review.anchor("review"))
    theme.section("Checks", "the same the server runs at submit", submit_review.verdict(checks, problems))
    st.html(submit_review.check_block(checks, problems))
    left, right = st.columns([49, 51], gap="medium")
    with left:
        _changed(job)
    with right:
        _place(job, answer)


def _changed(job: Row) -> None:
    """The draft's YAML with what differs from its template; or the box to edit it."""
    base, text = draft.to_yaml(st.session_state[STATE]["base"]), draft.to_yaml(job)
    lines = draft.diff(base, text)
    count = words.plural(draft.changed_values(lines), "value")
    with theme.section_row("Changed", f"{count} against {st.session_state[STATE]['source']}", key="submit_changed"):
        st.toggle("edit YAML", key="submit_edit", on_change=_drop_yaml)
    if not st.session_state.get("submit_edit"):
        _drop_yaml()
        st.html(job_cards.diff_block(lines))
        return
    if wrong := st.session_state.get(YAML_WRONG):
        st.error(theme.plain(wrong))
    else:
        st.session_state["submit_yaml"] = text
    st.text_area("YAML", key="submit_yaml", height=520, on_change=_take_yaml, label_visibility="collapsed")


def _take_yaml() -> None:
    try:
        submit_form.set_draft(draft.from_yaml(st.session_state["submit_yaml"]))
    except draft.DraftError as error:
        st.session_state[YAML_WRONG] = str(error)
        return
    _drop_yaml()


def _drop_yaml() -> None:
    """Text that did not read is forgotten with its box: what is drawn then is the draft."""
    st.session_state.pop(YAML_WRONG, None)


def length_s(job: Row, answer: Row) -> float | None:
    """How long the server thinks the run takes: its GPU-hours on the GPUs that it asks for; None when nobody knows."""
    hours, gpus = answer.get("gpu_hours"), draft.get(job, "resources.gpusPerNode")
    nodes = draft.get(job, "resources.nodes")
    known = all(isinstance(value, int) and value > 0 for value in (gpus, nodes))
    return float(hours) * 3600 / (gpus * nodes) if hours is not None and known else None


def _place(job: Row, answer: Row) -> None:
    nodes = draft.get(job, "resources.nodes")
    count = nodes if isinstance(nodes, int) else 0
    candidates = answer.get("candidates") or []
    runs = (latest("runs", status="active", limit=20) or {}).get("runs") or []
    theme.section("Capacity", "who holds nodes, and until when", words.plural(len(candidates), "node"))
    name = str(draft.get(job, "metadata.name") or "this")
    st.html(submit_review.capacity_block(runs, name, count, candidates, length_s(job, answer)))
    fit = sum(bool(row.get("ok")) for row in candidates)
    theme.section("Candidate nodes", f"{fit} of {len(candidates)} are fit, {count} asked for")
    st.html(submit_review.candidate_block(candidates))
    cluster = answer.get("cluster") or {}
    if cluster.get("manifests"):
        theme.section("Manifests", "what the cluster would be sent", str(cluster.get("backend") or ""))
        with st.expander("YAML"):
            st.code(str(cluster["manifests"]), language="yaml")
    theme.section("Cost of a failure", advice.faint(answer.get("advice")))
    st.html(submit_review.failure_block(job, answer))
