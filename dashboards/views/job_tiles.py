"""The six tiles of a run: when it ends, how well it learns, how fast it is, what was lost, what is saved.

Why it exists: a tile is where an unknown is most easily shown as a zero. Each function here says a dash and the reason
instead. Tiles are plain mappings (label, value, unit, context, level) as in the API's Now view.
"""

from collections.abc import Mapping
from typing import Any

from dashboards import words

Row = Mapping[str, Any]
Tile = dict[str, str]


def tile(label: str, value: str, unit: str = "", context: str = "", level: str = "ok") -> Tile:
    """One tile; `level` other than ok adds a glyph."""
    return {"label": label, "value": value, "unit": unit, "context": context, "level": level}


def tiles(run: Row, steps: Row, now_s: float) -> list[Tile]:
    """The row of tiles of one run, the widest (the end of the stage) first."""
    return [
        eta_tile(run, now_s),
        loss_tile(run, steps),
        rate_tile(run),
        step_tile(run),
        goodput_tile(run),
        checkpoint_tile(run, now_s),
    ]


def eta_tile(run: Row, now_s: float) -> Tile:
    """When the stage ends, as a range; the words of its end when it has ended."""
    status = str(run.get("status"))
    ended = max((float(row["ended_s"]) for row in run.get("attempts") or () if row.get("ended_s")), default=None)
    if status in ("succeeded", "failed", "cancelled"):
        word = {"succeeded": "done", "failed": "failed", "cancelled": "stopped"}[status]
        context = f"ran {words.duration(ended - float(run['created_s']))} since submit" if ended else ""
        level = "fault" if status == "failed" else "ok"
        return tile(f"stage {word}", words.day_and_clock(ended, now_s), "UTC" if ended else "", context, level)
    eta = run.get("eta")
    if not eta:
        reasons = {
            "paused": "paused: no end while it waits",
            "queued": "waits for nodes",
            "needs_human": "waits for a person",
        }
        return tile("stage done", words.UNKNOWN, "", reasons.get(status, "known after the first steps"))
    low, high = float(eta["low_s"]), float(eta["high_s"])
    left = words.duration(low) if high - low < 1 else f"{words.duration(low)} to {words.duration(high)}"
    return tile("stage done, likely range", words.eta_range(low, high, now_s), "UTC", f"{left} left")


def loss_tile(run: Row, steps: Row) -> Tile:
    """The newest loss and its change over the steps that are shown."""
    loss = run.get("loss")
    attempts = [row for row in steps.get("attempts") or () if row.get("loss")]
    if loss is None or not attempts:
        return tile(
            "loss", words.figure(loss), "nats" if loss is not None else "", "" if loss is not None else "no step yet"
        )
    newest = attempts[-1]
    back = min(len(newest["loss"]) - 1, 64)
    before, last = newest["loss"][-1 - back], newest["loss"][-1]
    count = int(newest["step"][-1]) - int(newest["step"][-1 - back])
    if before is None or last is None or count <= 0:
        return tile("loss", words.figure(loss, 4), "nats")
    change = f"{last - before:+.3f}".replace("-", "−")
    return tile("loss", words.figure(loss, 4), "nats", f"{change} over {words.plural(count, 'step')}")


def rate_tile(run: Row) -> Tile:
    """Tokens a second; a GPU's share of it below when the run's GPUs are known."""
    rate, gpus = run.get("tokens_per_s"), int(run.get("gpus") or 0)
    if rate is None:
        return tile("throughput", words.UNKNOWN, "", "no step yet")
    if gpus and rate / gpus >= 1000:
        whole = f"{rate / 1e6:.1f} M" if rate >= 1e6 else words.number(rate)
        return tile("throughput", words.number(rate / gpus), "tok/s/GPU", f"{whole} tok/s on {gpus} GPUs")
    return tile(
        "throughput", words.number(rate), "tok/s", f"{words.figure(rate / gpus)} a GPU on {gpus} GPUs" if gpus else ""
    )


def step_tile(run: Row) -> Tile:
    """The median step, its 95th percentile and the rank that is slowest."""
    times = run.get("step_seconds") or {}
    median = times.get("median")
    if median is None:
        return tile("step time", words.UNKNOWN, "", "no step yet")
    parts = [f"p95 {words.figure(times['p95'])} s"] if times.get("p95") is not None else []
    if times.get("slowest_rank") is not None:
        parts.append(f"slowest rank {times['slowest_rank']}")
    return tile("step time", words.figure(median), "s", ", ".join(parts))


def goodput_tile(run: Row) -> Tile:
    """The share of GPU time that made steps which were kept; below it, how long that was measured."""
    goodput = run.get("goodput") or {}
    percent = goodput.get("percent")
    if percent is None:
        return tile("goodput", words.UNKNOWN, "", "known after the first steps")
    lost = sum(float(row.get("gpu_h") or 0.0) for row in goodput.get("lost") or ())
    context = f"{words.figure(lost)} GPU-hours lost" if lost else "of the time since submit"
    return tile("goodput", f"{percent:.1f}", "%", context)


def checkpoint_tile(run: Row, now_s: float) -> Tile:
    """The newest checkpoint: its step, age, state and size."""
    row = run.get("last_checkpoint")
    if not row:
        return tile("last checkpoint", words.UNKNOWN, "", "none yet")
    written = row.get("written_at_s")
    since = row["age_s"] if row.get("age_s") is not None else (now_s - written if written else None)
    state = {"validated": "verified", "complete": "not verified yet"}.get(str(row.get("state")), str(row.get("state")))
    level = {"validated": "ok", "tainted": "fault"}.get(str(row.get("state")), "warn")
    context = f"{state}, {words.size(row.get('bytes'))}"
    return tile("last checkpoint", words.number(row.get("step")), f"{words.age(since)} ago", context, level)
