"""Delivers what is due and kills itself with SIGKILL at the point it is told: the process under test, not a test.

`python dying_sender.py DATABASE_URL NOW POINT`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from controlplane.notify.address import UrlPolicy
from controlplane.notify.webhook import WebhookSender
from controlplane.services import deliveries as service
from controlplane.store import deliveries
from controlplane.store.engine import Store


def die(*_: object) -> None:
    """No cleanup, no flush, no rollback: what a power cut leaves behind."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, and then the end."""

    def last(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        die()
        return found

    return last


def main(url: str, now: str, point: str) -> None:
    sender = WebhookSender(UrlPolicy(allow_loopback=True))
    match point:
        case "claimed, not committed":
            deliveries.claim = dies_after(deliveries.claim)
        case "committed, not sent":
            sender.send = die  # type: ignore[method-assign, assignment]  # the point of this program
        case "answered, not marked":
            sender.send = dies_after(sender.send)  # type: ignore[method-assign]  # the point of this program
        case "marked, not committed":
            deliveries.mark_told = dies_after(deliveries.mark_told)
    service.deliver_once(Store(url), {"webhook": sender}, float(now))
    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
