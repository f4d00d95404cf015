"""One node beside the grid: its GPUs, what happened, what it is, and what an operator may do to it.

Why it exists: the way from a red cell to an act must not leave the page. The acts themselves are node_acts'; drills
exist only for simulated nodes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import data, markup, theme, words
from dashboards.views import fleet_devices, node_acts
from dashboards.views.kept import latest

Row = Mapping[str, Any]

STATE_LEVELS = {"healthy": "ok", "suspect": "warn", "quarantined": "fault"}
GPU_LEVELS = {"fault": "fault", "warning": "warn", "drained": "off", "nodata": "nodata"}
SHOWN_EVENTS = 8
ORDINARY = frozenset({"Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"})
"""conditions that are said only when they are not as they should be; others (AMD's operator's, say) always are"""


def gpu_of(finding: Row) -> int | None:
    """The GPU's number of a finding, from its own field or its entity (gpu3); None when it names none."""
    if isinstance(finding.get("gpu"), int):
        return int(finding["gpu"])
    entity = str(finding.get("entity") or "").rpartition("/")[2]
    return int(entity[3:]) if entity.startswith("gpu") and entity[3:].isdigit() else None


@st.fragment(run_every=5)
def drawer(name: str) -> None:
    """Everything about one node; a name that is not known says so."""
    node = theme.load(f"nodes/{name}", quiet=True)
    if node is None:
        st.button("Close", key="node_close", on_click=close)
        return
    _head(node)
    st.html(f'<p class="tt-sentence">{reason(node)}</p>')
    st.html(f'<div class="tt-scroll">{gpu_table(node)}</div>')
    events = node.get("timeline") or []
    if events:
        theme.section("What happened", "")
        st.html(happened(events, headline(node)))
    _platform(name)
    theme.section("Facts", "")
    st.html(facts(node))
    if found := fleet_devices.unlike(node) + fleet_devices.blind(node):
        st.html(found)
    _acts(node)
    _devices(node)


def _devices(node: Row) -> None:
    """One part of what the agent knows; which one is in the address, so that a link shows it."""
    choice = st.segmented_control(
        "Part",
        list(fleet_devices.PARTS),
        key="part",
        default="Memory",
        required=True,
        label_visibility="collapsed",
        bind="query-params",
    )
    st.html(fleet_devices.PARTS.get(str(choice), fleet_devices.memory)(node))


def _platform(name: str) -> None:
    """What the cluster says of the node, where it is in one."""
    answer = latest(f"nodes/{name}/platform") or {}
    for one in answer.get("platforms") or ():
        theme.section("Kubernetes", str(one.get("backend")) if one.get("backend") != "kube" else "")
        st.html(platform_block(one))
    for problem in answer.get("problems") or ():
        st.html(f'<p class="tt-faint">{theme.escape(f"The cluster cannot be asked: {problem}")}</p>')


def platform_block(one: Row) -> str:
    """Ready or not, whose the cordon is, who else keeps pods off, and every condition that is not as it should be."""
    rows: list[tuple[str, object]] = [
        ("ready", "yes" if one.get("ready") else "no"),
        ("takes pods", "yes" if one.get("schedulable") else f"cordoned {one.get('cordon') or ''}".rstrip()),
        ("kept off by", one.get("others")),
        (
            "kubelet's lease",
            f"{words.age(one['lease_age_s'])} old" if one.get("lease_age_s") is not None else "not known",
        ),
    ]
    for condition in one.get("conditions") or ():
        wrong = condition["status"] != ("True" if condition["type"] == "Ready" else "False")
        if wrong or condition["type"] not in ORDINARY:
            told = " · ".join(str(condition[part]) for part in ("status", "reason", "message") if condition.get(part))
            rows.append((str(condition["type"]), told))
    cells = "".join(
        f"<span>{theme.escape(name)}</span><b>{theme.escape(str(value))}</b>" for name, value in rows if value
    )
    return f'<div class="tt-facts">{cells}</div>'


def _head(node: Row) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="tt_section_node"):
        st.html(markup.title("", "", str(node["name"]), state_words(node), ""), width="stretch")
        st.button("Close", key="node_close", on_click=close, type="tertiary")


def state_words(node: Row) -> tuple[str, str, str]:
    """(level, glyph, words) of whether a node serves; one that serves with a finding is not called healthy."""
    state, cordoned = str(node.get("state") or "unknown"), bool(node.get("cordoned"))
    level = "off" if cordoned and state == "healthy" else STATE_LEVELS.get(state, "warn")
    text = f"{state}, cordoned" if cordoned else state
    if state == "healthy" and headline(node):
        severities = {markup.level_name(row.get("severity")) for row in node["findings"] if isinstance(row, Mapping)}
        level, text = "fault" if "fault" in severities else "warn", "cordoned" if cordoned else "in service"
    return level, markup.GLYPHS[level], text


def close() -> None:
    """The address names no node any more."""
    st.query_params.pop("node", None)
    node_acts.close_dialog()


def headline(node: Row) -> str:
    """What was found on the node; empty when nothing stands against it. A person's note is no finding."""
    findings = [row for row in node.get("findings") or () if isinstance(row, Mapping)]
    return str(findings[0].get("sentence") or findings[0].get("rule") or "") if findings else ""


def reason(node: Row) -> str:
    """Why the node is as it is, as markup: what is wrong in bold, else what it does."""
    if found := headline(node):
        return f"<b>{theme.escape(found)}</b>"
    run = node.get("run")
    if run:
        return f"It trains {markup.link(run, 'job', {'run': run})}."
    if str(node.get("state") or "healthy") == "quarantined":
        return "Nothing stands against it now; it is out of service until a person returns it."
    return "It is idle and may take work." if not node.get("cordoned") else "It takes no new work."


def gpu_table(node: Row) -> str:
    """A row a GPU, escaped; unknown is a dash."""
    heads = (
        ("GPU", "tt-num"),
        ("", ""),
        ("°C", "tt-num"),
        ("W", "tt-num"),
        ("HBM GiB", "tt-num"),
        ("ECC", "tt-num"),
        ("XGMI", "tt-num"),
    )
    rows = []
    for gpu in node.get("gpus") or ():
        level = GPU_LEVELS.get(str(gpu.get("state")), "")
        errors = gpu.get("ecc_uncorrectable")
        count = words.number(errors)
        rows.append(
            [
                theme.escape(str(gpu.get("index"))),
                markup.glyph(level) if level else "",
                words.number(gpu.get("temperature_hotspot_c")),
                words.number(gpu.get("power_w")),
                words.number(gpu.get("vram_used_gib"), 1),
                f'<span class="tt-fault-words">{count}</span>' if errors else count,
                words.number(gpu.get("xgmi_links_up")),
            ]
        )
    return markup.table(heads, rows, "tt-gpus")


def happened(events: list[Row], said: str = "") -> str:
    """The newest story of the node: the first line's clock, then offsets from it; `said` stands above it already."""
    shown = events[-SHOWN_EVENTS:]
    first = float(shown[0]["at_s"])
    lines = []
    for index, row in enumerate(shown):
        level = markup.level_name(row.get("level"))
        sign = markup.GLYPHS[level] if level in ("fault", "warn", "ok") and row.get("level") != "info" else "·"
        when = words.clock(first) if index == 0 else words.offset(float(row["at_s"]) - first)
        sentence, detail = str(row.get("sentence", "")), str(row.get("detail") or "")
        told = theme.escape(f"rule {detail} fires" if sentence == said and detail else sentence)
        lines.append(f'<time>{when}</time><i class="tt-{level}">{sign}</i><span>{told}</span>')
    return f'<div class="tt-happened">{"".join(lines)}</div>'


def facts(node: Row) -> str:
    """What the node is."""
    known = node.get("facts") or {}
    source = str(node.get("source") or "")
    rows = [
        ("model", known.get("gpu_model")),
        ("driver, VBIOS", " · ".join(str(known[name]) for name in ("driver", "vbios") if known.get(name))),
        ("firmware", known.get("firmware")),
        ("network", f"{node['nics_up']} of {node['nics']} links up" if node.get("nics") else None),
        ("job", node.get("run") or "none"),
        ("out of service", why_out(node)),
        ("source", f"{source}, simulated" if node.get("simulated") and source != "simulated" else source),
        ("last word", f"{words.age(node.get('age_s'))} ago" if node.get("age_s") is not None else None),
    ]
    return fact_rows(rows)


def fact_rows(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values, escaped; what is not known is left out."""
    known = [(theme.escape(name), theme.escape(str(value))) for name, value in rows if value]
    cells = "".join(f"<span>{name}</span><b>{value}</b>" for name, value in known)
    return f'<div class="tt-facts">{cells}</div>'


def why_out(node: Row) -> str:
    """The note with which the node was taken out; what the headline says already is not said again."""
    note, found = str(node.get("state_reason") or ""), headline(node)
    if not node.get("cordoned"):
        return ""
    return "for that finding" if found and found.rstrip(".") in note else note


def _acts(node: Row) -> None:
    name, may = str(node["name"]), data.may_act()
    well = not headline(node)
    with st.container(horizontal=True, gap="xsmall", key="node_acts"):
        if node.get("cordoned"):
            _act("Return to service…", "uncordon", name, may, primary=well)
        else:
            _act("Cordon…", "cordon", name, may)
        if node.get("state") != "drained":
            _act("Drain…", "drain", name, may)
        if node.get("simulated"):
            _act("Drill…", "drill", name, may)
    note = "Cordon stops nothing: what runs here goes on. Drain has it save and go on elsewhere."
    if node.get("cordoned"):
        note = "" if well else "Something still fires here: to return it all the same needs a reason."
    st.html(f'<p class="tt-faint">{theme.escape(may or note)}</p>')


def _act(label: str, verb: str, name: str, may: str, *, primary: bool = False) -> None:
    st.button(
        label,
        key=f"node_{verb}",
        type="primary" if primary else "secondary",
        disabled=bool(may),
        help=may or None,
        on_click=node_acts.open_dialog,
        args=(verb, name),
    )
