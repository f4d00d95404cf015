"""The Incident pages' own blocks as markup: the sentence, the three lanes, the list, kernel lines, rules, deliveries.

Why it exists: an incident's text comes from kernels, rules and people; all of it passes `escape` here, and the order of
events is drawn without inline SVG (the page's sanitiser drops it): lanes are grid cells with a line through them.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from dashboards import markup, words
from dashboards.views.job_cards import glyph_chip, link

Row = Mapping[str, Any]

LANES = ("hardware", "rule", "run")
LANE_HEADS = ("hardw.", "rule", "run")
STATE_LEVEL: Mapping[str, tuple[str, str]] = {
    "resolved": ("ok", "●"),
    "closed": ("off", "○"),
    "merged": ("off", "○"),
}
SEVERITY_ORDER = {"critical": 0, "error": 1, "warning": 2}


def state_words(incident: Row) -> tuple[str, str, str]:
    """(level, glyph, words) of an incident: as grave as its severity while it lasts; who is on it."""
    state = str(incident.get("state"))
    level, glyph = STATE_LEVEL.get(state, ("off", "○"))
    if state in ("open", "acked"):
        level = markup.level_name(incident.get("severity") or "error")
        glyph = markup.GLYPHS[level]
    if state == "open":
        return level, glyph, "open, nobody on it"
    if state == "acked":
        return level, glyph, f"{incident.get('owner') or 'someone'} is on it"
    return level, glyph, state


def place(incident: Row) -> str:
    """Where it happened, in words: GPU 3 of node-017, the run, or the fleet."""
    node, gpu, entity = incident.get("node"), incident.get("gpu"), str(incident.get("entity") or "")
    if node and gpu is not None and int(gpu) >= 0:
        return f"GPU {gpu} of {node}"
    if node and entity.startswith("nic"):
        return f"NIC {entity.removeprefix('nic')} of {node}"
    return str(node or incident.get("run") or entity or "fleet")


def sentence_block(sentence: Row) -> str:
    """The incident in one sentence; what is left for the reader stands last and in another colour."""
    lead, rest, left = (str(sentence.get(part) or "") for part in ("lead", "rest", "left"))
    text = f"<b>{escape(lead)}</b> {escape(rest)}"
    if left:
        text += f' <span class="tt-left"><b>Left for you:</b> {escape(left)}</span>'
    return f'<p class="tt-lead tt-narrow">{words.tied(text)}</p>'


def folded(rows: Sequence[Row]) -> list[Row]:
    """Events with words; three or more neighbours of one quiet kind are one row that says how many followed."""
    kept: list[Row] = []
    told = [row for row in rows if row.get("sentence")]
    for (_, kind, level), group in groupby(told, lambda row: (row.get("lane"), row.get("kind"), row.get("level"))):
        members = list(group)
        if len(members) < 3 or not kind or (level or "info") != "info":
            kept += members
            continue
        last = str(members[-1]["sentence"])
        kept.append(
            {
                **members[0],
                "detail": f"and {len(members) - 1} more until {words.clock(members[-1].get('at_s'))}: {last}",
            }
        )
    return kept


def lanes(rows: Sequence[Row], origin_s: float | None, run_id: str = "", here: str = "") -> str:
    """What happened, in order: one row an event, its dot in the lane it belongs to, its time after `origin_s`.

    Links of the kind `here` are left out: they would lead to the page they stand on.
    """
    heads = "".join(f"<span>{name}</span>" for name in LANE_HEADS)
    parts = [f'<div class="tt-lane-row tt-lane-heads"><span></span>{heads}<span></span></div>']
    for row in folded(rows):
        lane = row.get("lane") if row.get("lane") in LANES else "run"
        level = str(row.get("level") or "info")
        cells = "".join(f'<span class="tt-lane">{_dot(level) if name == lane else ""}</span>' for name in LANES)
        time = escape(when(row.get("at_s"), origin_s))
        parts.append(
            f'<div class="tt-lane-row"><span class="tt-when">{time}</span>{cells}<span class="tt-what">'
            f"<b>{escape(str(row['sentence']))}</b><small>{_detail(row, run_id, here)}</small></span></div>"
        )
    return f'<div class="tt-lanes">{"".join(parts)}</div>'


def _detail(row: Row, run_id: str, here: str) -> str:
    target = row.get("link") or {}
    kind = str(target.get("kind", ""))
    address = link(kind, target.get("id", ""), run_id) if target and kind != here else ""
    linked = f'<a href="{escape(address)}" target="_self">{escape(kind)}</a>' if address else ""
    return " · ".join(part for part in (escape(str(row.get("detail") or "")), linked) if part)


def when(at_s: float | None, origin_s: float | None) -> str:
    """The clock at the origin, offsets around it; the clock again beyond an hour, where an offset says little."""
    if at_s is None:
        return "now"
    if origin_s is None or abs(at_s - origin_s) > words.HOUR_S:
        return words.clock(at_s)
    return words.clock(at_s, tenths=True) if at_s == origin_s else words.offset(at_s - origin_s)


def origin(rows: Sequence[Row]) -> float | None:
    """The time the offsets count from: the first fault, or the first event where none is a fault."""
    faults = [float(row["at_s"]) for row in rows if row.get("level") == "fault" and row.get("at_s") is not None]
    times = [float(row["at_s"]) for row in rows if row.get("at_s") is not None]
    return min(faults or times, default=None)


def _dot(level: str) -> str:
    if level == "info":
        return '<i class="tt-dot"></i>'
    return markup.glyph(level)


def kernel_block(lines: Sequence[Row]) -> str:
    """Kernel lines as the node sent them; those of priority 3 and below, the kernel's errors, in bold."""
    rows = []
    for line in lines:
        text = escape(str(line.get("text", "")))
        address = line.get("pci_address")
        priority = line.get("priority")
        if priority is not None and int(priority) <= 3:
            text = f"<b>{text}</b>"
        origin_text = f"{escape(str(address))} " if address and str(address) not in str(line.get("text", "")) else ""
        time = words.clock(line.get("at_s"), tenths=True)
        rows.append(f'<div><span class="tt-muted">{time}</span> {origin_text}{text}</div>')
    return f'<div class="tt-console">{"".join(rows)}</div>'


def experts_block(radius: Row, run: str) -> str:
    """The sentence, and the layers in which these experts carried most, linked to the last step before the fault."""
    first, last = (radius.get("steps") or (0, 0))[:2]
    layers = []
    for one in radius.get("fullest") or ():
        where = {"run": run, "layer": one.get("layer"), "step": last}
        linked = markup.link(f"layer {one.get('layer')}", "experts", where)
        layers.append(f"{linked} {100 * float(one['share']):.1f} %")
    lead = f'<p class="tt-lead tt-small">{escape(str(radius.get("sentence") or ""))}</p>'
    if float(radius.get("block_share") or 0.0) > 0.999:  # all experts lived there: no layer is fuller than another
        return lead
    span = f"steps {words.number(first)} to {words.number(last)}"
    return f'{lead}<p class="tt-muted">Fullest: {", ".join(layers)} of the layer’s tokens, over {span}.</p>'


INCIDENT_HEADS = (
    ("incident", ""),
    ("state", ""),
    ("what", "tt-wide"),
    ("where", "tt-muted"),
    ("rule", "tt-muted tt-mono"),
    ("run", ""),
    ("age", "tt-num tt-muted"),
)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """What is open first and the worst first, then by age."""
    return sorted(rows, key=_urgency)


def incident_rows(rows: Sequence[Row]) -> str:
    """One table; every row links to its page."""
    body = []
    for row in in_order(rows):
        level, sign, text = state_words(row)
        run = str(row.get("run") or "")
        again = f" · reopened {row['reopened']}×" if row.get("reopened") else ""
        where = {"number": row.get("number")}
        body.append(
            (
                markup.link(row.get("label"), "incident", where, "tt-strong"),
                glyph_chip(level, sign, text + again),
                markup.link(row.get("title") or "", "incident", where),
                escape(place(row)),
                escape(str(row.get("rule") or "")),
                markup.link(run, "job", {"run": run}) if run else "",
                words.age(row.get("age_s")),
            )
        )
    return markup.table(INCIDENT_HEADS, body, "tt-incidents")


def _urgency(row: Row) -> tuple[int, int, float]:
    states = {"open": 0, "acked": 1, "resolved": 2}
    return (
        states.get(str(row.get("state")), 3),
        SEVERITY_ORDER.get(str(row.get("severity")), 3),
        -float(row.get("opened_s") or 0.0),
    )


def rule_rows(rules: Sequence[Row]) -> str:
    """The rules in force: name, severity, what it does, and its sentence."""
    heads = (
        ("rule", "tt-nowrap"),
        ("severity", "tt-muted"),
        ("action", "tt-muted"),
        ("runs in", "tt-muted"),
        ("fires when", ""),
    )
    body = [
        (
            f'{markup.glyph(rule.get("severity"))} <span class="tt-mono">{_first(rule, "name", "rule", "id")}</span>',
            escape(str(rule.get("severity") or "")),
            escape(str(rule.get("action") or "")),
            escape(str(rule.get("runs_in") or "")),
            _first(rule, "sentence", "help", "title"),
        )
        for rule in rules
    ]
    return markup.table(heads, body)


def _first(row: Row, *names: str) -> str:
    """The first of these values that is there, escaped."""
    return escape(next((str(row[name]) for name in names if row.get(name)), ""))


def delivery_rows(rows: Sequence[Row], now_s: float) -> str:
    """Who was told, and what is still on its way."""
    levels = {"told": ("ok", "told"), "dead": ("fault", "given up"), "telling": ("info", "on its way")}
    heads = (("channel", ""), ("message", ""), ("state", ""), ("tries", "tt-muted"), ("last error", "tt-muted"))
    body = []
    for row in rows:
        level, text = levels.get(str(row.get("state")), ("off", "waits"))
        at = f" at {words.day_and_clock(row['told_s'], now_s)}" if row.get("told_s") else ""
        channel, error = escape(str(row.get("channel", ""))), escape(str(row.get("last_error") or ""))
        tries = words.plural(int(row.get("tries") or 0), "try", "tries")
        kind = escape(str(row.get("type") or "").removeprefix("incident."))
        body.append((f"{markup.glyph(level)} {channel}", kind, text + at, tries, error))
    return markup.table(heads, body)


def node_block(node: Row, gpu: object) -> str:
    """The node's GPUs in a row, each with its state in shape and colour; the one concerned is framed."""
    marks = {"fault": "×", "warning": "!", "drained": "–", "nodata": "?"}
    cells = []
    for row in node.get("gpus") or ():
        state = str(row.get("state"))
        here = " tt-here" if gpu is not None and row.get("index") == gpu else ""
        label = f"GPU {row.get('index')}: {state}"
        cells.append(
            f'<i class="tt-gpu tt-gpu-{escape(state)}{here}" title="{escape(label)}">{marks.get(state, "")}</i>'
        )
    name = escape(str(node.get("name", "")))
    words_of = [str(node.get("state") or ""), "cordoned" if node.get("cordoned") else ""]
    state = escape(", ".join(word for word in words_of if word))
    why = escape(str(node.get("state_reason") or ""))
    gpus = f'<span role="img" aria-label="{len(cells)} GPUs">{"".join(cells)}</span>'
    linked = f'<a href="{escape(link("node", node.get("name", "")))}" target="_self">{name}</a>'
    return f'<div class="tt-node">{linked}{gpus}<span class="tt-muted" title="{why}">{state}</span></div>'
