"""Chart specifications: plain data and a palette in, an ECharts option out.

Why it exists: a chart's meaning (what is bridged, which colour says what) is decided here, where it can be tested
without a browser. It is not a drawing layer: pages hand the option to `st.echarts_chart`. ECharts options carry no
functions, so every label is a number format or a name that ECharts inserts as text, never as a template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards import moments
from dashboards.axes import Option, Palette, series_points, time_axis, tooltip, value_axis, value_scale

FONT = "IBM Plex Sans, sans-serif"
# The role of each phase of an attempt; the palette token that paints it.
PHASE_ROLES: Mapping[str, str] = {
    "planned": "queue",
    "queued": "queue",
    "submitting": "queue",
    "pending": "queue",
    "starting": "queue",
    "start": "queue",
    "init": "load",
    "load": "load",
    "compile": "load",
    "train": "train",
    "training": "train",
    "rollout": "train",
    "weight_sync": "load",
    "eval": "train",
    "checkpoint": "train",
    "suspect": "hang",
    "hang": "hang",
    "draining": "drain",
    "stopping": "drain",
    "exit": "drain",
}
ROLE_TOKENS: Mapping[str, str] = {
    "queue": "strong_rule",
    "load": "load",
    "train": "training",
    "hang": "hang",
    "drain": "warn",
}


def phase_role(phase: str) -> str:
    """The role (queue, load, train, hang, drain) of a phase's name; an unknown phase is drawn as waiting."""
    return PHASE_ROLES.get(phase, "queue")


@dataclass(frozen=True)
class Trace:
    """What one run did, as the API tells it: attempts, steps and checkpoints of the same run.

    `attempts` have no and phases [{phase, from_s, to_s}]; `steps` have no, step, at_s, loss, tokens_per_s;
    `checkpoints` have state_at_s and state; `faults` are moments with at_s, label and level (moments.py). Times
    are Unix seconds; an open phase ends at `now_s`.
    """

    attempts: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Mapping[str, Any]]
    faults: Sequence[Mapping[str, Any]]
    now_s: float
    gpus: int = 0


@dataclass(frozen=True)
class _Rate:
    """How throughput is written: its divisor and its unit."""

    divisor: float
    unit: str


def timeline_option(trace: Trace, palette: Palette, window: tuple[float, float]) -> Option:
    """Attempts, loss and throughput on one wall-clock axis [from, to] in Unix seconds: three grids in one option.

    Throughput is per GPU when the trace knows its GPUs. Each attempt is its own line, so no line crosses a restart.
    """
    rate = _rate(trace)
    losses = value_scale(value for row in trace.steps for value in row.get("loss", ()))
    rates = value_scale(_rates(trace, rate.divisor), parts=2, low_share=0.05)
    title = f"throughput, {rate.unit}" + (f", axis from {rates.low:,g}" if rates.low > 0 else "")
    return {
        "animation": False,
        "useUTC": True,
        "textStyle": {"fontFamily": FONT},
        "title": [_small_title("loss, nats", 56, palette), _small_title(title, 260, palette)],
        "grid": [
            {"left": 52, "right": 16, "top": 22, "height": 20},
            {"left": 52, "right": 16, "top": 78, "height": 168},
            {"left": 52, "right": 16, "top": 282, "height": 58},
        ],
        "xAxis": [time_axis(grid, window, palette, labelled=grid == 2) for grid in range(3)],
        "yAxis": [
            {"gridIndex": 0, "min": 0, "max": 1, "show": False},
            value_axis(1, losses, palette),
            value_axis(2, rates, palette),
        ],
        "axisPointer": {"link": [{"xAxisIndex": "all"}], "lineStyle": {"color": palette["faint"], "width": 1}},
        "tooltip": tooltip(palette),
        "dataZoom": [{"type": "inside", "xAxisIndex": [0, 1, 2], "zoomOnMouseWheel": "ctrl", "filterMode": "none"}],
        "series": _timeline_series(trace, rate, palette, window),
    }


def _timeline_series(trace: Trace, rate: _Rate, palette: Palette, window: tuple[float, float]) -> list[Option]:
    series = [_phase_band(trace, palette), _checkpoint_ticks(trace.checkpoints, palette)]
    labels = moments.labels(trace.faults, window, 1.0, palette, moments.TIMELINE_CHAR, rows=1)
    series.append(moments.label_series(labels))
    for row in trace.steps:
        rates = [None if value is None else value / rate.divisor for value in row.get("tokens_per_s", ())]
        series.append(_line(row, row.get("loss", ()), 1, f"loss, attempt {row['no']}", palette["ok"]))
        series.append(_line(row, rates, 2, f"{rate.unit}, attempt {row['no']}", palette["muted"]))
    return [*series, *(moments.lines(trace.faults, grid, palette) for grid in (1, 2))]


def _rates(trace: Trace, divisor: float) -> list[float]:
    return [value / divisor for row in trace.steps for value in row.get("tokens_per_s", ()) if value is not None]


def _rate(trace: Trace) -> _Rate:
    gpus = float(trace.gpus) if trace.gpus > 0 else 1.0
    unit = "tok/s/GPU" if trace.gpus > 0 else "tok/s"
    if max(_rates(trace, gpus), default=0.0) >= 10_000:
        return _Rate(gpus * 1000.0, f"k {unit}")
    return _Rate(gpus, unit)


def counter_option(
    at_s: Sequence[float], values: Sequence[float | None], marks: Sequence[Mapping[str, Any]], palette: Palette
) -> Option:
    """One measure around a fault as a step line; `marks` have at_s, label and level (fault, ok or quiet)."""
    window = (min(at_s), max(at_s)) if at_s else (0.0, 1.0)
    scale = value_scale([0.0, *values], parts=2)
    line = {
        "type": "line",
        "step": "end",
        "data": [point[:2] for point in series_points(at_s, values, [0] * len(at_s))],
        "showSymbol": False,
        "connectNulls": False,
        "lineStyle": {"color": palette["ok"], "width": 1.4},
        "itemStyle": {"color": palette["ok"]},
        "areaStyle": {"color": palette["ok"], "opacity": 0.08},
        "markLine": moments.line(marks, palette),
    }
    labels = moments.labels(marks, window, scale.high, palette, moments.COUNTER_CHAR, rows=2)
    top = 24 + moments.ROW_PX * any(label["label"]["offset"][1] < moments.FIRST_ROW_PX for label in labels)
    return {
        "animation": False,
        "useUTC": True,
        "textStyle": {"fontFamily": FONT},
        "grid": [{"left": 52, "right": 12, "top": top, "bottom": 24}],
        "xAxis": [time_axis(0, window, palette, labelled=True)],
        "yAxis": [value_axis(0, scale, palette)],
        "tooltip": tooltip(palette),
        "series": [line, moments.label_series(labels)],
    }


def time_window(
    attempts: Sequence[Mapping[str, Any]], now_s: float, choice: str = "all", hour_s: float = 3600.0
) -> tuple[float, float]:
    """The axis [from, to] in Unix seconds for `all`, `attempt` (the newest one) or `hour`, never empty."""
    starts = [float(phase["from_s"]) for attempt in attempts for phase in attempt.get("phases", ())]
    ends = [float(phase["to_s"] or now_s) for attempt in attempts for phase in attempt.get("phases", ())]
    if not starts:
        return now_s - 60.0, now_s
    first, last = min(starts), max(ends)
    if choice == "hour":
        first = max(first, last - hour_s)
    elif choice == "attempt":
        newest = [float(phase["from_s"]) for phase in attempts[-1].get("phases", ())]
        first = min(newest) if newest else first
    span = max(last - first, 1.0)
    return first - 0.004 * span, last + 0.004 * span


def merge_phases(phases: Sequence[Mapping[str, Any]], now_s: float) -> list[tuple[str, float, float]]:
    """(role, from, to) of an attempt's phases in seconds: neighbours of one role joined, the open one ends now."""
    merged: list[tuple[str, float, float]] = []
    for phase in phases:
        role, start = phase_role(str(phase["phase"])), float(phase["from_s"])
        end = float(phase["to_s"]) if phase.get("to_s") is not None else max(now_s, start)
        if merged and merged[-1][0] == role and start - merged[-1][2] < 1.0:
            merged[-1] = (role, merged[-1][1], end)
        elif end > start:
            merged.append((role, start, end))
    return merged


def _phase_band(trace: Trace, palette: Palette) -> Option:
    """A bar per attempt, cut into its phases; the attempt's name stands where it trained longest."""
    areas: list[list[Option]] = []
    for attempt in trace.attempts:
        parts = merge_phases(attempt.get("phases", ()), trace.now_s)
        trained = [part for part in parts if part[0] == "train"]
        longest = max(trained or parts, key=lambda part: part[2] - part[1], default=None)
        for part in parts:
            role, start, end = part
            area: Option = {"xAxis": start * 1000.0, "itemStyle": {"color": palette[ROLE_TOKENS[role]]}}
            if part is longest:
                label = {
                    "show": True,
                    "position": "insideLeft",
                    "distance": 6,
                    "fontSize": 11,
                    "fontWeight": 600,
                    "fontFamily": FONT,
                }
                area |= {"name": f"attempt {attempt['no']}", "label": {**label, "color": palette["text"]}}
            areas.append([area, {"xAxis": end * 1000.0}])
    return {
        "type": "line",
        "xAxisIndex": 0,
        "yAxisIndex": 0,
        "data": [],
        "silent": True,
        "markArea": {"silent": True, "label": {"show": False}, "data": areas},
        "markLine": moments.line(trace.faults, palette),
    }


def _checkpoint_ticks(checkpoints: Sequence[Mapping[str, Any]], palette: Palette) -> Option:
    colours = {"tainted": palette["fault"], "complete": palette["warn"], "writing": palette["warn"]}
    return {
        "type": "scatter",
        "name": "checkpoint",
        "xAxisIndex": 0,
        "yAxisIndex": 0,
        "symbol": "rect",
        "symbolSize": [1.4, 7],
        "symbolOffset": [0, 6],
        "clip": False,
        "silent": True,
        "data": [
            {
                "value": [float(row["state_at_s"]) * 1000.0, 0],
                "itemStyle": {"color": colours.get(str(row.get("state")), palette["muted"])},
            }
            for row in checkpoints
            if row.get("state_at_s") is not None
        ],
    }


def _line(row: Mapping[str, Any], values: Sequence[float | None], grid: int, name: str, colour: str) -> Option:
    return {
        "type": "line",
        "name": name,
        "xAxisIndex": grid,
        "yAxisIndex": grid,
        "dimensions": ["time", name, "step"],
        "encode": {"x": 0, "y": 1, "tooltip": [1, 2]},
        "data": series_points(row.get("at_s", ()), values, row.get("step", ())),
        "showSymbol": False,
        "connectNulls": False,
        "lineStyle": {"color": colour, "width": 1.2},
        "itemStyle": {"color": colour},
        "emphasis": {"disabled": True},
    }


def _small_title(text: str, top: int, palette: Palette) -> Option:
    style = {"fontSize": 11, "fontWeight": 600, "color": palette["text"]}
    return {"text": text, "left": 46, "top": top, "textStyle": style}
