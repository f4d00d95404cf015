"""Writes docs/chaos.md: what was done to a cluster and its controller, and what was seen. `make chaos`.

The rows come from the tests themselves (tests/kube/chaos.py, `tell`), from the run that has just passed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Chaos

What the suite in `tests/kube/test_kube_chaos*.py` does to a real API server, scheduler and Job controller with 16
simulated nodes, and what it saw in the run that wrote this page: `make chaos`. Each row is a test that fails if what
must hold does not; after each, a checker reads the whole history of the run (`tests/runs/history.py`): one live attempt
at a time, nothing after its end, no budget exceeded, a reason and evidence for every decision.

What is played, not real: kubelets and trainers; time, where the policy counts it; the second controller, which is in
the same process while the first is held inside of its POST; and of an API server that is away, the refusal of new calls
(its streams are silenced by SIGSTOP). A storm of 500s and a silent watch have tests of their own, with the client alone
(`tests/kube/test_kube_bucket.py`, `test_kube_reflector.py`).

| what happens | what must hold | attempts, as they ended | Jobs | restarts | nodes cordoned |
|---|---|---|---|---|---|
"""


def row(told: dict[str, object]) -> str:
    """A line of the table."""
    names = ("done", "must", "attempts", "jobs", "restarts", "cordoned")
    return f"| {' | '.join(str(told[name]).replace('|', '/') for name in names)} |"


def page(rows: list[dict[str, object]]) -> str:
    """The page. Shards of one scenario are one row: their plays are added up, the rest is the same in each."""
    merged: dict[str, dict[str, object]] = {}
    for told in rows:
        known = merged.setdefault(str(told["done"]), {**told, "plays": 0})
        known["plays"] = int(str(known["plays"])) + int(str(told.get("plays", 1)))
    for told in merged.values():
        if told["plays"] != 1:
            told["done"] = f"{told['done']}: {told['plays']} plays"
    return HEAD + "\n".join(map(row, merged.values())) + "\n"


def main() -> None:
    """Reads the rows of a file and writes the page."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    (ROOT / "docs" / "chaos.md").write_text(page(sorted(rows, key=lambda told: str(told["test"]))))


if __name__ == "__main__":
    main()
