"""Parts every chart shares: the time axis, a value axis with round ends, the tooltip, and lines that break at gaps.

Why it exists: an axis that starts anywhere, or a line drawn over a silence, tells something that was not measured.
Not a chart: figures.py puts these parts together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite, log10
from statistics import median
from typing import Any

Palette = Mapping[str, str]
Option = dict[str, Any]
Point = list[float | int | None]

# How much longer than the usual distance between two points a silence must be to count as a gap.
GAP_FACTOR = 4.0
# Below this span, in seconds, the time axis writes seconds on every label.
SECONDS_SPAN = 900.0


def series_points(at_s: Sequence[float], values: Sequence[float | None], steps: Sequence[int]) -> list[Point]:
    """Points [milliseconds, value, step] with an empty point wherever the silence is longer than usual.

    A value that is not known (None, not finite) stays empty, so that nothing is drawn over it.
    """
    known = [value if value is not None and isfinite(value) else None for value in values]
    rows: list[Point] = [[at * 1000.0, value, step] for at, value, step in zip(at_s, known, steps, strict=False)]
    distances = [(later - sooner) * 1000.0 for sooner, later in pairwise(at_s[: len(rows)])]
    usual = median(distances) if len(distances) > 1 else 0.0
    points = rows[:1]
    for at, distance, row in zip(at_s, distances, rows[1:], strict=False):
        if usual > 0 and distance > GAP_FACTOR * usual:
            points.append([at * 1000.0 + distance / 2, None, None])
        points.append(row)
    return points


@dataclass(frozen=True)
class Scale:
    """A value axis: its ends and the distance between its labels, all rounded to 1, 2 or 5 × 10ⁿ."""

    low: float
    high: float
    interval: float


def value_scale(values: Iterable[float | None], parts: int = 4, low_share: float = 0.0) -> Scale:
    """The axis around the known values above the `low_share` quantile; 0 to 1 when nothing is known.

    The axis starts at zero unless the values fill less than its upper half: a small change must stay visible.
    """
    known = sorted(value for value in values if value is not None and isfinite(value))
    if not known:
        return Scale(0.0, 1.0, 0.5)
    low, high = known[int(low_share * (len(known) - 1))], known[-1]
    if 0 <= low < 0.5 * high:
        low = 0.0
    if high - low <= 1e-12 * max(abs(high), 1.0):
        margin = abs(high) * 0.05 or 1.0
        low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    interval = _round_step((high - low) / parts)
    return Scale(
        round(floor(low / interval + 1e-9) * interval, 12), round(ceil(high / interval - 1e-9) * interval, 12), interval
    )


def time_axis(grid: int, window: tuple[float, float], palette: Palette, *, labelled: bool) -> Option:
    """The wall clock in UTC over `window` [from, to] in Unix seconds; only the lowest grid's axis is labelled."""
    short = window[1] - window[0] < SECONDS_SPAN
    clock = "{HH}:{mm}:{ss}" if short else "{HH}:{mm}"
    return {
        "type": "time",
        "gridIndex": grid,
        "min": window[0] * 1000.0,
        "max": window[1] * 1000.0,
        "axisLine": {"show": grid > 0, "lineStyle": {"color": palette["strong_rule" if labelled else "rule"]}},
        "axisTick": {"show": False},
        "splitLine": {"show": False},
        "axisLabel": {
            "show": labelled,
            "color": palette["muted"],
            "fontSize": 11,
            "hideOverlap": True,
            "formatter": {"day": "{d} {MMM}", "hour": clock, "minute": clock, "second": clock, "millisecond": clock},
        },
        "axisPointer": {"show": True, "label": {"show": labelled}},
    }


def value_axis(grid: int, scale: Scale, palette: Palette) -> Option:
    """A value axis of one grid with labels exactly at the scale's interval."""
    return {
        "type": "value",
        "gridIndex": grid,
        "min": scale.low,
        "max": scale.high,
        "interval": scale.interval,
        "axisLine": {"show": False},
        "axisTick": {"show": False},
        "axisLabel": {"color": palette["muted"], "fontSize": 11},
        "splitLine": {"lineStyle": {"color": palette["rule"], "width": 1}},
    }


def tooltip(palette: Palette) -> Option:
    """A tooltip of the whole axis in the page's own colours; ECharts escapes the names it shows."""
    return {
        "trigger": "axis",
        "confine": True,
        "backgroundColor": palette["raised"],
        "borderColor": palette["strong_rule"],
        "textStyle": {"color": palette["text"], "fontSize": 12},
        "valueFormatter": "%,.4g",
    }


def _round_step(raw: float) -> float:
    """The smallest 1, 2 or 5 × 10ⁿ at or above `raw`, which is above zero."""
    power = 10.0 ** floor(log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if raw <= factor * power * (1 + 1e-9))
