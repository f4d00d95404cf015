"""GPU-hours lost over time, as a chart specification: what was not used, by cause, never what was.

Why it exists: a fleet that is 94 % busy looks well in any chart of what was used; the 6 % is what costs. The API tells
spans, each with its cause; bars of one width are made here, a span counted in each bar as far as it reaches into it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from dashboards import words

Row = Mapping[str, Any]

# A cause is drawn in the colour of what it is, from the bottom up: out of service, waiting, starting and doing steps
# again, hanging.
ROLES: Mapping[str, str] = {
    "out of service": "warn",
    "queue, drain, checkpoint": "off",
    "start, load, steps run twice": "load",
    "hang": "hang",
}
FONT = "IBM Plex Sans, sans-serif"
# Widths that a bar may have, in seconds, and how many bars there are at most.
WIDTHS = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
MOST_BARS = 96


# A bar this much lower than the highest is not named after its incident: most are of no account.
NAMED_FROM = 0.1


@dataclass(frozen=True)
class Bars:
    """Bars of `width_s` seconds; `hours[cause][bar]` are GPU-hours; the first bar begins at `begin_s`.

    `names[bar]` is the incident that a bar is named after: the one whose loss is nowhere greater.
    """

    begin_s: float
    width_s: float
    hours: Mapping[str, list[float]]
    names: Mapping[int, str]

    @property
    def count(self) -> int:
        return max((len(values) for values in self.hours.values()), default=0)

    def total(self, bar: int) -> float:
        """GPU-hours lost in a bar, to all causes."""
        return sum(values[bar] for values in self.hours.values())


def bars_of(rows: Sequence[Row]) -> Bars:
    """The spans as bars; a span without a length counts in the bar it stands in. `rows` is not empty."""
    begin = min(float(row["from_s"]) for row in rows)
    end = max(float(row["to_s"]) for row in rows)
    width = next((width for width in WIDTHS if (end - begin) / width <= MOST_BARS), WIDTHS[-1])
    begin = floor(begin / width) * width
    count = floor((end - begin) / width) + 1
    order = list(ROLES)
    causes = sorted({str(row.get("cause")) for row in rows}, key=lambda one: order.index(one) if one in order else -1)
    hours = {cause: [0.0] * count for cause in causes}
    of_incident: dict[int, list[float]] = {}
    for row in rows:
        number = row.get("incident")
        for bar, lost in _along(row, begin, width):
            hours[str(row.get("cause"))][bar] += lost
            if number is not None:
                of_incident.setdefault(int(number), [0.0] * count)[bar] += lost
    bars = Bars(begin, width, hours, {})
    return Bars(begin, width, hours, _named(bars, of_incident))


def _along(row: Row, begin: float, width: float) -> Iterator[tuple[int, float]]:
    """(bar, GPU-hours) of each bar that a span reaches into."""
    first, last = float(row["from_s"]), float(row["to_s"])
    lost = float(row.get("gpu_h") or 0.0)
    for bar in range(floor((first - begin) / width), floor((last - begin) / width) + 1):
        low, high = begin + bar * width, begin + (bar + 1) * width
        share = (min(last, high) - max(first, low)) / (last - first) if last > first else 1.0
        yield bar, lost * max(share, 0.0)


def _named(bars: Bars, of_incident: Mapping[int, list[float]]) -> dict[int, str]:
    """One name a bar, the costlier incident's, where the bar is high enough to be looked at."""
    highest = max(map(bars.total, range(bars.count)), default=0.0)
    found: dict[int, str] = {}
    for number, hours in sorted(of_incident.items(), key=lambda one: max(one[1])):
        costly = [bar for bar in range(bars.count) if hours[bar] >= max(hours) / 2]
        bar = max(costly, key=bars.total)  # a name on a bar in the shade of its neighbour would stand on that
        if bars.total(bar) >= NAMED_FROM * highest > 0:
            found[bar] = f"INC-{number:04d}"
    return found


def lost_words(rows: Sequence[Row], of: Row) -> str:
    """1,450 of 24,576 GPU-hours, 5.9 %; without the whole only what was lost."""
    lost, whole = sum(float(row.get("gpu_h") or 0.0) for row in rows), float(of.get("gpu_h") or 0.0)
    if not whole:
        return f"{words.figure(lost)} GPU-hours"
    return f"{words.figure(lost)} of {words.figure(whole)} GPU-hours, {100 * lost / whole:.1f} %"


def span_words(bars: Bars, gpus: int = 0) -> str:
    """18:50 to 18:50 UTC, 1 d, share of 1,024 GPUs, one bar = 15 m"""
    end = bars.begin_s + bars.count * bars.width_s
    clock = words.clock if bars.width_s < 60 else words.short_clock
    width = f"{bars.width_s:.0f} s" if bars.width_s < 60 else words.span(bars.width_s)
    length = words.span(bars.count * bars.width_s)
    share = f"share of {words.plural(gpus, 'GPU')}, " if gpus else ""
    return f"{clock(bars.begin_s)} to {clock(end)} UTC, {length}, {share}one bar = {width}"


def lost_option(bars: Bars, palette: Mapping[str, str], gpus: int = 0) -> dict[str, Any]:
    """Stacked bars by cause on the wall clock in UTC: percent of `gpus`, or GPU-hours where their number is unknown."""
    label = {"color": palette["muted"], "fontSize": 11, "fontFamily": FONT}
    scale = 100 / (gpus * bars.width_s / 3600) if gpus else 1.0
    axis = {"axisLabel": {**label, "formatter": "{value} %"}} if gpus else {"axisLabel": label, "name": "GPU-h"}
    clock = words.clock if bars.width_s < 60 else words.short_clock
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
            "nameTextStyle": label,
            **axis,
            "splitLine": {"lineStyle": {"color": palette["rule"]}},
        },
        "series": _series(bars, palette, label, scale),
    }


def _series(bars: Bars, palette: Mapping[str, str], label: Mapping[str, Any], scale: float) -> list[dict[str, Any]]:
    """One series a cause; the names stand on the uppermost, which ends where the whole bar does."""
    series: list[dict[str, Any]] = [
        {
            "name": cause,
            "type": "bar",
            "stack": "lost",
            "barCategoryGap": "14%",
            "barMaxWidth": 24,
            "itemStyle": {"color": palette[role(cause)]},
            "data": [round(value * scale, 4) for value in values],
        }
        for cause, values in bars.hours.items()
    ]
    top = series[-1]
    top["labelLayout"] = {"hideOverlap": True}
    for bar, name in bars.names.items():
        shown = {**label, "show": True, "position": "top", "formatter": name}
        top["data"][bar] = {"value": top["data"][bar], "label": shown}
    return series


def role(cause: str) -> str:
    """The token that paints a cause; an unknown cause is drawn as waiting."""
    return ROLES.get(cause.lower(), "off")
