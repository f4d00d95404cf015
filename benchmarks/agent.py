"""What the real node agent costs, and how soon its faults are in the database. `make bench NAME=agent`

The agent runs as on a node: the real `amdsmi` package, real file formats, a kernel log, at 1 Hz over 8 GPUs, 8 ports
and the host. Behind the package is the stand-in library (agents/stub), whose answers cost less than AMD's own, so the
cost of the hardware's driver is not in these figures. Peers over the same library at the same rate: a plain exporter
that calls each getter, and AMD's command line where it is installed. The server is a real one on SQLite.

128 nodes × 4 hours of healthy noise, simulated, are judged as well: any fault among them is a false one.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agents.drills import DRILLS
from agents.node.sources.simulated import SimulatedSource
from agents.rules.evaluate import Attribution, Evaluator
from agents.rules.load import load_rules
from benchmarks.agent_cost import WARM_S, agent, cpu_seconds, peak_mib, percent_of_a_core, scrape_ms, sink
from benchmarks.failover import Server
from benchmarks.stub_node import prepare
from controlplane.services import tokens
from controlplane.store.engine import Store

ALONE_S, PEER_S = 40, 20
BY_KERNEL = ("page-fault", "smu-hang", "hbm-poison", "hbm-poison-created", "gpu-gone", "gpu-reset")
BY_LIBRARY = ("hbm-uncorrectable", "other-uncorrectable", "xgmi-uncorrectable")
PATIENCE_S = 20.0
QUIET_NODES, QUIET_HOURS = 128, 4
Line = dict[str, Any]


def line(name: str, value: float | None, unit: str, target: float | None, **more: Any) -> Line:
    """One figure; lower is better for all of them."""
    rounded = None if value is None else round(value, 3)
    base = {"name": name, "value": rounded, "unit": unit, "target": target, "better": "lower"}
    return {**base, "peer": None, "peer_value": None, **more}


@contextmanager
def stub(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The keeper of a node that does not exist."""
    command = [sys.executable, "-m", "benchmarks.stub_node", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or "ready" not in process.stdout.readline():
                raise RuntimeError("the stub node does not begin")
            yield process
        finally:
            process.terminate()


def drill(keeper: subprocess.Popen[str], kind: str, gpu: int) -> float:
    """Asks for a drill; when the node held it, in Unix seconds."""
    if keeper.stdin is None or keeper.stdout is None:
        raise RuntimeError("the stub node has no pipes")
    keeper.stdin.write(f"{kind} {gpu}\n")
    keeper.stdin.flush()
    return float(keeper.stdout.readline().split()[-1])


def plain_exporter() -> tuple[float, float]:
    """(CPU in % of a core, peak MiB) of the plain exporter over the same library."""
    command = [sys.executable, "-m", "benchmarks.plain_exporter"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the exporter has no output")
            process.stdout.readline()
            time.sleep(WARM_S)
            return percent_of_a_core(process.pid, PEER_S, lambda _: None), peak_mib(process.pid)
        finally:
            process.terminate()


def amd_smi() -> float | None:
    """CPU in % of a core of AMD's own command line, run once a second; None where it is not installed."""
    program = shutil.which("amd-smi")
    if program is None:
        return None
    begun, cpu = time.monotonic(), 0.0
    while time.monotonic() - begun < PEER_S:
        second = time.monotonic()
        with subprocess.Popen([program, "metric", "--json"], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                cpu_now = cpu_seconds(process.pid)
                time.sleep(0.01)
            cpu += cpu_now
        time.sleep(max(0.0, 1.0 - (time.monotonic() - second)))
    return 100 * cpu / (time.monotonic() - begun)


def cost(folder: Path) -> Iterator[Line]:
    """CPU, memory and scrape of the agent alone, and of its peers."""
    source = ("auto", "--host-root", str(folder / "host"))
    with sink() as url, agent(folder, url, source) as (pid, metrics):
        time.sleep(WARM_S)
        alone = percent_of_a_core(pid, ALONE_S, lambda _: None)
        scrape, memory = scrape_ms(metrics), peak_mib(pid)
    plain, plain_mib = plain_exporter()
    named = "plain exporter, each getter"
    yield line("agent CPU, 8 GPUs + 8 NICs + host", alone, "% of a core", 1.0, peer=named, peer_value=round(plain, 2))
    yield line("agent memory, peak", memory, "MiB", 64.0, peer=named, peer_value=round(plain_mib, 1))
    yield line("agent scrape p99", scrape, "ms", 10.0)
    command = amd_smi()
    note = {} if command is not None else {"note": "amd-smi is not installed here: it comes with ROCm, not with PyPI"}
    yield line("AMD's command line once a second", command, "% of a core", None, **note)


def row(folder: Path) -> Iterator[Line]:
    """One GPU's values by both paths."""
    command = [sys.executable, "-m", "benchmarks.gpu_row", str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    yield line(
        "CPU for one GPU's row",
        found["row"],
        "µs",
        None,
        peer="the package's getters",
        peer_value=round(found["getters"], 3),
    )


def stored(database: Path, rule: str, entity: str) -> float | None:
    """When the server took the first fault of a rule on a device."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
        query = "SELECT MIN(received_s) FROM faults WHERE rule = ? AND entity = ?"
        found = connection.execute(query, (rule, entity)).fetchone()[0]
    return None if found is None else float(found)


def delays(
    keeper: subprocess.Popen[str], database: Path, kinds: Sequence[str], gpus: int, apart_s: float
) -> list[float]:
    """Seconds from each drill, of each kind on each GPU, to its fault in the database: a second one of a kind on a GPU
    within a minute is no new fault."""
    found = []
    for kind, gpu in itertools.product(kinds, range(gpus)):
        at_s = drill(keeper, kind, gpu)
        until = time.monotonic() + PATIENCE_S
        while (taken := stored(database, DRILLS[kind].rule, f"gpu{gpu}")) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"{kind} on GPU {gpu} was not stored within {PATIENCE_S:.0f} s")
            time.sleep(0.02)
        found.append(taken - at_s)
        time.sleep(apart_s)
    return found


def latencies(folder: Path) -> Iterator[Line]:
    """From a kernel line, and from a counter of the library, to the fault in a real server's database."""
    data = folder / "data"
    data.mkdir()
    store = Store(f"sqlite:///{data / 'trimtab.sqlite'}")
    store.migrate()
    with store.write() as session:
        facts = {"kind": "agent", "subject": "bench", "created_by": "bench", "node": "bench"}
        secret = tokens.issue(session, now=time.time(), life_s=None, **facts)
    store.close()
    server = Server(data)
    try:
        server.until(True)
        source = ("auto", "--host-root", str(folder / "host"))
        url = f"http://127.0.0.1:{server.port}"
        prepare(folder)
        with stub(folder) as keeper, agent(folder, url, source, secret):
            time.sleep(WARM_S)
            database = data / "trimtab.sqlite"
            kernel = delays(keeper, database, BY_KERNEL, 8, 0.23)
            library = delays(keeper, database, BY_LIBRARY, 6, 0.7)
    finally:
        server.process.terminate()
        server.process.wait(30)
    p99 = statistics.quantiles(kernel, n=100)[-1]
    yield line("kernel line to fault in the database, p99", p99, "s", 1.0, median=round(statistics.median(kernel), 3))
    yield line(
        "library fault in the database, worst", max(library), "s", 3.0, median=round(statistics.median(library), 3)
    )


def quiet(node: int) -> int:
    """Faults that the rules find in hours of one healthy node's noise."""
    source = SimulatedSource(f"quiet-{node:03d}", 0.0)
    judge, found = Evaluator(load_rules(), source.node, "boot", source.facts()), 0
    who = Attribution("run", 1, 0, heartbeat_age_s=1.0)
    for second in range(QUIET_HOURS * 3600):
        if second % 1800 == 0:
            source.follow(3.0 if (second // 1800 + node) % 4 else None)
        found += len(judge.check(source.sample(float(second), float(second)), who))
    return found


def noise() -> Iterator[Line]:
    """False faults in the noise of a fleet."""
    with ProcessPoolExecutor() as pool:
        false = sum(pool.map(quiet, range(QUIET_NODES)))
    name = f"false faults, {QUIET_NODES} healthy nodes × {QUIET_HOURS} h"
    yield line(name, float(false), "faults", 0.0)


def main() -> int:
    """Prints the lines; 1 if a target is missed."""
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="agent") as name:
        folder = Path(name) / "cost"
        folder.mkdir()
        prepare(folder)
        with stub(folder):
            lines += show(cost(folder))
            lines += show(row(folder))
        other = Path(name) / "latency"
        other.mkdir()
        lines += show(latencies(other))
    lines += show(noise())
    return 0 if all(one["target"] is None or (one["value"] or 0) <= one["target"] for one in lines) else 1


def show(lines: Iterator[Line]) -> list[Line]:
    """Prints each line as it comes."""
    found = []
    for one in lines:
        print(json.dumps(one), flush=True)
        found.append(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
