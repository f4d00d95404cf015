"""A lifecycle in a reader's words: states with their glyphs, what it does or waits for, costs, checkpoints by hash.

Why it exists: list, page, track and dialogs name a state and a checkpoint alike. Plain values and text that callers
escape; only `lead` is markup, and escapes what it is given.
"""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from dashboards import words
from dashboards.views.job_cards import emphasised

Row = Mapping[str, Any]
State = tuple[str, str, str]

SHORT = 12
ENDED = ("succeeded", "failed", "cancelled")
STAGE_ENDED = ("passed", "failed", "cancelled")
AT_WORK = ("preparing", "training", "evaluating", "releasing")

STATUS: Mapping[str, State] = {
    "active": ("ok", "▸", "under way"),
    "paused": ("off", "‖", "paused"),
    "succeeded": ("ok", "✓", "succeeded"),
    "failed": ("fault", "×", "failed"),
    "cancelled": ("off", "■", "cancelled"),
}
STAGE: Mapping[str, State] = {
    "waiting": ("off", "○", "waits its turn"),
    "preparing": ("ok", "▸", "preparing"),
    "training": ("ok", "▸", "training"),
    "evaluating": ("ok", "▸", "evaluating"),
    "releasing": ("ok", "▸", "releasing"),
    "passed": ("ok", "✓", "passed"),
    "failed": ("fault", "×", "failed"),
    "cancelled": ("off", "■", "cancelled"),
}
# Why a stage is held. What a person merely has to decide is amber; what is broken is vermilion.
HOLD: Mapping[str, State] = {
    "approval": ("warn", "!", "waits for approval"),
    "refused": ("warn", "!", "gate refuses"),
    "failed": ("fault", "×", "a run failed"),
    "budget": ("warn", "!", "budget is used up"),
    "tainted": ("fault", "×", "made from tainted"),
}
UNREAD: State = ("warn", "!", "cannot read its disk")
GATE: Mapping[str, State] = {
    "open": ("off", "", "not reached"),
    "waits": ("warn", "!", "waits for approval"),
    "refused": ("fault", "×", "refuses"),
    "passed": ("ok", "✓", "passed"),
    "overridden": ("warn", "!", "refused; a person let it pass"),
    "undecided": ("off", "", "not decided"),
}
FIRST = "It is the first one of its name."
# The sentence that a stage's state is told by, before its progress.
DOES = {"preparing": "prepares", "training": "trains", "evaluating": "is evaluated", "releasing": "is released"}


def status_words(row: Row) -> State:
    """(level, glyph, words) of a lifecycle; what is asked of it and not done yet comes before what it is."""
    status, desired = str(row.get("status")), str(row.get("desired"))
    if status not in ENDED and desired == "cancel":
        return "off", "■", "being cancelled"
    if row.get("waits_for_person"):
        holds = [str(one.get("hold")) for one in row.get("stages") or () if one.get("state") == "held"]
        level = HOLD.get(holds[0], ("warn", "", ""))[0] if holds else "warn"
        return level, "×" if level == "fault" else "!", "waits for a person"
    if row.get("waits_for_disk"):
        return "warn", "!", "cannot read a disk"
    if status == "active" and desired == "pause":
        return "off", "‖", "being paused"
    return STATUS.get(status, ("off", "○", status))


def stage_words(stage: Row) -> State:
    """(level, glyph, words) of a stage; a held one says why."""
    if stage.get("state") == "held":
        return HOLD.get(str(stage.get("hold")), ("warn", "!", "held"))
    if stage.get("unread"):
        return UNREAD
    return STAGE.get(str(stage.get("state")), ("off", "○", str(stage.get("state"))))


def short(checkpoint_hash: object) -> str:
    """A checkpoint's hash as sentences name it, a dash where there is none."""
    return str(checkpoint_hash or "")[:SHORT] or words.UNKNOWN


def gpu_hours(value: float | None) -> str:
    """GPU-hours: 12.3, 1,290, < 0.01 where rounding would say none, a dash if unknown."""
    if value is not None and 0.0 < value < 0.01:
        return "< 0.01"
    if value is not None and 0.0 < value < 1.0:
        return f"{value:.2f}"
    return words.figure(value, 3)


def lasts(stage: Row, now_s: float) -> str:
    """How long a stage has been under way, or was; empty before it began."""
    began, ended = stage.get("began_s"), stage.get("ended_s")
    if began is None:
        return ""
    return words.duration(float(ended if ended is not None else now_s) - float(began))


def far(progress: Row | None) -> str:
    """step 640 of 1,000 · 64.0 %, as far as it is known."""
    told = progress or {}
    step, steps, share = told.get("step"), told.get("steps"), told.get("share")
    if step is None and share is None:
        return "no step yet"
    parts = []
    if step is not None:
        parts.append(f"step {words.number(step)}" + (f" of {words.number(steps)}" if steps else ""))
    if share is not None:
        parts.append(f"{100 * float(share):.1f} %")
    return " · ".join(parts)


def lead(view: Row) -> str:
    """What the lifecycle does or waits for, and for whom, as one sentence of markup."""
    text, bold = lead_words(view)
    return f'<p class="tt-lead tt-narrow">{emphasised(text, bold)}</p>'


def lead_words(view: Row) -> tuple[str, tuple[str, ...]]:
    """The sentence, and its parts that stand out."""
    status, desired, stages = str(view.get("status")), str(view.get("desired")), list(view.get("stages") or ())
    held = [one for one in stages if one.get("state") == "held"]
    if status in ENDED:
        told = str(view.get("reason") or "")
        return (told, ()) if told else (f"It has {status}.", (status,))
    if desired == "cancel":
        return "It is being cancelled: its runs save and end, and nothing else begins.", ("being cancelled",)
    if held:
        return _held_words(held, stages)
    if desired == "pause" or status == "paused":
        done = "paused" if status == "paused" else "being paused: its runs save and stop"
        return f"It is {done}. Nothing begins until somebody resumes it.", (done.partition(":")[0],)
    working = [one for one in stages if one.get("state") in AT_WORK]
    if not working:
        return "Nothing of it is under way yet: its first stage begins with the controller's next look.", ()
    return _work_words(working, stages)


def _held_words(held: list[Row], stages: list[Row]) -> tuple[str, tuple[str, ...]]:
    first = held[0]
    name = str(first.get("name"))
    why = re.sub(r"^Stage \S+ is held[.:]\s*", "", str(first.get("reason") or "")).strip()
    who = {
        "approval": f"an operator's word on checkpoint {short((first.get('candidate') or {}).get('hash'))}",
        "refused": "an operator: approve it all the same, try again, or refuse it",
        "failed": "an operator: try again, or cancel",
        "budget": "an operator: its GPU-hours are used up",
        "tainted": "an operator: what it was made from is tainted",
    }.get(str(first.get("hold")), "an operator")
    begin = f"{name} waits for {who}."
    others = f" {_named(held[1:])} {'waits' if len(held) == 2 else 'wait'} too." if held[1:] else ""
    working = [one for one in stages if one.get("state") in AT_WORK]
    meanwhile = f" Meanwhile {'; '.join(_does(one) for one in working)}." if working else ""
    known = (first.get("candidate") or {}).get("hash")
    bold = (f"{name} waits", *((short(known),) if known else ()))
    return f"{begin} {why}{others}{meanwhile}{_after([name], stages)}", bold


def _work_words(working: list[Row], stages: list[Row]) -> tuple[str, tuple[str, ...]]:
    gate = working[-1].get("gate") or {}
    needs = [str(one.get("requirement")) for one in gate.get("requirements") or ()]
    needs += ["a person's approval"] if gate.get("approval") else []
    passes = f" It passes with {' and '.join(needs)}." if needs and len(working) == 1 else ""
    bold = tuple(
        f"{one.get('name')} {'waits' if one.get('unread') else DOES[str(one.get('state'))]}" for one in working
    )
    told = "; ".join(_does(one) for one in working)
    return f"{told}.{passes}{_after([str(one.get('name')) for one in working], stages)}", bold


def _does(stage: Row) -> str:
    """sft trains, step 640 of 1,000 · 64.0 %; or sft waits: cannot read …"""
    if stage.get("unread"):
        return re.sub(r"^It ", f"{stage.get('name')} ", str(stage["unread"]["sentence"])).rstrip(".")
    progress, state = stage.get("progress") or {}, str(stage.get("state"))
    item = progress.get("item")
    does = DOES[state] + (f" {item}" if state == "preparing" and item else "")
    return f"{stage.get('name')} {does}, {far(progress)}"


def _after(names: list[str], stages: list[Row]) -> str:
    """What begins once these have passed, and waits for nothing else."""
    done = {str(one.get("name")) for one in stages if one.get("state") == "passed"} | set(names)
    behind = [
        one
        for one in stages
        if one.get("state") == "waiting" and set(names) & set(one.get("after") or ()) and set(one["after"]) <= done
    ]
    return f" Then {_named(behind)} {'begins' if len(behind) == 1 else 'begin'}." if behind else ""


def _named(stages: list[Row]) -> str:
    return " and ".join(str(one.get("name")) for one in stages)


def facts(view: Row, now_s: float) -> str:
    """1 of 3 stages passed · ada · 2 h 3 m · cloned"""
    end = view.get("ended_s")
    age = (end if end is not None else now_s) - float(view["created_s"]) if view.get("created_s") else None
    stages = len(view.get("stages") or ())
    parts = [
        f"{view.get('passed', 0)} of {words.plural(stages, 'stage')} passed",
        view.get("created_by"),
        words.duration(age),
        "cloned" if view.get("parent") else "",
    ]
    return " · ".join(str(part) for part in parts if part)


def value(number: object) -> str:
    """A setting's or a metric's value on one line: 2.6, true, [a, b]; a dash for none."""
    if number is None:
        return words.UNKNOWN
    if isinstance(number, bool):
        return str(number).lower()
    if isinstance(number, int | float):
        return f"{number:.6g}"
    if isinstance(number, list | tuple):
        return "[" + ", ".join(value(one) for one in number) + "]"
    return str(number)


def hash_span(checkpoint_hash: object, tainted: bool = False) -> str:
    """A hash as markup, short, whole in its title; a tainted one says so by shape and word."""
    if not checkpoint_hash:
        return words.UNKNOWN
    whole = escape(str(checkpoint_hash))
    bad = ' <i class="tt-glyph tt-fault" aria-hidden="true">×</i> tainted' if tainted else ""
    return f'<span class="tt-mono" title="{whole}">{escape(short(checkpoint_hash))}</span>{bad}'
