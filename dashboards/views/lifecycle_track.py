"""The stages of a lifecycle as a track from left to right: a column a depth, hairlines between, a diamond a gate.

Why it exists: `st.html` drops inline SVG, so lines and diamonds are plain elements with borders. A plan that is no
chain puts the stages of one depth under each other and names what each of them waits for.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dashboards import markup
from dashboards.markup import href
from dashboards.views import lifecycle_words as lw

Row = Mapping[str, Any]

LEGEND = (
    '<div class="tt-legend"><span><i class="tt-gate tt-off"></i>gate</span>'
    '<span><i class="tt-gate tt-ok">✓</i>passed</span>'
    '<span><i class="tt-gate tt-warn">!</i>asks a person, or one overruled it</span>'
    '<span><i class="tt-gate tt-fault">×</i>refuses</span></div>'
)
DONE = {"succeeded": "tt-ok", "failed": "tt-fault", "needs_human": "tt-warn", "cancelled": "tt-off"}
ROLE_WORDS = {"train": "train", "evaluate": "evaluate", "release": "release"}


def depths(stages: Sequence[Row]) -> dict[str, int]:
    """How many stages lie before each one on its longest way; stages stand behind what they wait for or start from."""
    known = {str(stage["name"]): stage for stage in stages}
    found: dict[str, int] = {}
    for _ in known:  # as many rounds as the longest way can be; a plan is checked to have no circle
        for name, stage in known.items():
            before = [one for one in (*(stage.get("after") or ()), stage.get("from")) if one in known]
            found[name] = max((found.get(str(one), 0) + 1 for one in before), default=0)
    return found


def columns(stages: Sequence[Row]) -> list[list[Row]]:
    """The stages by depth, each column in the plan's order."""
    at = depths(stages)
    return [
        [one for one in stages if at[str(one["name"])] == depth] for depth in range(max(at.values(), default=-1) + 1)
    ]


def planned(stages: Sequence[Row]) -> str:
    """The track of a plan that was not submitted: stages as a dry run tells them, none of them a link."""
    told = [{**one, "gate": _planned_gate(one), "runs": []} for one in stages]
    spec = [
        {
            "name": one.get("name"),
            "prepare": [{"name": name} for name in one.get("prepare") or ()],
            "gate": {"evaluation": any(str(name).endswith("-evaluate") for name in one.get("runs") or ())},
        }
        for one in stages
    ]
    return track({"stages": told, "spec": {"spec": {"stages": spec}}}, "", 0.0)


def _planned_gate(one: Row) -> Row | None:
    if not one.get("require") and not one.get("approval"):
        return None
    return {
        "state": "open",
        "requirements": [{"requirement": text} for text in one.get("require") or ()],
        "approval": one.get("approval"),
    }


def track(view: Row, chosen: str, now_s: float) -> str:
    """The whole track; every stage of a lifecycle that has an id links to itself as the chosen one."""
    stages = list(view.get("stages") or ())
    planned = {str(one["name"]): one for one in ((view.get("spec") or {}).get("spec") or {}).get("stages") or ()}
    cells: list[str] = []
    before: list[Row] = []
    for column in columns(stages):
        inner = []
        for stage in column:
            waits = [str(one) for one in stage.get("after") or ()]
            plain = waits == [str(one["name"]) for one in before] and len(waits) <= 1
            inner.append(_station(view, stage, planned.get(str(stage["name"])) or {}, chosen, now_s, plain))
        cells.append(f'<div class="tt-track-column">{"".join(inner)}</div>')
        before = column
    return f'<div class="tt-track" role="list" aria-label="stages">{"".join(cells)}</div>'


def _station(view: Row, stage: Row, planned: Row, chosen: str, now_s: float, plain: bool) -> str:
    name, state = str(stage["name"]), str(stage.get("state"))
    level, sign, text = lw.stage_words(stage)
    css = "tt-station" + (" tt-here" if name == chosen else "") + (" tt-done" if state == "passed" else "")
    if not any(name in (*(one.get("after") or ()), one.get("from")) for one in view.get("stages") or ()):
        css += " tt-leaf"  # its line leads nowhere
    told = [text, "kept from its parent" if stage.get("inherited") else lw.lasts(stage, now_s)]
    if not view.get("id"):  # a plan: nothing has a state yet
        told = [str(stage.get("role") or "")]
    inside = (
        f'<span class="tt-rail">{markup.glyph(level, sign)}<i class="tt-line"></i>{_diamond(stage)}'
        f'<b class="tt-station-name">{escape(name)}</b>'
        f'<small class="tt-{level}-words">{escape(" · ".join(part for part in told if part))}</small>'
        f"{_progress(stage)}{ticks(stage, planned)}"
    )
    if not plain:
        inside += f"<small>{escape(_waits(stage))}</small>"
    label = escape(f"{name}: {text}")
    if not view.get("id"):
        return f'<div class="{css}" role="listitem" aria-label="{label}">{inside}</div>'
    address = escape(href("lifecycle", {"lifecycle": view["id"], "stage": name}))
    return f'<a class="{css}" role="listitem" aria-label="{label}" href="{address}" target="_self">{inside}</a>'


def _waits(stage: Row) -> str:
    """after a and b, from c — what the lines cannot say where the plan is no chain."""
    after, source = [str(one) for one in stage.get("after") or ()], stage.get("from")
    parts = [f"after {' and '.join(after)}" if after else ""]
    parts.append(f"from {source}" if source and after != [source] else "")
    return ", ".join(part for part in parts if part)


def _diamond(stage: Row) -> str:
    """The gate at the end of the stage's line, by shape and sign; only the line where there is none."""
    gate = stage.get("gate")
    if not gate:
        return "</span>"
    level, sign, text = lw.GATE.get(str(gate.get("state")), lw.GATE["open"])
    needs = [str(one.get("requirement")) for one in gate.get("requirements") or ()]
    needs += ["a person's approval"] if gate.get("approval") else []
    title = escape(f"gate {text}: {', '.join(needs) or 'nothing is required'}")
    return (
        f'<i class="tt-gate tt-{level}" role="img" aria-label="{title}" title="{title}">{sign}</i>'
        '<i class="tt-line"></i></span>'
    )


def _progress(stage: Row) -> str:
    """A bar and its words, only while the stage is at work."""
    if stage.get("state") not in lw.AT_WORK:
        return ""
    progress = stage.get("progress") or {}
    share = min(max(float(progress.get("share") or 0.0), 0.0), 1.0)
    return (
        f'<span class="tt-track-bar"><i style="width:{100 * share:.1f}%"></i></span>'
        f"<small>{escape(lw.far(progress))}</small>"
    )


def ticks(stage: Row, planned: Row) -> str:
    """What the stage is made of, in order: each preparation, its own job, its evaluation; filled as far as done."""
    made: dict[tuple[str, str], str] = {}
    for run in stage.get("runs") or ():
        made[str(run.get("role")), str(run.get("item") or "")] = str(run.get("status"))
    role = str(stage.get("role") or "train")
    parts = [("prepare", str(one.get("name"))) for one in planned.get("prepare") or ()]
    parts += [key for key in made if key[0] == "prepare" and key not in parts]
    parts.append((role, ""))
    evaluated = (planned.get("gate") or {}).get("evaluation") or ("evaluate", "") in made
    if evaluated and role != "evaluate":
        parts.append(("evaluate", ""))
    if len(parts) == 1:
        return ""
    marks = []
    for key in parts:
        status = made.get(key)
        css = "tt-todo" if status is None else DONE.get(status, "tt-now")
        label = key[1] or ROLE_WORDS.get(key[0], key[0])
        title = escape(f"{key[0]} {key[1]}".strip() + f": {(status or 'not begun').replace('_', ' ')}")
        marks.append(f'<i class="tt-tick {css}" title="{title}">{escape(label)}</i>')
    return f'<span class="tt-ticks">{"".join(marks)}</span>'


def small(stages: Sequence[Row]) -> str:
    """A cell a stage, for a row of the list: filled when passed, half when at work, signed when held or failed."""
    cells = []
    for stage in stages:
        level, sign, text = lw.stage_words(stage)
        state = str(stage.get("state"))
        kind = "passed" if state == "passed" else "work" if state in lw.AT_WORK else "rest" if level == "off" else "bad"
        shown = sign if kind == "bad" else ""
        title = escape(f"{stage.get('name')}: {text}")
        cells.append(f'<i class="tt-cell tt-cell-{kind} tt-{level}" title="{title}">{escape(shown)}</i>')
    passed = sum(stage.get("state") == "passed" for stage in stages)
    label = f"{passed} of {len(stages)} stages passed"
    return f'<span class="tt-cells" role="img" aria-label="{label}">{"".join(cells)}</span>{passed} of {len(stages)}'
