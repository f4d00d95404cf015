"""GPU-hours lost over time, as a chart specification: what was not used, by cause, never what was.

Why it exists: a fleet that is 94 % busy looks well in any chart of what was used; the 6 % is what costs. The API tells
spans, each with its cause; bars of one width are made here, a span counted in each bar as far as it reaches into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from dashboards import words

Row = Mapping[str, Any]

# A cause is drawn in the colour of what it is: out of service, waiting, or starting and doing steps again.
ROLES: Mapping[str, str] = {
    "decide, drain": "warn",
    "place, checkpoint": "off",
    "start, load, steps run twice": "load",
    "hang": "hang",
}
FONT = "IBM Plex Sans, sans-serif"
# Widths that a bar may have, in seconds, and how many bars there are at most.
WIDTHS = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
MOST_BARS = 96


@dataclass(frozen=True)
class Bars:
    """Bars of `width_s` seconds; `hours[cause][bar]` are GPU-hours; the first bar begins at `begin_s`."""

    begin_s: float
    width_s: float
    hours: Mapping[str, list[float]]

    @property
    def count(self) -> int:
        return max((len(values) for values in self.hours.values()), default=0)


def bars_of(rows: Sequence[Row]) -> Bars:
    """The spans as bars; a span without a length counts in the bar it stands in. `rows` is not empty."""
    begin = min(float(row["from_s"]) for row in rows)
    end = max(float(row["to_s"]) for row in rows)
    width = next((width for width in WIDTHS if (end - begin) / width <= MOST_BARS - 1), WIDTHS[-1])
    begin = floor(begin / width) * width
    count = floor((end - begin) / width) + 1
    hours: dict[str, list[float]] = {}
    for row in rows:
        values = hours.setdefault(str(row.get("cause")), [0.0] * count)
        first, last = float(row["from_s"]), float(row["to_s"])
        lost = float(row.get("gpu_h") or 0.0)
        for bar in range(floor((first - begin) / width), floor((last - begin) / width) + 1):
            low, high = begin + bar * width, begin + (bar + 1) * width
            share = (min(last, high) - max(first, low)) / (last - first) if last > first else 1.0
            values[bar] += lost * max(share, 0.0)
    return Bars(begin, width, hours)


def span_words(bars: Bars) -> str:
    """18:50 to 18:50 UTC, 24 h, one bar = 15 m"""
    end = bars.begin_s + bars.count * bars.width_s
    clock = words.clock if bars.width_s < 60 else words.short_clock
    width = f"{bars.width_s:.0f} s" if bars.width_s < 60 else words.duration(bars.width_s)
    length = words.duration(bars.count * bars.width_s)
    return f"{clock(bars.begin_s)} to {clock(end)} UTC, {length}, one bar = {width}"


def lost_option(bars: Bars, palette: Mapping[str, str]) -> dict[str, Any]:
    """Stacked bars by cause on the wall clock in UTC."""
    label = {"color": palette["muted"], "fontSize": 11, "fontFamily": FONT}
    clock = words.clock if bars.width_s < 60 else words.short_clock
    series = [
        {
            "name": cause,
            "type": "bar",
            "stack": "lost",
            "barCategoryGap": "14%",
            "barMaxWidth": 24,
            "itemStyle": {"color": palette[role(cause)]},
            "data": [round(value, 4) for value in values],
        }
        for cause, values in bars.hours.items()
    ]
    return {
        "animation": False,
        "grid": {"left": 52, "right": 8, "top": 32, "bottom": 24},
        "legend": {"right": 8, "top": 0, "itemWidth": 11, "itemHeight": 8, "textStyle": label},
        "tooltip": {
            "trigger": "axis",
            "confine": True,
            "backgroundColor": palette["raised"],
            "borderColor": palette["strong_rule"],
            "textStyle": {"color": palette["text"], "fontSize": 12},
            "valueFormatter": "%,.3g",
        },
        "xAxis": {
            "type": "category",
            "data": [clock(bars.begin_s + bar * bars.width_s) for bar in range(bars.count)],
            "axisLabel": {**label, "interval": "auto", "hideOverlap": True, "margin": 11},
            "axisLine": {"lineStyle": {"color": palette["strong_rule"]}},
            "axisTick": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "splitNumber": 3,
            "name": "GPU-h",
            "nameTextStyle": label,
            "axisLabel": label,
            "splitLine": {"lineStyle": {"color": palette["rule"]}},
        },
        "series": series,
    }


def role(cause: str) -> str:
    """The token that paints a cause; an unknown cause is drawn as waiting."""
    return ROLES.get(cause.lower(), "off")
