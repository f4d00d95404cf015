"""Blocks of the Lifecycle page as markup: the gate, the stage's facts and runs, costs, differences, what happened.

Why it exists: metrics, reasons and names come from people and from runs; all of it passes `escape` here. What nobody
measured is a dash and never zero.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import markup, words
from dashboards.views import lifecycle_words as lw
from dashboards.views.incident_cards import delivery_rows
from dashboards.views.job_cards import STATUS, diff_block, glyph_chip

Row = Mapping[str, Any]

MOST_CHANGES = 80
COST_LEGEND = (
    '<div class="tt-legend"><span><i class="tt-role-train"></i>productive</span>'
    '<span><i class="tt-role-hang"></i>lost</span><span><i class="tt-role-queue"></i>queued</span></div>'
)
COST_PARTS = (("productive", "train"), ("lost", "hang"), ("queued", "queue"))
RUN_HEADS = (
    ("run", ""),
    ("for", "tt-muted"),
    ("state", "tt-nowrap"),
    ("progress", "tt-nowrap"),
    ("attempt", "tt-num"),
    ("found", "tt-muted"),
)


def gate_block(stage: Row) -> str:
    """Each requirement with its value, its bound and the verdict; then whether a person is asked."""
    gate = stage.get("gate")
    if not gate:
        return '<p class="tt-muted">No gate: the stage passes when its own job has succeeded.</p>'
    level, sign, _ = lw.GATE.get(str(gate.get("state")), lw.GATE["open"])
    rows = []
    for one in gate.get("requirements") or ():
        ok = one.get("ok")
        verdict = (
            glyph_chip("off", "○", "not judged yet")
            if ok is None
            else (glyph_chip("ok", "✓", "holds") if ok else glyph_chip("fault", "×", "does not hold"))
        )
        asked = f'<span class="tt-mono">{escape(str(one.get("requirement")))}</span>'
        rows.append(
            (asked, lw.value(one.get("value")), f"{escape(str(one.get('op')))} {lw.value(one.get('bound'))}", verdict)
        )
    if gate.get("approval"):
        rows.append(("a person approves the checkpoint", "", "", glyph_chip(*_approval(stage))))
    heads = (("requirement", ""), ("value", "tt-num"), ("bound", "tt-num tt-muted"), ("verdict", ""))
    table = (
        f'<div class="tt-scroll">{markup.table(heads, rows, "tt-requirements")}</div>'
        if rows
        else '<p class="tt-muted">Nothing is required.</p>'
    )
    about = f"checkpoint {lw.hash_span(gate['checkpoint_hash'])}" if gate.get("checkpoint_hash") else "no checkpoint"
    does = {
        "passed": f"let {about} pass",
        "refused": f"refuses {about}",
        "waits": f"holds {about} until a person approves it",
        "overridden": f"refused {about}; a person let it pass",
        "undecided": f"was reached and not decided for {about}",
    }.get(str(gate.get("state")), "was not reached" if stage.get("state") == "cancelled" else "is not reached yet")
    return f'<p class="tt-gate-head"><i class="tt-gate tt-{level}">{sign}</i> <b>The gate</b> {does}</p>{table}'


def _approval(stage: Row) -> tuple[str, str, str]:
    if stage.get("state") == "passed":
        return "ok", "✓", "given"
    if stage.get("state") == "failed":
        return "fault", "×", "not given"
    if stage.get("state") == "cancelled":
        return "off", "○", "not given"
    asked = stage.get("state") == "held" and stage.get("hold") in ("approval", "refused")
    return ("warn", "!", "waited for") if asked else ("off", "○", "not asked yet")


def parent_line(view: Row) -> str:
    """From which lifecycle this one was cloned; nothing for one that was not."""
    if not view.get("parent"):
        return ""
    linked = markup.link("another lifecycle", "lifecycle", {"lifecycle": view["parent"]})
    kept = [str(one["name"]) for one in view.get("stages") or () if one.get("inherited")]
    what = f"; {escape(', '.join(kept))} kept from it" if kept else ""
    return f'<p class="tt-muted">Cloned from {linked}{what}.</p>'


def fact_block(view: Row, stage: Row) -> str:
    """What the stage starts from, its candidate, its alias, and what it may still use."""
    name = str(stage.get("name"))
    init, candidate = stage.get("init") or {}, stage.get("candidate") or {}
    source = f" of {escape(str(stage['from']))}" if stage.get("from") else ""
    begin = (
        lw.hash_span(init.get("hash"), bool(init.get("tainted"))) + source
        if init
        else (f"the checkpoint{source}, once it has passed" if source else "nothing: it begins afresh")
    )
    found = [("starts from", begin)]
    if prepared := _prepared(stage):
        found.append(("prepared data", prepared))
    if candidate:
        step = f", step {words.number(candidate['step'])}" if candidate.get("step") is not None else ""
        found.append(("candidate", lw.hash_span(candidate.get("hash"), bool(candidate.get("tainted"))) + step))
        parent = init.get("hash")
        found.append(("made from", lw.hash_span(parent) if parent else "no checkpoint"))
        found.append(("lies at", f'<span class="tt-mono">{escape(str(candidate.get("path") or words.UNKNOWN))}</span>'))
    if stage.get("promote"):
        found.append(("alias when it passes", escape(str(stage["promote"]))))
    retries, budget = stage.get("retries") or {}, stage.get("budget") or {}
    found.append(("retries", f"{retries.get('used', 0)} of {retries.get('allowed', 0)} used"))
    if budget.get("gpu_hours") is not None:
        limit = lw.gpu_hours(budget["gpu_hours"])
        used = escape(lw.gpu_hours(budget.get("used")))
        found.append(("budget", f"{used} of {limit} GPU-hours used"))
    if stage.get("state") == "held" and (told := _told(view, name)):
        found.append(("told", told))
    found += [(_said_of(one), _said(one)) for one in view.get("approvals") or () if one.get("stage") == name]
    rows = "".join(f"<span>{key}</span><b>{text}</b>" for key, text in found)
    return f'<div class="tt-facts tt-stage-facts">{rows}</div>'


def _prepared(stage: Row) -> str:
    """The newest run of each preparation, with its state."""
    made = {str(run.get("item")): run for run in stage.get("runs") or () if run.get("role") == "prepare"}
    return ", ".join(
        f"{markup.link(item, 'job', {'run': run.get('id')})} {escape(str(run.get('status')).replace('_', ' '))}"
        for item, run in made.items()
    )


def _told(view: Row, stage: str) -> str:
    """Which channels know that the stage is held, and which do not yet; nothing where nobody is to be told."""
    mine = [one for one in view.get("deliveries") or () if one.get("stage") == stage]
    newest = max((int(one["seq"]) for one in mine), default=0)
    parts = []
    for one in mine:
        if int(one["seq"]) != newest:
            continue
        at = words.clock(one.get("told_s")) if one.get("told_s") else ""
        state = {"told": f"at {at}", "dead": "given up"}.get(str(one.get("state")), "not yet")
        error = f" ({escape(str(one['last_error']))})" if one.get("last_error") else ""
        parts.append(f"{escape(str(one.get('channel')))} {state}{error}")
    return ", ".join(parts)


def message_block(rows: Sequence[Row], now_s: float) -> str:
    """Every message to a channel: of which stage, or of the end, and whether it arrived."""
    told = [{**one, "type": " ".join(filter(None, (_of(one), str(one.get("stage") or ""))))} for one in rows]
    return f'<div class="tt-scroll">{delivery_rows(told, now_s)}</div>'


def _of(one: Row) -> str:
    return str(one.get("type") or "").removeprefix("lifecycle.")


def _said_of(one: Row) -> str:
    return "approved" if one.get("verdict") == "approved" else "refused"


def _said(one: Row) -> str:
    reason = f": {escape(str(one['reason']))}" if one.get("reason") else ""
    used = "" if one.get("used_s") is not None else ", not carried out yet"
    used = ", void: it was never carried out" if one.get("voided_s") is not None else used
    about = lw.hash_span(one.get("checkpoint_hash"))
    return f"{about} by {escape(str(one.get('actor')))} at {words.clock(one.get('at_s'))}{used}{reason}"


def runs_table(stage: Row) -> str:
    """The stage's runs, oldest first, each linked to its Job page, with what it found out."""
    body = []
    for run in stage.get("runs") or ():
        level, sign, text = STATUS.get(str(run.get("status")), ("off", "○", str(run.get("status"))))
        if run.get("status") == "active":
            text = str(run.get("attempt_state") or "under way")
        role = " ".join(str(part) for part in (run.get("role"), run.get("item")) if part)
        again = f", round {run['round']}" if int(run.get("round") or 1) > 1 else ""
        far = "" if run.get("step") is None else lw.far({"step": run["step"], "steps": run.get("steps")})
        body.append(
            (
                markup.link(run.get("id"), "job", {"run": run.get("id")}, "tt-strong"),
                escape(role + again),
                f'<span title="{escape(str(run.get("reason") or ""))}">{glyph_chip(level, sign, text)}</span>',
                escape(far),
                words.number(run.get("attempt") or None),
                _metrics(run),
            )
        )
    return f'<div class="tt-scroll">{markup.table(RUN_HEADS, body, "tt-runs")}</div>'


def _metrics(run: Row) -> str:
    if run.get("missing"):
        return f'<span class="tt-warn-words">{escape(str(run["missing"]))}</span>'
    metrics = run.get("metrics") or {}
    told = ", ".join(f"{name} {lw.value(number)}" for name, number in list(metrics.items())[:4])
    more = f" and {len(metrics) - 4} more" if len(metrics) > 4 else ""
    whole = ", ".join(f"{name} {lw.value(number)}" for name, number in metrics.items())
    return f'<span title="{escape(whole)}">{escape(told + more)}</span>'


def cost_block(stages: Sequence[Row]) -> str:
    """A bar a stage, all to one scale: productive, lost, queued; the GPU-hours written behind it."""
    sums = {str(stage["name"]): _parts(stage.get("cost") or {}) for stage in stages}
    longest = max((sum(parts.values()) for parts in sums.values()), default=0.0)
    rows = []
    for name, parts in sums.items():
        segments = "".join(
            f'<i class="tt-role-{role}" style="width:{100 * parts[part] / longest:.2f}%" '
            f'title="{escape(f"{part} {lw.gpu_hours(parts[part])}")}"></i>'
            for part, role in COST_PARTS
            if longest and parts[part] > 0
        )
        told = ", ".join(f"{part} {lw.gpu_hours(parts[part])}" for part, _ in COST_PARTS)
        shown = " · ".join(lw.gpu_hours(parts[part]) for part, _ in COST_PARTS)
        rows.append(
            f'<span title="{escape(name)}">{escape(name)}</span>'
            f'<div role="img" aria-label="{escape(f"{name}: {told} GPU-hours")}">{segments}</div><b>{escape(shown)}</b>'
        )
    return f'<div class="tt-costs">{"".join(rows)}</div>'


def _parts(cost: Row) -> dict[str, float]:
    return {part: max(float(cost.get(f"{part}_gpu_h") or 0.0), 0.0) for part, _ in COST_PARTS}


def tiles(view: Row, now_s: float) -> list[dict[str, Any]]:
    """The row of tiles: how far, what is under way, what it cost."""
    stages, cost = list(view.get("stages") or ()), view.get("cost") or {}
    current = next((one for one in stages if one.get("name") == view.get("stage")), None)
    used, productive = cost.get("used_gpu_h"), cost.get("productive_gpu_h")
    share = f"{100 * productive / used:.1f} % of it" if used and productive is not None else "nothing used yet"
    begun = lw.lasts(current, now_s) if current else ""
    return [
        {
            "label": "stage under way",
            "value": current["name"] if current else "none",
            "context": ", ".join(part for part in (lw.stage_words(current)[2] if current else "", begun) if part),
            "level": lw.stage_words(current)[0] if current else "ok",
        },
        {
            "label": "passed",
            "value": view.get("passed", 0),
            "unit": f"of {words.plural(len(stages), 'stage')}",
            "context": f"since {words.day_and_clock(view.get('created_s'), now_s)} UTC",
        },
        {"label": "used", "value": lw.gpu_hours(used), "unit": "GPU-hours", "context": "in nodes of all its runs"},
        {"label": "productive", "value": lw.gpu_hours(productive), "unit": "GPU-hours", "context": share},
        {
            "label": "lost",
            "value": lw.gpu_hours(cost.get("lost_gpu_h")),
            "unit": "GPU-hours",
            "context": "starts, stops, steps run twice",
        },
        {
            "label": "queued",
            "value": lw.gpu_hours(cost.get("queued_gpu_h")),
            "unit": "GPU-hours",
            "context": "waited for nodes, not in used",
        },
    ]


def alias_block(view: Row, now_s: float) -> str:
    """Where each alias points, whether that may be used, since when and by whom."""
    body = [
        (
            markup.chip(one.get("alias"), "fault" if one.get("tainted") else "ok"),
            lw.hash_span(one.get("checkpoint_hash"), bool(one.get("tainted"))),
            escape(str(one.get("stage") or "")),
            escape(str(one.get("by") or "")),
            words.day_and_clock(one.get("at_s"), now_s),
        )
        for one in view.get("aliases") or ()
    ]
    heads = (("alias", ""), ("checkpoint", ""), ("stage", "tt-muted"), ("by", "tt-muted"), ("since, UTC", "tt-num"))
    return f'<div class="tt-scroll">{markup.table(heads, body)}</div>'


def diff_lines(changes: Sequence[Row]) -> list[tuple[str, str]]:
    """Each changed value as a line taken away (amber −) and a line added (blue +); None stands for not there."""
    lines = []
    for change in changes[:MOST_CHANGES]:
        path = str(change.get("path"))
        for sign, side in (("-", "before"), ("+", "after")):
            if change.get(side) is not None:
                lines.append((sign, f"{path}: {lw.value(change[side])}"))
    if len(changes) > MOST_CHANGES:
        lines.append((" ", f"and {len(changes) - MOST_CHANGES} more"))
    return lines


def diff_view(changes: Sequence[Row]) -> str:
    """The changes as a block."""
    return diff_block(diff_lines(changes))


def problem_block(problems: Sequence[Row]) -> str:
    """Every problem of a plan behind its path, as the server says it."""
    parts = "".join(
        f'<span><i class="tt-glyph tt-fault">×</i></span>'
        f'<b class="tt-mono">{escape(str(one.get("path") or "plan"))}</b>'
        f'<span class="tt-muted">{escape(str(one.get("message") or ""))}</span>'
        for one in problems
    )
    return f'<div class="tt-checks tt-plan-problems" role="alert">{parts}</div>'


def story(rows: Sequence[Row], now_s: float) -> str:
    """What happened, newest first, with a link to each run that began."""
    lines = []
    for row in reversed(rows):
        level = str(row.get("level") or "info")
        sign = {"ok": "●", "warn": "!", "fault": "×"}.get(level, "·")
        run = str(row.get("run") or "")
        linked = f" {markup.link('run', 'job', {'run': run})}" if run else ""
        lines.append(
            f"<time>{words.day_and_clock(row.get('at_s'), now_s)}</time>"
            f'<i class="tt-{escape(level)}">{sign}</i><span>{escape(str(row.get("sentence") or ""))}{linked}</span>'
        )
    return f'<div class="tt-happened tt-long-times">{"".join(lines)}</div>'


def plan_table(stages: Sequence[Row]) -> str:
    """The stages of a plan that was not submitted: on what, how long, from where, past which gate."""
    heads = (
        ("stage", ""),
        ("does", "tt-muted"),
        ("from", "tt-muted"),
        ("steps", "tt-num"),
        ("GPUs", "tt-num"),
        ("passes if", ""),
        ("alias", ""),
    )
    body = []
    for one in stages:
        needs = [*(one.get("require") or ()), *(["a person approves"] if one.get("approval") else [])]
        prepare = [str(name) for name in one.get("prepare") or ()]
        does = str(one.get("role") or "") + (f", prepares {', '.join(prepare)}" if prepare else "")
        body.append(
            (
                f"<b>{escape(str(one.get('name')))}</b>",
                escape(does),
                escape(str(one.get("from") or words.UNKNOWN)),
                words.number(one.get("steps")),
                words.number(one.get("gpus")),
                escape("; ".join(str(need) for need in needs)) or "its job succeeds",
                markup.chip(one["promote"], "ok") if one.get("promote") else "",
            )
        )
    return markup.table(heads, body)
