"""The Fleet page: every GPU as a cell, what is not healthy worst first, and one node beside the grid.

Why it exists: one bad GPU among a thousand has to be seen before it is read about. The grid is live and costs no rerun;
the node in the address (`?node=…`) stands beside it with what happened and what can be done.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import charts, data, markup, theme, words
from dashboards.views import fleet_node, node_acts, now_rows

Row = Mapping[str, Any]

MEASURES: Mapping[str, charts.Measure] = {
    "State": "state",
    "Power": "power",
    "Temperature": "temperature",
    "ECC": "ecc",
    "XGMI": "xgmi",
    "NIC": "nic",
    "Job": "job",
}
GRID_HEIGHT = 456
WORST = ("fault", "warning", "nodata", "drained", "idle", "training")
SHOWN_UNHEALTHY = 12
# What is said of a node whose state comes without a reason.
UNSAID = {
    "fault": "a GPU is at fault, no finding given",
    "warning": "a GPU to watch, no finding given",
    "drained": "takes no new work",
    "nodata": "silent",
}


def page() -> None:
    """Draw the fleet, and the node that the address names beside it."""
    node_acts.tell()
    try:
        nodes = data.get("nodes").get("nodes") or []
    except data.ApiError as error:
        theme.problem(error)
        return
    measure = _head(nodes)
    if not nodes:
        theme.empty("No node has reported yet. An agent enrols one: trimtab-agent --server … --token …")
        return
    named = st.query_params.get("node")
    if not named:
        _grid(measure, None)
        return
    left, right = st.columns([73, 27], gap="medium")
    with left:
        _grid(measure, named)
    with right:
        fleet_node.drawer(named)
    node_acts.draw_dialog()


def _head(nodes: Sequence[Row]) -> charts.Measure:
    with theme.head_row():
        choice = st.segmented_control(
            "Measure",
            list(MEASURES),
            key="measure",
            default="State",
            required=True,
            label_visibility="collapsed",
            bind="query-params",
        )
        with st.container(key="fleet_sentence", width="stretch"):
            _sentence()
        with st.container(key="fleet_age", width=150):
            charts.badge("/frames/fleet", key="fleet_age_badge")
        if any(row.get("simulated") for row in nodes):
            theme.badges(None, simulated=True)
    return MEASURES.get(str(choice), "state")


@st.fragment(run_every=5)
def _sentence() -> None:
    answer = theme.load("nodes")
    if answer is not None:
        theme.sentence(*sentence_of(answer.get("nodes") or []))


def node_level(row: Row) -> str:
    """The worst state of a node's GPUs, or that it is silent or out."""
    states = {str(gpu.get("state")) for gpu in row.get("gpus") or ()}
    if row.get("findings") and not states & {"fault", "warning"}:
        severities = {str(found.get("severity")) for found in row["findings"] if isinstance(found, Mapping)}
        return "fault" if severities & {"critical", "error"} else "warning"
    if row.get("cordoned") and not states & {"fault", "warning"}:
        return "drained"
    return next((state for state in WORST if state in states), "nodata")


def sentence_of(nodes: Sequence[Row]) -> tuple[str, str, str]:
    """(lead, rest, level): which nodes are out, which are silent; else that all are well."""
    levels = {str(row["name"]): node_level(row) for row in nodes}
    out = [name for name, level in levels.items() if level == "fault"]
    watch = [name for name, level in levels.items() if level == "warning"]
    silent = [str(row["name"]) for row in nodes if levels[str(row["name"])] == "nodata"]
    drained = [name for name, level in levels.items() if level == "drained"]
    rest = []
    if silent:
        rest.append(f"{named(silent)} {'is' if len(silent) == 1 else 'are'} silent: last known values.")
    if drained:
        rest.append(f"{named(drained)} {'takes' if len(drained) == 1 else 'take'} no new work.")
    if out:
        return f"{words.plural(len(out), 'node')} out: {named(out)}.", " ".join(rest), "fault"
    if watch or silent:
        lead = f"{words.plural(len(watch), 'node')} to watch: {named(watch)}." if watch else "No node is out."
        return lead, " ".join(rest), "warn"
    if not nodes:
        return "No node yet.", "", "ok"
    return f"All {words.plural(len(nodes), 'node')} are healthy.", " ".join(rest), "ok"


def named(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _grid(measure: charts.Measure, node: str | None) -> None:
    _grid_head()
    charts.fleet(key="fleet_grid", measure=measure, node=node, height=GRID_HEIGHT, picked=_picked)
    left, right = st.columns([58, 42], gap="medium")
    with left:
        _unhealthy()
    with right:
        for name in ("temperature", "power"):
            theme.section(name.capitalize(), "all GPUs, legend and histogram in one")
            charts.histogram("temperature" if name == "temperature" else "power", key=f"histogram_{name}")


def _picked(choice: Mapping[str, Any]) -> None:
    """A click opens the node, Esc closes it."""
    if choice.get("node"):
        st.query_params["node"] = str(choice["node"])
    else:
        st.query_params.pop("node", None)


@st.fragment(run_every=5)
def _grid_head() -> None:
    answer = theme.load("nodes", quiet=True)
    if answer is None:
        return
    nodes = answer.get("nodes") or []
    gpus = max((len(row.get("gpus") or ()) for row in nodes), default=0)
    heading = f"{words.plural(len(nodes), 'node')} × {gpus} GPUs"
    st.html(now_rows.section_with_legend(heading, "a column is a node, a row a GPU index", counts_of(nodes)))


def counts_of(nodes: Sequence[Row]) -> dict[str, int]:
    """How many GPUs are in each state."""
    states = [str(gpu.get("state")) for row in nodes for gpu in row.get("gpus") or ()]
    return {name: states.count(name) for name in WORST}


@st.fragment(run_every=5)
def _unhealthy() -> None:
    answer = theme.load("nodes", quiet=True)
    if answer is None:
        return
    rows = unhealthy(answer.get("nodes") or [])
    theme.section("Not healthy", f"{words.plural(len(rows), 'finding')}, worst first")
    if not rows:
        st.html('<p class="tt-muted">Every node is healthy.</p>')
        return
    heads = (
        ("node / GPU", "tt-nowrap"),
        ("finding", ""),
        ("since", "tt-num"),
        ("system", "tt-quiet"),
        ("job", "tt-nowrap"),
    )
    st.html(f'<div class="tt-scroll">{markup.table(heads, [cells(row) for row in rows[:SHOWN_UNHEALTHY]])}</div>')
    if len(rows) > SHOWN_UNHEALTHY:
        st.html(f'<p class="tt-muted">and {len(rows) - SHOWN_UNHEALTHY} more</p>')


def unhealthy(nodes: Sequence[Row]) -> list[dict[str, Any]]:
    """A row a finding, worst first; a node that is out or silent without one gets a row of its own."""
    found: list[dict[str, Any]] = []
    for node in nodes:
        level = node_level(node)
        base = {
            "node": node["name"],
            "run": node.get("run"),
            "system": system_words(node),
            "since_s": None,
            "gpu": None,
        }
        findings = [row for row in node.get("findings") or () if isinstance(row, Mapping)]
        for row in findings:
            severity = str(row.get("severity") or "warning")
            text = str(row.get("sentence") or row.get("rule") or "")
            found.append(
                {**base, "level": severity, "text": text, "gpu": fleet_node.gpu_of(row), "since_s": since_of(row)}
            )
        if not findings and level in ("fault", "warning", "nodata", "drained"):
            silent = f"silent for {words.age(node.get('age_s'))}" if level == "nodata" else ""
            why = str(node.get("state_reason") or "")
            text = silent or (f"{UNSAID[level]}: {why}" if why else UNSAID[level])
            gpu = next((row.get("index") for row in node.get("gpus") or () if row.get("state") == level), None)
            since = node.get("age_s") if level == "nodata" else None
            more = {"gpu": gpu if level in ("fault", "warning") else None, "since_s": since}
            found.append({**base, **more, "level": {"drained": "off"}.get(level, level), "text": text})
    order = {"fault": 0, "warn": 1, "nodata": 2, "off": 3, "ok": 4}
    return sorted(found, key=lambda row: order[markup.level_name(row["level"])])


def since_of(finding: Row) -> float | None:
    """How long a finding has stood, in seconds."""
    for name in ("age_s", "since_s"):
        if finding.get(name) is not None:
            value = float(finding[name])
            return data.now() - value if value > 1e9 else value
    onset = finding.get("onset_s") or finding.get("opened_s")
    return data.now() - float(onset) if onset else None


def system_words(node: Row) -> str:
    """What the system has done about a node."""
    state = str(node.get("state") or "")
    if node.get("cordoned"):
        return "cordoned" if state == "healthy" else f"{state}, cordoned"
    return "watch" if state == "healthy" else state


def cells(row: Row) -> list[str]:
    """One row of the table, escaped."""
    gpu = "" if row.get("gpu") is None else f" / {row['gpu']}"
    name = markup.link(f"{row['node']}{gpu}", "fleet", {"node": row["node"]}, "tt-strong")
    job = markup.link(row["run"], "job", {"run": row["run"]}) if row.get("run") else "–"
    return [
        f"{markup.glyph(row['level'])} {name}",
        theme.escape(str(row["text"])),
        words.age(row.get("since_s")),
        theme.escape(str(row["system"])),
        job,
    ]
