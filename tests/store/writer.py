"""A server's ingest as a process of its own, to be killed: writes batches without end, prints each acknowledgement.

`python writer.py URL`: for each reply one line `node sequence`, written after the reply and not before.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future

from agents.wire import Reply
from controlplane.clock import SystemClock
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store.engine import Store
from tests.services.batches import START, batch, expert, fault, step_record

NODES = 8


def main() -> None:
    """Keeps a few groups of batches in flight for ever."""
    store = Store(sys.argv[1])
    clock = SystemClock()
    live = Live(store, clock)
    live.expect("run-1", 1, NODES)
    ingest = Ingest(store, live, clock, group_s=0.002)
    ingest.start()
    waiting: list[tuple[str, Future[Reply]]] = []
    sequence = 0
    while True:
        for number in range(NODES):
            node = f"node-{number}"
            made = batch(
                sequence,
                node,
                faults=(fault(node, onset_s=START + sequence),),
                experts=(expert(sequence),),
                steps=(step_record(sequence, number),),
            )
            waiting.append((node, ingest.submit(made, clock.now())))
        while len(waiting) > 4 * NODES:
            node, reply = waiting.pop(0)
            sys.stdout.write(f"{node} {reply.result(30).acknowledged}\n")
            sys.stdout.flush()
        sequence += 1


if __name__ == "__main__":
    main()
