"""`trimtab` as it is installed: the command line, or what to install where a part that it needs is not there."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Runs the command line; exit code 1 with a sentence where the extra `server` was not installed."""
    try:
        run = import_module("controlplane.cli.main").main
    except ModuleNotFoundError as error:
        if str(error.name).startswith("controlplane"):
            raise
        print(f"{error.name} is not installed. trimtab needs the extra `server`: README, Install.", file=sys.stderr)
        sys.exit(1)
    run()
