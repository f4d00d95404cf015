"""Where `make kube` leaves what it built."""

from __future__ import annotations

import os
from pathlib import Path


def built(name: str) -> Path:
    """The path of a program, whether it is there or not."""
    cache = os.environ.get("TRIMTAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "trimtab"
    return Path(cache).expanduser() / "kube" / "bin" / name
