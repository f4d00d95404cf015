"""kill -9 under load: every batch that was acknowledged is there afterwards, whole, and once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from controlplane.store import experts, nodes, steps, telemetry
from controlplane.store.engine import Store
from controlplane.store.tables import ExpertPart, Fault
from tests.services.batches import START, add_run

ROOT = Path(__file__).resolve().parents[2]
WRITER = ROOT / "tests" / "store" / "writer.py"


@pytest.mark.parametrize("acknowledgements", [1, 40, 333])
def test_a_killed_server_has_lost_no_acknowledged_batch(
    database_url: str, open_store: Callable[[str], Store], acknowledgements: int
) -> None:
    store = open_store(database_url)
    add_run(store)
    program = [sys.executable, "-W", "error", str(WRITER), database_url]
    with subprocess.Popen(
        program, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        acknowledged = Counter[str]()
        for _ in range(acknowledgements):
            node, sequence = server.stdout.readline().split()
            acknowledged[node] = int(sequence)
        server.kill()
        for line in server.stdout.read().splitlines():  # what it had told before it died
            if line.count(" ") == 1 and line.split()[1].isdigit():
                acknowledged[line.split()[0]] = int(line.split()[1])
    assert server.returncode == -9
    check(store, acknowledged)


def check(store: Store, acknowledged: Counter[str]) -> None:
    with store.read() as session:
        marks = {node.name: node.last_sequence for node in nodes.listed(session)}
        assert len(acknowledged) > 0
        for node, sequence in acknowledged.items():
            assert marks[node] >= sequence
        for node, mark in marks.items():  # what stands in the books is there: samples, faults, steps, once each
            (series,) = telemetry.read_series(session, node, "gpu", "power_w", since_s=0, until_s=START + 10**6)
            assert series.at_s.tolist() == [START + sequence for sequence in range(mark + 1)]
            onsets = session.scalars(select(Fault.onset_s).where(Fault.node == node).order_by(Fault.onset_s)).all()
            assert onsets == series.at_s.tolist()
        (records,) = steps.read(session, "run-1")
        assert Counter(records.rank.tolist()) == {int(node[5:]): mark + 1 for node, mark in marks.items()}
        parts = session.scalars(select(ExpertPart.step)).all()
        ranks = sum(step.ranks for step in experts.window(session, "run-1", last=10**6, limit=10**6 + 1))
        assert ranks + len(parts) == sum(mark + 1 for mark in marks.values())
