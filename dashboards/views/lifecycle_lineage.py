"""Checkpoints of a lifecycle as the rows of a commit graph: which began from which, what is tainted, where aliases are.

Why it exists: "what was this made from" is answered by following a line with the eye. The order is that of making,
oldest first; a first child goes on in its parent's lane and every other one opens a lane of its own. Long plain
stretches of one run are one row. Lines are cells with borders, because `st.html` drops inline SVG.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from html import escape
from typing import Any

from dashboards import markup, words
from dashboards.markup import href
from dashboards.views import lifecycle_words as lw
from dashboards.views.job_cards import CHECKPOINT_STATE, glyph_chip

Row = Mapping[str, Any]
FOLD_FROM = 3  # so many plain neighbours of one run are one row


@dataclass
class Line:
    """A row of the graph: its checkpoints (more than one when they are folded), its lane, the row it comes from."""

    nodes: list[Row]
    lane: int
    parent: int | None = None
    kind: str = ""

    @property
    def node(self) -> Row:
        """The newest checkpoint of the row."""
        return self.nodes[-1]

    @property
    def tainted(self) -> bool:
        """Whether the row stands on a tainted branch."""
        return bool(self.node.get("tainted"))


@dataclass
class Cell:
    """What is drawn of one lane in one row: the line above and below the middle, across it, and a dot."""

    up: str = ""
    down: str = ""
    left: str = ""
    right: str = ""
    dot: bool = field(default=False)


def in_order(nodes: Sequence[Row], edges: Sequence[Row]) -> list[Row]:
    """Parents before children, else by time: a clock that was set back draws no line upwards."""
    known = {str(node["hash"]): node for node in nodes}
    children: dict[str, list[str]] = {}
    missing = dict.fromkeys(known, 0)
    for edge in edges:
        old, new = str(edge.get("from")), str(edge.get("to"))
        if old in known and new in known and old != new:
            children.setdefault(old, []).append(new)
            missing[new] += 1

    def key(name: str) -> tuple[float, int, str]:
        return (float(known[name].get("at_s") or 0.0), int(known[name].get("step") or 0), name)

    ready = [key(name) for name, count in missing.items() if not count]
    heapify(ready)
    found = []
    while ready:
        name = heappop(ready)[2]
        found.append(known[name])
        for child in children.get(name, ()):
            missing[child] -= 1
            if not missing[child]:
                heappush(ready, key(child))
    return found


def lines(lineage: Row) -> list[Line]:
    """The rows of the graph, folded, each with its lane and the row that it comes from."""
    nodes, edges = lineage.get("nodes") or (), lineage.get("edges") or ()
    ordered = in_order(nodes, edges)
    parents = {str(edge["to"]): edge for edge in reversed(edges) if edge.get("from") != edge.get("to")}
    left: dict[str, int] = {}
    for edge in parents.values():
        left[str(edge["from"])] = left.get(str(edge["from"]), 0) + 1
    row_of: dict[str, int] = {}
    found: list[Line] = []
    tips: dict[int, int] = {}
    for group in _folded(ordered, parents, left):
        first = str(group[0]["hash"])
        edge = parents.get(first)
        parent = row_of.get(str(edge["from"])) if edge else None
        lane = _lane(found, tips, left, parent)
        if edge is not None:
            left[str(edge["from"])] -= 1
        for node in group:
            row_of[str(node["hash"])] = len(found)
        for node in group[:-1]:
            left[str(node["hash"])] = 0
        tips[lane] = len(found)
        found.append(Line(group, lane, parent, str(edge.get("kind") or "") if edge else ""))
    return found


def _lane(found: Sequence[Line], tips: Mapping[int, int], left: Mapping[str, int], parent: int | None) -> int:
    """The parent's lane while the parent is the last of it; else the first one that is empty from the parent down.

    `tips`: the last row of each lane; `left`: how many children of a checkpoint are still to come.
    """
    if parent is not None and tips.get(found[parent].lane) == parent:
        return found[parent].lane
    lane = 0
    while lane in tips:
        last = tips[lane]
        waits = left.get(str(found[last].node["hash"]), 0) > 0
        if not waits and (parent is None or last < parent):
            break
        lane += 1
    return lane


def _folded(ordered: Sequence[Row], parents: Mapping[str, Row], children: Mapping[str, int]) -> list[list[Row]]:
    """Neighbours that say nothing by themselves, of one run and in one line, as one group."""
    groups: list[list[Row]] = []
    for node in ordered:
        last = groups[-1][-1] if groups else None
        edge = parents.get(str(node["hash"]))
        goes_on = last is not None and edge is not None and str(edge["from"]) == str(last["hash"])
        plain = [
            _plain(one, parents.get(str(one["hash"])), children) for one in (*(groups[-1] if goes_on else ()), node)
        ]
        if last is not None and goes_on and all(plain) and _same_branch(last, node):
            groups[-1].append(node)
        else:
            groups.append([node])
    return [part for group in groups for part in ([group] if len(group) >= FOLD_FROM else [[one] for one in group])]


def _plain(node: Row, edge: Row | None, children: Mapping[str, int]) -> bool:
    marked = node.get("aliases") or node.get("candidate")
    return not marked and edge is not None and edge.get("kind") == "parent" and children.get(str(node["hash"]), 0) <= 1


def _same_branch(one: Row, other: Row) -> bool:
    return all(one.get(name) == other.get(name) for name in ("run", "attempt", "tainted", "state"))


def cells(rows: Sequence[Line]) -> list[list[Cell]]:
    """What each lane shows in each row."""
    width = 1 + max((row.lane for row in rows), default=-1)
    grid = [[Cell() for _ in range(width)] for _ in rows]
    for at, row in enumerate(rows):
        grid[at][row.lane].dot = True
        if row.parent is None:
            continue
        kind = "tt-tainted" if row.tainted else "tt-sound"
        begin = rows[row.parent].lane
        for lane in range(min(begin, row.lane), max(begin, row.lane)):
            grid[row.parent][lane].right = grid[row.parent][lane + 1].left = kind
        for between in range(row.parent, at + 1):
            if between > row.parent:
                grid[between][row.lane].up = kind
            if between < at:
                grid[between][row.lane].down = kind
    return grid


def graph(lineage: Row, stage: str = "") -> str:
    """The graph as markup; rows of the chosen stage are marked at their left."""
    rows = lines(lineage)
    if not rows:
        return markup.empty("No checkpoint yet: the first one stands here as soon as a stage has saved it.")
    width = 1 + max(row.lane for row in rows)
    heads = "".join(
        f"<span>{name}</span>" for name in ("", "checkpoint", "stage", "step", "is", "made by", "saved, UTC")
    )
    parts = [f'<div class="tt-graph-row tt-graph-heads">{heads}</div>']
    for row, drawn in zip(rows, cells(rows), strict=True):
        lanes = "".join(_drawn(cell, row) for cell in drawn)
        here = " tt-here" if stage and row.node.get("stage") == stage else ""
        parts.append(
            f'<div class="tt-graph-row{here}"><span class="tt-graph-lanes">{lanes}</span>{_cells_of(row)}</div>'
        )
    tainted = sum(len(row.nodes) for row in rows if row.tainted)
    count = sum(len(row.nodes) for row in rows)
    label = f"{words.plural(count, 'checkpoint')}, {tainted} tainted"
    return (
        f'<div class="tt-scroll"><div class="tt-graph" role="img" aria-label="{label}" '
        f'style="--tt-lanes:{width * 20}px">{"".join(parts)}</div></div>'
    )


def _drawn(cell: Cell, row: Line) -> str:
    strokes = "".join(
        f'<i class="tt-stroke tt-{side} {kind}"></i>'
        for side, kind in (("up", cell.up), ("down", cell.down), ("left", cell.left), ("right", cell.right))
        if kind
    )
    return f'<span class="tt-graph-lane">{strokes}{_dot(row) if cell.dot else ""}</span>'


def _dot(row: Line) -> str:
    """A square × on a tainted branch, a diamond for what a gate judged, a ring for several, else a dot."""
    if row.tainted:
        return markup.glyph("fault")
    if row.node.get("candidate"):
        level, sign = ("ok", "✓") if row.node.get("passed") else ("off", "")
        return f'<i class="tt-gate tt-{level}">{sign}</i>'
    return f'<i class="tt-graph-dot{" tt-many" if len(row.nodes) > 1 else ""}"></i>'


def _cells_of(row: Line) -> str:
    node, first = row.node, row.nodes[0]
    step = words.number(node.get("step"))
    if len(row.nodes) > 1:
        named = f'<span class="tt-muted">{words.plural(len(row.nodes), "checkpoint")}</span>'
        step = f"{words.number(first.get('step'))}–{step}"
    else:
        named = lw.hash_span(node.get("hash"))
    run = str(node.get("run") or "")
    made = f'<a href="{escape(href("job", {"run": run}))}" target="_self">{escape(run)}</a>' if run else words.UNKNOWN
    attempt = f" <small>attempt {escape(str(node['attempt']))}</small>" if node.get("attempt") else ""
    title = escape(str(node.get("path") or ""))
    return (
        f"<span>{named}</span><span>{escape(str(node.get('stage') or ''))}</span><span>{step}</span>"
        f'<span title="{escape(str(node.get("reason") or ""))}">{_marks(row)}</span>'
        f'<span title="{title}">{made}{attempt}</span><span>{words.clock(node.get("at_s"))}</span>'
    )


def _marks(row: Line) -> str:
    """State in words, then what is known of it: candidate, passed, resumed from, its aliases."""
    node = row.node
    level, sign, text = CHECKPOINT_STATE.get(str(node.get("state")), ("off", "○", str(node.get("state"))))
    said = [glyph_chip("fault", "×", "tainted") if row.tainted else glyph_chip(level, sign, text)]
    if node.get("candidate"):
        said.append("passed" if node.get("passed") else "candidate")
    if row.kind == "resumed":
        said.append("resumed")
    return ", ".join(said) + "".join(f" {markup.chip(alias, 'ok')}" for alias in node.get("aliases") or ())
