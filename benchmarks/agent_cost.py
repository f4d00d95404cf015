"""What the node agent costs: CPU and memory of a real `trimtab-agent` at 1 Hz over 8 GPUs and 8 NICs, and a scrape.

The agent is its own process and sends to a sink that decodes nothing. It is measured alone and with eight ranks on its
node that each write a 40×16 record a second. CPU is the scheduler's nanoseconds over all its threads, memory the most
that was ever resident.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agents.probe.capture import Probe
from agents.wire import Reply

WARM_S, ALONE_S, TRAINING_S, SCRAPES = 3.0, 30, 15, 200
RANKS, LAYERS, SLOTS = 8, 40, 16


class Sink(BaseHTTPRequestHandler):
    """Takes every batch and acknowledges it unread."""

    protocol_version = "HTTP/1.1"
    reply = Reply(2**62, (), 0.0).to_json()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.reply)))
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def sink() -> Iterator[str]:
    """The URL of a running sink."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def agent(
    folder: Path, url: str, source: Sequence[str] = ("simulated",), secret: str = ""
) -> Iterator[tuple[int, str]]:
    """The process id and the metrics address of a running agent; `source` is its name and further options."""
    file = folder / "token"
    file.write_text(secret or "tt_agent_bench")
    command = [sys.executable, "-m", "agents.node.main", "--node", "bench", "--server", url, "--source", *source]
    command += ["--token-file", str(file), "--runtime-dir", str(folder / "node"), "--spool-dir", str(folder / "spool")]
    with subprocess.Popen([*command, "--metrics-port", "0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            if process.stderr is None:
                raise RuntimeError("the agent has no stderr")
            metrics = next(line for line in process.stderr if "metrics at" in line).split()[-1]
            # what it says later is read and dropped: a full pipe would hold it up
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process.pid, metrics
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """CPU that all threads of a process have used, to the nanosecond."""
    schedules = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in schedules) / 1e9


def peak_mib(pid: int) -> float:
    """The most memory of a process that was ever resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def percent_of_a_core(pid: int, seconds: int, each_second: Callable[[int], None]) -> float:
    """CPU of a process over so many seconds while something is done in each."""
    begun, cpu = time.monotonic(), cpu_seconds(pid)
    for second in range(seconds):
        each_second(second)
        time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
    return 100 * (cpu_seconds(pid) - cpu) / (time.monotonic() - begun)


def trainers(folder: Path) -> list[Probe]:
    """The probes of the eight ranks of a node."""
    env = {"TRIMTAB_HEARTBEAT_DIR": str(folder / "node" / "attempts" / "bench"), "LOCAL_WORLD_SIZE": str(RANKS)}
    shape = {"layers": LAYERS, "slots": SLOTS, "experts": SLOTS, "top_k": 1}
    return [Probe(**shape, env={**env, "RANK": str(rank), "WORLD_SIZE": str(RANKS)}) for rank in range(RANKS)]


def scrape_ms(address: str) -> float:
    """Milliseconds below which 99 of 100 scrapes stay."""
    taken = []
    for _ in range(SCRAPES):
        begun = time.perf_counter()
        with urllib.request.urlopen(address, timeout=10) as answer:
            answer.read()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.quantiles(taken, n=100)[-1]


def line(name: str, value: float, unit: str, target: float | None) -> dict[str, Any]:
    """One figure; nothing comparable reads eight GPUs and eight NICs without hardware, so there is no peer."""
    figure = {"name": name, "value": round(value, 2), "unit": unit, "target": target, "better": "lower"}
    return {**figure, "peer": None, "peer_value": None}


def run() -> list[dict[str, Any]]:
    """The lines of one agent's life."""
    counts, bias = array("I", [256]) * (LAYERS * SLOTS), array("f", [0.0]) * (LAYERS * SLOTS)
    with tempfile.TemporaryDirectory() as name, sink() as url, agent(Path(name), url) as (pid, metrics):
        time.sleep(WARM_S)
        alone = percent_of_a_core(pid, ALONE_S, lambda _: None)
        probes = trainers(Path(name))

        def one_step(second: int) -> None:
            for probe in probes:
                probe.write(second, counts, bias, routed=4096, loss=2.0, step_seconds=1.0, tokens=4096)

        training = percent_of_a_core(pid, TRAINING_S, one_step)
        scrape = scrape_ms(metrics)
        memory = peak_mib(pid)
        for probe in probes:
            probe.close()
    return [
        line("agent CPU at 1 Hz, 8 GPUs + 8 NICs", alone, "% of a core", 2.0),
        line("agent CPU with 8 ranks at 1 step/s, 40x16", training, "% of a core", None),
        line("agent memory, peak", memory, "MiB", 80.0),
        line("agent scrape p99", scrape, "ms", 10.0),
    ]
