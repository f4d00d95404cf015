"""How long something took, in the words of every sentence that the server makes; the command line says it so too.

The dashboard, which sees the API alone, keeps copies: dashboards/words.py and the canvas's paint.js. One table of cases
(tests/dashboards/test_dash_words.py) holds all of them.
"""

from __future__ import annotations

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def duration(seconds: float) -> str:
    """Seconds in their two largest units, the smaller one cut off: 1.8 s, 14 s, 2 m 52 s, 3 h 05 m, 2 d 4 h."""
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
