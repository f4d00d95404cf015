"""Moments on a time chart: a line through every grid, and its label above it where it covers no other.

Why it exists: a fault, a return and what a person did stand seconds apart in minutes; printed over each other they say
nothing. Shape and word tell them apart as well as colour. Not a chart: figures.py puts them on one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.axes import Option, Palette

FONT = "IBM Plex Sans, sans-serif"
# Beyond this share of the axis a label has no room on its right and changes sides.
EDGE_SHARE = 0.78
# How far a label may reach over the axis' ends, and how wide one of its characters is on each chart, in shares of it.
AXIS_LEFT, AXIS_RIGHT = 0.04, 0.02
TIMELINE_CHAR, COUNTER_CHAR = 0.005, 0.014
FIRST_ROW_PX, ROW_PX = -8, 13
# A moment's level: the token of its words and its glyph; the token of its line. What a person did is quiet.
MARKS: Mapping[str, tuple[str, str]] = {"fault": ("fault_text", "×"), "ok": ("ok_text", "●"), "quiet": ("muted", "")}
LINES: Mapping[str, str] = {"fault": "fault", "ok": "ok", "quiet": "off"}


def labels(
    marks: Sequence[Mapping[str, Any]],
    window: tuple[float, float],
    top: float,
    palette: Palette,
    char: float,
    rows: int,
) -> list[Option]:
    """The marks' labels above their lines, each on a side and in a row where it covers no other; else it is left out.

    `char` is a character's width as a share of the axis. Texts are names to ECharts, so they are never templates.
    """
    span = max(window[1] - window[0], 1e-9)
    taken: list[tuple[int, float, float]] = []
    found = []
    for mark in sorted(marks, key=lambda mark: -float(mark["at_s"])):
        at = (float(mark["at_s"]) - window[0]) / span
        wide = char * (len(str(mark["label"])) + 3)
        sides = [(at, at + wide, "right"), (at - wide, at, "left")]
        # near the right end there is no room on that side; elsewhere only where another label stands
        free = [
            (row, low, high, side)
            for row in range(rows)
            for low, high, side in (reversed(sides) if at > EDGE_SHARE else sides)
            if all(one != row or high <= begin or low >= end for one, begin, end in taken)
        ]
        inside = [place for place in free if place[1] >= -AXIS_LEFT and place[2] <= 1.0 + AXIS_RIGHT]
        if not free:
            continue
        row, low, high, side = (inside or free)[0]
        taken.append((row, low, high))
        found.append(_label(mark, side, row, top, palette))
    return found[::-1]


def level_of(mark: Mapping[str, Any]) -> str:
    """fault, ok or quiet; a moment that does not say is a fault's."""
    level = str(mark.get("level") or "fault")
    return level if level in MARKS else "fault"


def _label(mark: Mapping[str, Any], side: str, row: int, top: float, palette: Palette) -> Option:
    token, glyph = MARKS[level_of(mark)]
    text = str(mark["label"])
    if glyph:
        text = f"{text} {glyph}" if side == "left" else f"{glyph} {text}"
    offset = [0, FIRST_ROW_PX - ROW_PX * row]
    return {
        "name": text,
        "value": [float(mark["at_s"]) * 1000.0, top],
        "label": {"position": side, "color": palette[token], "offset": offset},
    }


def label_series(labelled: list[Option]) -> Option:
    """Labels as a scatter of no size, which may stand outside of the grid."""
    return {
        "type": "scatter",
        "xAxisIndex": 0,
        "yAxisIndex": 0,
        "symbolSize": 0.1,
        "silent": True,
        "clip": False,
        "tooltip": {"show": False},
        "label": {
            "show": True,
            "formatter": "{b}",
            "fontSize": 11,
            "fontWeight": 600,
            "fontFamily": FONT,
            "distance": 2,
        },
        "data": labelled,
    }


def lines(marks: Sequence[Mapping[str, Any]], grid: int, palette: Palette) -> Option:
    """The marks' lines in one grid, as a series of their own."""
    return {
        "type": "line",
        "xAxisIndex": grid,
        "yAxisIndex": grid,
        "data": [],
        "silent": True,
        "markLine": line(marks, palette),
    }


def line(marks: Sequence[Mapping[str, Any]], palette: Palette) -> Option:
    """The marks' lines, for a series to carry."""
    return {
        "silent": True,
        "symbol": "none",
        "animation": False,
        "label": {"show": False},
        "lineStyle": {"width": 1.3, "type": "solid"},
        "data": [
            {
                "xAxis": float(mark["at_s"]) * 1000.0,
                "lineStyle": {"color": palette[LINES[level_of(mark)]]},
            }
            for mark in marks
        ],
    }
