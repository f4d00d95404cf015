"""The review half of Submit as markup: checks, candidate nodes, who holds the nodes until when, what a failure costs.

Why it exists: the reviewer must see what the server sees. Every figure here comes from the server's answer or from the
runs it lists; what nobody has measured is said to be unknown.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import draft, words
from dashboards.markup import href
from dashboards.views.advice import advice_facts, advice_inputs, fact_rows
from dashboards.views.job_cards import emphasised

Row = Mapping[str, Any]

LEVELS = {"ok": ("ok", "●"), "warn": ("warn", "!"), "error": ("fault", "×")}
# What a reader looks for in the server's sentence: when, how long, how much.
KEY_WORDS = re.compile(r"at once|unknown|\d+ more|\d[\d.,]* GPU-hours|\d[\d.,]* [dhms]\b(?: \d+ [hms]\b)?")
# The capacity chart looks this far ahead, in seconds, at least.
HORIZON_S = 12 * 3600.0


def check_block(checks: Sequence[Row], problems: Sequence[Row]) -> str:
    """The server's checks, what hinders first: glyph, name, sentence; a refused value stands here by its path too."""
    order = {"error": 0, "warn": 1, "ok": 2}
    rows = [("error", str(row.get("path", "")), str(row.get("message", ""))) for row in problems]
    named = sorted(checks, key=lambda row: order.get(str(row.get("level")), 1))
    rows += [(str(row.get("level")), str(row.get("name", "")), str(row.get("sentence", ""))) for row in named]
    parts = []
    for level, name, sentence in rows:
        css, glyph = LEVELS.get(level, LEVELS["warn"])
        parts.append(
            f'<span><i class="tt-glyph tt-{css}">{glyph}</i></span><b>{escape(name)}</b>'
            f'<span class="tt-muted">{escape(sentence)}</span>'
        )
    return f'<div class="tt-checks">{"".join(parts)}</div>'


def verdict(checks: Sequence[Row], problems: Sequence[Row]) -> str:
    """4 passed, 1 to look at — or what must be changed first."""
    passed = sum(row.get("level") == "ok" for row in checks)
    look = sum(row.get("level") == "warn" for row in checks)
    wrong = sum(row.get("level") == "error" for row in checks) + len(problems)
    parts = [f"{wrong} to change"] if wrong else []
    parts += [f"{passed} passed"] + ([f"{look} to look at"] if look else [])
    return ", ".join(parts)


def sentence_block(answer: Row) -> str:
    """When it starts, how long it runs, what it costs; then how much there is to look at."""
    levels = [row.get("level") for row in answer.get("checks") or ()]
    looks, wrong = levels.count("warn"), levels.count("error")
    sentence = str(answer.get("sentence") or "")
    text = (
        words.tied(emphasised(sentence, KEY_WORDS.findall(sentence)))
        if sentence
        else "The server cannot say when this would start."
    )
    if answer.get("problems"):
        # with a problem the sentence says nothing but how many there are
        text = f'<i class="tt-glyph tt-fault">×</i> {text}'
    elif wrong or looks:
        css, glyph, verb = ("fault", "×", "to change") if wrong else ("warn", "!", "to look at")
        count = words.plural(wrong or looks, "thing")
        text += f' <span class="tt-look"><i class="tt-glyph tt-{css}">{glyph}</i> {count} {verb}.</span>'
    return f'<p class="tt-lead tt-narrow">{text}</p>'


def candidate_block(candidates: Sequence[Row]) -> str:
    """A chip a node, the unfit ones marked, and why they are left out."""
    chips, reasons = [], []
    for row in candidates:
        name, fit = escape(str(row.get("node", ""))), bool(row.get("ok"))
        reason = str(row.get("reason") or "")
        css, mark = ("tt-ok", "") if fit else ("tt-warn", " !")
        title = f' title="{escape(reason)}"' if reason else ""
        address = escape(href("fleet", {"node": row.get("node", "")}))
        chips.append(f'<a class="tt-chip {css}" href="{address}" target="_self"{title}>{name}{mark}</a>')
        if not fit:
            reasons.append(f"{name}: {escape(reason or 'left out')}")
    why = f'<p class="tt-muted">{"; ".join(reasons)}.</p>' if reasons else ""
    return f'<div class="tt-candidates">{"".join(chips)}</div>{why}'


def capacity_block(
    runs: Sequence[Row],
    name: str,
    nodes: int,
    candidates: Sequence[Row],
    length_s: float | None = None,
    horizon_s: float = HORIZON_S,
) -> str:
    """A bar a run that holds nodes, as long as its likely end is away; the new run from when its nodes are free.

    `length_s` is how long the new run takes; without it, as without an end, the bar goes on to the right end.
    """
    free = sum(bool(row.get("ok")) for row in candidates)
    holders = [(str(run.get("name")), len(run.get("nodes") or ()), _end_s(run)) for run in runs if run.get("nodes")]
    start = start_s([(count, end) for _, count, end in holders], nodes, free) if candidates else None
    own_end = None if start is None or length_s is None else start + length_s
    known = [end for end in (*(end for _, _, end in holders), start, own_end) if end is not None]
    horizon = max([60.0, *(min(end, horizon_s) for end in known)]) * 1.25 if any(known) else horizon_s
    rows = []
    for label, count, end in holders:
        until = "end not known" if end is None else f"ends in {words.duration(end)}"
        rows.append(_bar(label, f"{words.plural(count, 'node')}, {until}", 0.0, _percent(end, horizon)))
    told = words.plural(nodes, "node")
    if candidates and nodes > len(candidates):
        rows.append(_bar(name, f"{told}: only {len(candidates)} exist", 0.0, 0.0, css="tt-this"))
    elif start is None:
        rows.append(_bar(name, f"{told}, its start is not known", 0.0, 0.0, css="tt-this"))
    else:
        left = _percent(start, horizon)
        length = "length not known" if length_s is None else words.duration(length_s)
        rows.append(_bar(name, f"{told}, {length}", left, _percent(own_end, horizon) - left, css="tt-this"))
    middle, last = words.duration(horizon / 2), words.duration(horizon)
    return (
        f'<div class="tt-capacity">{"".join(rows)}<span></span>'
        f'<span class="tt-axis"><span>now</span><span>in {middle}</span><span>in {last}</span></span></div>'
    )


def start_s(holders: Sequence[tuple[int, float | None]], nodes: int, free: int) -> float | None:
    """Seconds until `nodes` are free, of which `free` are now, as runs (nodes, seconds left) end; None if unknown."""
    at = 0.0
    for count, end in sorted(holders, key=lambda one: (one[1] is None, one[1] or 0.0)):
        if free >= nodes:
            break
        if end is None:
            return None
        free, at = free + count, end
    return at if free >= nodes else None


def _end_s(run: Row) -> float | None:
    high = (run.get("eta") or {}).get("high_s")
    return float(high) if high is not None else None


def _percent(at_s: float | None, horizon: float) -> float:
    return 100.0 if at_s is None else min(100.0, 100.0 * at_s / horizon)


def _bar(name: str, text: str, left: float, width: float, css: str = "") -> str:
    short = escape(name)
    return (
        f'<span class="tt-name" title="{short}">{short}</span><div class="{css}">'
        f'<i style="left:{left:.1f}%;width:{max(width, 0.0):.1f}%"></i><span>{escape(text)}</span></div>'
    )


def failure_block(job: Row, answer: Row) -> str:
    """What one failure costs: at most the steps of one checkpoint interval; in hours only once a step was measured.

    Then what would lose least, and on which inputs that rests.
    """
    every, restarts = draft.get(job, "train.checkpointEvery"), draft.get(job, "faults.restarts")
    steps = words.plural(int(every), "step") if _positive(every) else "not known"
    lost = f"up to {words.number(every)} steps, {every / 2:g} on average" if _positive(every) else "not known"
    mode = draft.get(job, "faults.mode")
    by_itself = f"{restarts} by itself" if mode in (None, "act") and restarts is not None else "after a person agrees"
    hours = answer.get("gpu_hours")
    cost = f"{words.figure(float(hours))} GPU-hours" if hours is not None else "not known before a first run"
    facts = [
        ("checkpoint every", steps),
        ("work lost a failure", lost),
        ("restarts", by_itself if mode != "observe" else "none: it only watches"),
        ("whole run", cost),
    ]
    advice = answer.get("advice")
    return fact_rows([*facts, *advice_facts(advice)]) + advice_inputs(advice) if advice else fact_rows(facts)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


# Where each step of a submission stands on the page.
ANCHORS = ("job", "model", "resources", "review")


def anchor(name: str) -> str:
    """A place on the page that a step leads to."""
    return f'<span class="tt-anchor" id="{escape(name)}"></span>'


def step_bar(wrong: Mapping[str, bool]) -> str:
    """The four steps of a submission, all on this page: a link each, the ones with a problem marked."""
    parts = []
    for number, ((name, bad), place) in enumerate(zip(wrong.items(), ANCHORS, strict=False), start=1):
        here = ' class="tt-bad"' if bad else ' class="tt-here"' if number == len(wrong) else ""
        mark = " ×" if bad else ""
        parts.append(f'<a{here} href="#{place}">{number} {escape(name)}{mark}</a>')
    return f'<div class="tt-steps">{"".join(parts)}</div>'
