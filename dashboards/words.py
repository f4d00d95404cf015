"""Numbers, times and states as a reader says them: the same words on every page, in the CLI's units.

Why it exists: "2 m 52 s" on one page and "172.3 s" on the next is two facts to compare. Unknown is a dash, never zero.
No markup here and no Streamlit: plain text that the callers escape.
"""

import re
from datetime import UTC, datetime
from math import isfinite

UNKNOWN = "–"
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators: 36,957; a dash when it is not known."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return f"{value:,.{digits}f}"


def compact(value: float | None) -> str:
    """A count or a reading of any size in at most six characters: 0.4, 690, 12.3k, 4.1G; a dash if it is unknown."""
    if value is None:
        return "–"
    size = abs(value)
    for limit, divisor, letter in (
        (1e4, 1.0, ""),
        (1e6, 1e3, "k"),
        (1e9, 1e6, "M"),
        (1e12, 1e9, "G"),
        (1e15, 1e12, "T"),
    ):
        if size < limit:
            scaled = value / divisor
            return f"{scaled:.0f}{letter}" if scaled == round(scaled) or abs(scaled) >= 100 else f"{scaled:.1f}{letter}"
    return f"{value:.1e}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant figures, without an exponent: 2.03, 0.712, 26,395."""
    if value is None or not isfinite(value):
        return UNKNOWN
    if value == 0 or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    places = digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits
    return f"{value:,.{max(places, 0)}f}"


def duration(seconds: float | None) -> str:
    """Seconds in their two largest units, as the server says it: 2.2 s, 41 s, 2 m 52 s, 1 h 02 m, 3 d 4 h."""
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds < 0:
        return "−" + duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} m {whole % MINUTE_S:02d} s"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S:02d} m"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def span(seconds: float) -> str:
    """The length of a round stretch, without the zeros of its smaller unit: 15 m, 2 h, 1 d."""
    return re.sub(r" 0+ [smh]$", "", duration(seconds))


def age(seconds: float | None) -> str:
    """How long ago, in its largest unit as in a table column: 8 s, 11 m, 2 h 15 m, 3 d."""
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    seconds = max(seconds, 0.0)
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < HOUR_S:
        return f"{int(seconds // MINUTE_S)} m"
    return duration(seconds) if seconds < 2 * DAY_S else f"{int(seconds // DAY_S)} d"


def offset(seconds: float) -> str:
    """A time after another: +1.1 s, +43 s, +2 m 30 s; a time before it with a minus."""
    return ("+" if seconds >= 0 else "") + duration(seconds)


def clock(at_s: float | None, *, tenths: bool = False) -> str:
    """The UTC time of day: 16:37:40, or 16:37:40.0 with tenths."""
    if at_s is None:
        return UNKNOWN
    moment = datetime.fromtimestamp(at_s, UTC)
    return moment.strftime("%H:%M:%S") + (f".{moment.microsecond // 100_000}" if tenths else "")


def short_clock(at_s: float | None) -> str:
    """The UTC time of day to the minute: 16:37."""
    return UNKNOWN if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%H:%M")


def day_and_clock(at_s: float | None, now_s: float) -> str:
    """The time of day, with the day in front when it is not today: 16:37:40, Wed 25 Nov 10:40."""
    if at_s is None:
        return UNKNOWN
    moment, today = datetime.fromtimestamp(at_s, UTC), datetime.fromtimestamp(now_s, UTC)
    return clock(at_s) if moment.date() == today.date() else f"{moment:%a} {moment.day} {moment:%b %H:%M}"


def eta_range(low_s: float, high_s: float, now_s: float) -> str:
    """An interval of the clock; `low_s` and `high_s` are seconds from `now_s`: 10:40–13:20, Wed 25 Nov 10:40–13:20."""
    low, high = (datetime.fromtimestamp(now_s + part, UTC) for part in (low_s, high_s))
    fine = high_s < HOUR_S / 2
    first, second = (f"{moment:%H:%M:%S}" if fine else f"{moment:%H:%M}" for moment in (low, high))
    today = datetime.fromtimestamp(now_s, UTC).date()
    day = "" if low.date() == today else f"{low:%a} {low.day} {low:%b} "
    other = "" if high.date() == low.date() else f"{high:%a} {high.day} {high:%b} "
    return f"{day}{first}" if first == second and not other else f"{day}{first}–{other}{second}"


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks are sold: 148 GB, 2.4 MB."""
    if count is None or not isfinite(count):
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000.0
    return f"{count:.1f} TB"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun: 1 node, 4 nodes."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def tied(text: str) -> str:
    """The text with each number and its unit held on one line: 14 s, 8 GPUs."""
    return re.sub(r"(?<=\d) (?=(?:s|m|h|d|GPUs?|GPU-hours|nodes?|steps?)\b)", "\u00a0", text)
