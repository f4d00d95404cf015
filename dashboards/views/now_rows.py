"""The Now page's rows as markup: what needs a person, what runs, what is open. Pure; everything is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import markup, words

Row = Mapping[str, Any]

LEGEND = (
    ("training", '<i style="background:var(--tt-training)"></i>', "training"),
    ("idle", '<i style="background:var(--tt-idle);outline:1px solid var(--tt-training)"></i>', "idle"),
    ("warning", '<b class="tt-warn-words">!</b> ', "warning"),
    ("fault", '<b class="tt-fault-words">×</b> ', "fault"),
    ("drained", '<i style="outline:1px solid var(--tt-strong-rule)"></i>', "drained"),
    ("nodata", '<i class="tt-hatched"></i>', "no data"),
)
RUN_LEVELS = {"active": "ok", "failed": "fault", "needs_human": "warn"}


def need(row: Row) -> str:
    """What needs a person, how long already, and who has it."""
    since = words.age(row.get("since_s")) if row.get("since_s") is not None else ""
    owner = str(row.get("owner") or "nobody on it")
    who = ", ".join(part for part in (since, owner) if part)
    lead, rest = escape(str(row.get("lead", ""))), escape(str(row.get("rest", "")))
    sign = markup.glyph(row.get("level"))
    return f'<div class="tt-need">{sign}<p><b>{lead}</b> {rest}</p><small>{escape(who)}</small></div>'


def more_needs(count: int) -> str:
    """How many needs are not shown, and where they are."""
    linked = markup.link("all incidents", "incidents")
    return f'<div class="tt-need"><p>and {words.number(count)} more: {linked}</p></div>'


def target(row: Row) -> tuple[str, str, dict[str, str]]:
    """(label, page, query) of what a need is about; the page is empty when it names nothing."""
    found = row.get("link") or {}
    kind, ident = str(found.get("kind") or ""), str(found.get("id") or "")
    if kind == "layer" and "/" in ident:
        run, _, layer = ident.rpartition("/")
        return f"Open layer {layer}", "experts", {"run": run, "layer": layer}
    if kind == "run" and ident:
        return "Open the job", "job", {"run": ident}
    if kind == "lifecycle" and ident:
        return "Open the stage", "lifecycle", {"lifecycle": ident, "stage": str(found.get("stage") or "")}
    if kind == "node" and ident:
        return f"Open {ident}", "fleet", {"node": ident}
    number = row.get("incident") or (ident if kind == "incident" else "")
    if number:
        number = str(number).removeprefix("INC-").lstrip("0") or str(number)
        return f"Open INC-{number:0>4}", "incident", {"number": number}
    return "", "", {}


def legend(counts: Row) -> str:
    """The states with their counts; a state that no GPU is in is left out, training apart."""
    parts = [
        f"<span>{sign}{name} {words.number(counts.get(state, 0) if counts else None)}</span>"
        for state, sign, name in LEGEND
        if counts.get(state) or state == "training"
    ]
    return f'<div class="tt-legend">{"".join(parts)}</div>'


def section_with_legend(heading: str, faint: str, counts: Row) -> str:
    """A section's head with the states and their counts at its right."""
    return f'<div class="tt-section"><h2>{escape(heading)}</h2><small>{escape(faint)}</small>{legend(counts)}</div>'


def section_with_link(heading: str, faint: str, label: str, page: str) -> str:
    """A section's head with a link at its right."""
    end = f"<em>{markup.link(label, page)}</em>"
    return f'<div class="tt-section"><h2>{escape(heading)}</h2><small>{escape(faint)}</small>{end}</div>'


def running_words(rows: Sequence[Row]) -> str:
    """3 jobs on 124 nodes, 1 queued"""
    active = [row for row in rows if row.get("status") == "active"]
    queued = sum(1 for row in rows if row.get("status") == "queued")
    nodes = {str(node) for row in active for node in row.get("nodes") or ()}
    text = f"{words.plural(len(active), 'job')} on {words.plural(len(nodes), 'node')}" if active else "no job trains"
    return f"{text}, {queued} queued" if queued else text


def running_table(rows: Sequence[Row], now_s: float) -> str:
    """A row a run that is not over."""
    heads = (
        ("job", ""),
        ("stage", "tt-quiet"),
        ("nodes", "tt-num"),
        ("progress", ""),
        ("done, UTC", ""),
        ("rate", "tt-quiet"),
        ("attempt", "tt-num"),
    )
    return markup.table(heads, [_running(row, now_s) for row in rows])


def _running(row: Row, now_s: float) -> list[str]:
    level = RUN_LEVELS.get(str(row.get("status")), "off")
    share = row.get("progress")
    bar = f'<span class="tt-bar"><i style="width:{100 * min(max(float(share or 0), 0), 1):.1f}%"></i></span>'
    percent = words.UNKNOWN if share is None else f"{100 * float(share):.1f} %"
    if row.get("starts_from") is not None:
        percent = f"starts from {words.number(row['starts_from'])}"
    eta = row.get("eta")
    done = words.eta_range(float(eta["low_s"]), float(eta["high_s"]), now_s) if eta else words.UNKNOWN
    rate = row.get("tokens_per_s")
    return [
        f"{markup.glyph(level)} {markup.link(row.get('name') or row['id'], 'job', {'run': row['id']}, 'tt-strong')}",
        escape(str(row.get("stage") or words.UNKNOWN)),
        str(len(row.get("nodes") or ())),
        f"{bar}{percent}",
        done,
        rate_words(None if rate is None else float(rate)),
        escape(str(row.get("attempt") or words.UNKNOWN)),
    ]


def rate_words(rate: float | None) -> str:
    """23.7 M tok/s, 26.4 k tok/s, 412 tok/s; a dash when it is not known."""
    if rate is None:
        return words.UNKNOWN
    for size, unit in ((1e6, " M"), (1e4, " k")):
        if rate >= size:
            return f"{words.figure(rate / (1e6 if size == 1e6 else 1e3))}{unit} tok/s"
    return f"{words.figure(rate)} tok/s"


def incident_words(rows: Sequence[Row], count: int, cleared: int = 0) -> str:
    """open 5, somebody is on 2, cleared by themselves in 24 h 7; of more than are listed only how many there are"""
    held = sum(1 for row in rows if row.get("owner")) if count == len(rows) else 0
    parts = [f"open {words.number(count)}"] if rows else []
    parts += [f"somebody is on {held}"] if held else []
    parts += [f"cleared by themselves in 24 h {words.number(cleared)}"] if cleared else []
    return ", ".join(parts)


def incident_table(rows: Sequence[Row]) -> str:
    """A row an open incident."""
    heads = (("incident", ""), ("what", ""), ("age", "tt-num"), ("owner", "tt-quiet"))
    return markup.table(heads, [_incident(row) for row in rows])


def _incident(row: Row) -> list[str]:
    label = row.get("label") or f"INC-{int(row['number']):04d}"
    return [
        f"{markup.glyph(row.get('severity'))} {markup.link(label, 'incident', {'number': row['number']}, 'tt-strong')}",
        escape(str(row.get("title") or row.get("rule") or "")),
        words.age(row.get("age_s")),
        escape(str(row.get("owner") or words.UNKNOWN)),
    ]
