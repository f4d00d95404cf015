"""The advice on checkpoints and spare nodes as markup, the same on Submit and on a job's page.

Why it exists: a number without its inputs cannot be argued with. Each input says whether it was measured, set or
assumed. The formulas are the server's; nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import words

Row = Mapping[str, Any]


def faint(advice: Row | None) -> str:
    """The words beside the section's heading: how often so many GPUs are stopped."""
    if not advice:
        return "at most one checkpoint interval"
    gpus = next((row.get("value") for row in advice.get("inputs") or () if row.get("name") == "GPUs"), None)
    return f"a stop each {words.duration(advice.get('mtbf_s'))} on {words.number(gpus)} GPUs, expected"


def fact_rows(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values, a row each."""
    cells = "".join(f"<span>{escape(name)}</span><b>{escape(text)}</b>" for name, text in facts)
    return f'<div class="tt-facts">{cells}</div>'


def advice_facts(advice: Row) -> list[tuple[str, str]]:
    """What loses least, what is set, what to expect."""
    facts = []
    stops, lost = advice.get("stops_expected"), advice.get("lost_a_stop_gpu_h")
    if stops is not None:
        facts.append(("stops expected", "fewer than 0.01" if stops < 0.01 else words.figure(float(stops), 2)))
    if lost is not None:
        facts.append(("lost a stop", f"{words.figure(float(lost))} GPU-hours"))
    facts.append(("loses least", each(advice)))
    facts.append(("by Young and Daly", f"each {words.duration(advice.get('young_daly_s'))}"))
    told = advice.get("set") or {}
    if told.get("ettr_percent") is not None:
        now, then = float(told["ettr_percent"]), float(advice["ettr_percent"])
        facts.append(("useful time", f"{now:.1f} % as it is set, {then:.1f} % with that"))
    spares = advice.get("spares")
    if spares is not None:
        facts.append(("spare nodes", "none lose least" if not spares else f"{words.number(spares)} lose least"))
    return facts


def each(advice: Row) -> str:
    """A checkpoint each 421 steps, 14 m 2 s."""
    length = words.duration(advice.get("interval_s"))
    steps = advice.get("interval_steps")
    return f"each {words.plural(int(steps), 'step')}, {length}" if steps is not None else f"each {length}"


def advice_inputs(advice: Row) -> str:
    """What the advice rests on, each with where it comes from."""
    parts = [_input(row) for row in advice.get("inputs") or ()]
    return f'<p class="tt-muted tt-inputs">{words.tied("; ".join(parts))}.</p>' if parts else ""


def _input(row: Row) -> str:
    value, unit = row.get("value"), str(row.get("unit") or "")
    text = words.duration(value) if unit == "s" else f"{words.number(value)} {unit}".strip()
    name, source = escape(str(row.get("name") or "")), escape(str(row.get("source") or ""))
    shown = f"{escape(text)} {name}" if name == "GPUs" else f"{name} {escape(text)}"
    return f"{shown} ({source})"


def block(advice: Row | None) -> str:
    """The section's whole body on a job's page."""
    if not advice:
        return '<p class="tt-muted">Nothing to advise: it holds no GPUs.</p>'
    sentence = words.tied(escape(str(advice.get("sentence") or "")))
    return f"<p>{sentence}</p>{fact_rows(advice_facts(advice))}{advice_inputs(advice)}"
