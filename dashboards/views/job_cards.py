"""The Job page's own blocks as markup: stage bar, why-card, checkpoints, events, differences.

Why it exists: every word from outside (names, messages, kernel lines) passes `escape` here, and tests read the markup
without a server. Not a page: job.py decides what stands where, and asks for the data.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import words
from dashboards.markup import href, table

Row = Mapping[str, Any]

# How a run's status is shown: level of the chip, glyph, word.
STATUS: Mapping[str, tuple[str, str, str]] = {
    "draft": ("off", "○", "draft"),
    "waiting_gate": ("off", "○", "waits for a gate"),
    "queued": ("off", "○", "queued"),
    "active": ("ok", "▸", "training"),
    "paused": ("off", "‖", "paused"),
    "needs_human": ("warn", "!", "needs a person"),
    "succeeded": ("ok", "✓", "succeeded"),
    "failed": ("fault", "×", "failed"),
    "cancelled": ("off", "■", "stopped"),
}
ENDED_ATTEMPTS = ("succeeded", "failed", "preempted", "stopped", "superseded", "abandoned")
# A checkpoint's state in the reader's words: level, glyph, word.
CHECKPOINT_STATE: Mapping[str, tuple[str, str, str]] = {
    "validated": ("ok", "●", "verified"),
    "complete": ("warn", "!", "unverified"),
    "writing": ("off", "○", "writing"),
    "tainted": ("fault", "×", "tainted"),
}

# The legend of the timeline, in the order of an attempt's life.
LEGEND = (
    '<div class="tt-legend">'
    '<span><i class="tt-role-queue"></i>queue, start</span><span><i class="tt-role-load"></i>load, compile</span>'
    '<span><i class="tt-role-train"></i>train</span><span><i class="tt-role-hang"></i>hang</span>'
    '<span><em>|</em>checkpoint</span><span class="tt-fault-mark"><em>×</em>fault</span></div>'
)


def status_words(run: Row) -> tuple[str, str, str]:
    """(level, glyph, words) of a run's state; an attempt under way says its own state."""
    level, glyph, text = STATUS.get(str(run.get("status")), ("off", "○", str(run.get("status"))))
    if run.get("status") != "active":
        return level, glyph, text
    if run.get("desired") == "cancel":
        return "off", "■", "stopping"
    attempts = run.get("attempts") or ({"state": run.get("attempt_state") or text},)
    state = str(attempts[-1].get("state"))
    if state == "suspect":
        return "warn", "!", "suspect"
    return level, glyph, "restarting" if state in ENDED_ATTEMPTS else state


def glyph_chip(level: str, glyph: str, text: str) -> str:
    """A small square with a glyph and its word beside it: shape and word, not colour alone."""
    return f'<span class="tt-glyph tt-{level}" aria-hidden="true">{escape(glyph)}</span> {escape(text)}'


def emphasised(sentence: str, bold: Sequence[str]) -> str:
    """The sentence as markup with each listed part in bold at its first occurrence; everything is escaped."""
    spans: list[tuple[int, int]] = []
    for part in bold:
        start = sentence.find(part) if part else -1
        if start >= 0 and all(start >= end or start + len(part) <= begin for begin, end in spans):
            spans.append((start, start + len(part)))
    pieces, at = [], 0
    for begin, end in sorted(spans):
        pieces.append(f"{escape(sentence[at:begin])}<b>{escape(sentence[begin:end])}</b>")
        at = end
    return words.tied("".join(pieces) + escape(sentence[at:]))


def link(kind: str, ident: object, run: str = "") -> str:
    """The address of a thing's own page; empty where it has none."""
    text = str(ident)
    if kind == "incident":
        return href("incident", {"number": text.removeprefix("INC-").lstrip("0") or text})
    if kind == "run":
        return href("job", {"run": text})
    if kind == "node":
        return href("fleet", {"node": text})
    if kind == "log" and run:
        return href("job", {"run": run, "show": "Log"})
    if kind in ("decision", "event", "attempt") and run:
        return href("job", {"run": run, "show": "Events"})
    return ""


def stage_bar(run: Row) -> str:
    """The lifecycle's stages, each a link to itself there; the one under way is filled as far as its steps are done."""
    stages = run.get("stages") or [run.get("stage") or "run"]
    lifecycle = (run.get("lifecycle") or {}).get("id")
    progress = run.get("progress")
    cells, done = [], _steps_done(run)
    for stage in stages:
        current = stage == run.get("stage")
        share = 100.0 * float(progress) if current and progress is not None else 0.0
        name = f"<b>{escape(str(stage))}</b>"
        if lifecycle:
            address = escape(href("lifecycle", {"lifecycle": lifecycle, "stage": stage}))
            name = f'<a href="{address}" target="_self">{name}</a>'
        cells.append(
            f'<div class="tt-stage{" tt-current" if current else ""}"><div class="tt-stage-bar">'
            f'<i style="width:{min(max(share, 0.0), 100.0):.2f}%"></i></div>'
            f'<div class="tt-stage-name">{name} {escape(done if current else "")}</div></div>'
        )
    role = "group" if lifecycle else "img"
    return f'<div class="tt-stages" role="{role}" aria-label="{escape(done)}">{"".join(cells)}</div>'


def _steps_done(run: Row) -> str:
    step, steps, progress = run.get("step"), run.get("steps"), run.get("progress")
    if step is None:
        return f"no step yet, {words.number(steps)} planned" if steps else "no step yet"
    text = f"{'starts from ' if run.get('starts_from') is not None else ''}step {words.number(step)}"
    if steps:
        text += f" of {words.number(steps)}"
    return text + (f" · {100 * float(progress):.1f} %" if progress is not None else "")


def proposal_row(asked: Row, now_s: float) -> str:
    """A decision that waits for a person: what is proposed, since when."""
    lead, _, rest = str(asked.get("sentence") or "").partition(": ")
    since = words.age(now_s - float(asked["at_s"])) if asked.get("at_s") is not None else ""
    return (
        f'<div class="tt-need"><i class="tt-glyph tt-warn" aria-hidden="true">!</i>'
        f"<p><b>{escape(lead)}:</b> {escape(rest)}</p><small>{escape(since)}, waits for a person</small></div>"
    )


def why_card(restart: Row, run_id: str) -> str:
    """One restart: the sentence, a bar whose parts are as long as they took, their durations, and the evidence."""
    sentence = emphasised(str(restart.get("sentence", "")), [str(part) for part in restart.get("bold", ())])
    return (
        f'<p class="tt-lead">{sentence}</p>{phase_bar(restart)}'
        f'<div class="tt-evidence"><span class="tt-faint">evidence</span>{_evidence(restart, run_id)}</div>'
    )


def phase_bar(restart: Row) -> str:
    """A true-scale bar: each phase is as wide as its share of the whole, its duration stands under the bar."""
    phases = [phase for phase in restart.get("phases", ()) if phase.get("seconds") is not None]
    if not phases:
        return '<p class="tt-faint">Durations follow when the next attempt has made its first step.</p>'
    bars, keys = [], []
    for phase in phases:
        role, seconds = escape(str(phase.get("color_role", ""))), max(float(phase["seconds"]), 0.0)
        name = str(phase.get("name", "")).replace("_", " ")
        again = restart.get("steps_again") if phase.get("color_role") == "again" else None
        name = f"{words.number(again)} steps again" if again else name
        label = f"{words.duration(seconds)} {name}"
        bars.append(f'<i class="tt-ph-{role}" style="flex-grow:{seconds:.3f}" title="{escape(label)}"></i>')
        keys.append(f'<span><i class="tt-key tt-ph-{role}"></i><b>{words.duration(seconds)}</b> {escape(name)}</span>')
    label = escape(", ".join(f"{words.duration(phase['seconds'])} {phase.get('name', '')}" for phase in phases))
    return (
        f'<div class="tt-phases" role="img" aria-label="{label}">{"".join(bars)}</div>'
        f'<div class="tt-keys">{"".join(keys)}</div>'
    )


def _evidence(restart: Row, run_id: str) -> str:
    chips = []
    fault = restart.get("fault")
    causes = {str(fault.get("id"))} if isinstance(fault, Mapping) else set()
    for item in restart.get("evidence", ()):
        kind, ident = str(item.get("kind", "")), str(item.get("id", ""))
        level = (
            "fault" if ident in causes or kind == "fault" else "ok" if kind in ("first_step", "verification") else ""
        )
        chips.append(
            _chip(str(item.get("label") or kind), str(item.get("sentence") or ""), link(kind, ident, run_id), level)
        )
    kinds = {str(item.get("kind")) for item in restart.get("evidence", ())}
    if restart.get("incident") is not None and "incident" not in kinds:
        number = str(restart["incident"])
        chips.append(_chip(incident_label(number), "", link("incident", number), ""))
    return "".join(chips) or '<span class="tt-faint">none recorded</span>'


def incident_label(number: object) -> str:
    """INC-0412 for 412."""
    text = str(number)
    return f"INC-{int(text):04d}" if text.isdigit() else text


def _chip(label: str, sentence: str, address: str, level: str) -> str:
    glyph = {"fault": "× ", "ok": "● "}.get(level, "")
    inside = f"{glyph}{escape(label)}"
    title = f' title="{escape(sentence)}"' if sentence else ""
    css = f"tt-chip tt-{level}" if level else "tt-chip"
    if address:
        return f'<a class="{css}" href="{escape(address)}" target="_self"{title}>{inside}</a>'
    return f'<span class="{css}"{title}>{inside}</span>'


def noted(rows: Sequence[Row], attempts: Sequence[Row]) -> list[Row]:
    """Checkpoints newest first, each with what it is known for: its own note, the newest, where an attempt began."""
    ordered = sorted(rows, key=lambda row: (-int(row["step"]), -int(row.get("attempt") or 0)))
    newest = next((row["id"] for row in ordered if row.get("state") == "validated"), None)
    marked: list[Row] = []
    for row in ordered:
        began = [
            f"attempt {attempt['no']} began here"
            for attempt in attempts
            if attempt.get("resume_step") == row["step"] and attempt["no"] > int(row.get("attempt") or 0)
        ]
        usable = row.get("state") == "validated"
        notes = [str(row.get("note") or ""), "newest" if row["id"] == newest else "", *(began[:1] if usable else ())]
        marked.append({**row, "note": ", ".join(note for note in notes if note)})
    return marked


def worth_showing(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows in their order: first those with a note or not verified, then the newest of the rest."""
    special = [row for row in rows if row.get("note") or row.get("state") in ("tainted", "complete")][:count]
    rest = [row for row in rows if row not in special][: max(count - len(special), 0)]
    return [row for row in rows if row in special or row in rest]


CHECKPOINT_HEADS = (
    ("step", "tt-num tt-key-cell"),
    ("attempt", "tt-num"),
    ("saved, UTC", "tt-num"),
    ("age", "tt-num tt-muted"),
    ("state", ""),
    ("note", "tt-muted tt-note"),
)


def checkpoint_table(rows: Sequence[Row], now_s: float) -> str:
    """Checkpoints newest first: step, attempt, time, age, state in words with its glyph, and why."""
    body = []
    for row in rows:
        level, glyph, text = CHECKPOINT_STATE.get(str(row.get("state")), ("off", "○", str(row.get("state"))))
        written = row.get("written_at_s")
        since = row.get("age_s") if row.get("age_s") is not None else (now_s - written if written else None)
        note = escape(str(row.get("note") or ""))
        body.append(
            (
                words.number(row.get("step")),
                words.number(row.get("attempt")),
                words.clock(written),
                words.age(since),
                glyph_chip(level, glyph, text),
                f'<span title="{note}">{note}</span>',
            )
        )
    return table(CHECKPOINT_HEADS, body, "tt-checkpoints")


def diff_block(lines: Sequence[tuple[str, str]]) -> str:
    """A difference as rows of (sign, text): added blue, removed amber, and the sign itself in front."""
    css = {"+": "tt-add", "-": "tt-cut"}
    rows = "".join(
        f'<div class="{css.get(sign, "tt-same")}"><span>{escape(sign)}</span>{escape(text) or "&nbsp;"}</div>'
        for sign, text in lines
    )
    return f'<div class="tt-diff">{rows}</div>'
