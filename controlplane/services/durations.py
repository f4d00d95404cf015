"""How long something took, in the words of every sentence that the server makes."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """1.8 s, 14 s, 2 m 52 s, 3 h 05 m."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
