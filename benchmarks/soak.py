"""Half an hour of a node agent: its memory must stay flat while drills come and go. `make soak`

The agent runs as in `make bench NAME=agent`, over the stand-in library and a sink. Each ten seconds the next drill of
the whole list begins on the next GPU, and the one before is repaired. Memory is what is resident; its growth is taken
from the end of the first third, when everything has been loaded, by a line through the samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from agents.drills import DRILLS
from benchmarks.agent import drill, line, stub
from benchmarks.agent_cost import agent, percent_of_a_core, sink
from benchmarks.stub_node import prepare

EVERY_S = 10
MOST_GROWTH_MIB = 2.0


def resident_mib(pid: int) -> float:
    """What is resident of a process now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> int:
    """Prints the lines; 1 if memory grew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds = int(parser.parse_args().minutes * 60)
    turns = itertools.cycle(
        itertools.product([kind for kind in DRILLS if kind not in ("clear", "call-hung")], range(8))
    )
    seen: list[tuple[float, float]] = []
    last: list[int] = []
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder = Path(name)
        prepare(folder)
        source = ("auto", "--host-root", str(folder / "host"))
        with stub(folder) as keeper, sink() as url, agent(folder, url, source) as (pid, _):
            begun = time.monotonic()

            def each_second(second: int) -> None:
                seen.append((time.monotonic() - begun, resident_mib(pid)))
                if second % EVERY_S == 0:
                    for gpu in last:
                        drill(keeper, "clear", gpu)
                    kind, gpu = next(turns)
                    drill(keeper, kind, gpu)
                    last[:] = [gpu]
                if second and second % 300 == 0:
                    print(f"soak: {second // 60} min, {seen[-1][1]:.1f} MiB", file=sys.stderr, flush=True)

            cpu = percent_of_a_core(pid, seconds, each_second)
    late = seen[len(seen) // 3 :]
    slope, _ = statistics.linear_regression([at for at, _ in late], [mib for _, mib in late])
    growth = slope * (late[-1][0] - late[0][0])
    lines = [
        line(f"agent memory growth in {seconds * 2 // 3 // 60} min", growth, "MiB", MOST_GROWTH_MIB),
        line("agent memory at the end", seen[-1][1], "MiB", 64.0),
        line("agent CPU under drills", cpu, "% of a core", None),
    ]
    for one in lines:
        print(json.dumps(one), flush=True)
    return 0 if all(one["target"] is None or one["value"] <= one["target"] for one in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
