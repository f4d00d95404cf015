"""The spine's figures in one run: probe, agent, ingest, and then the product itself under drills and in training.

Fault → incident is taken over drills of several kinds on idle simulated nodes, from the first sample that satisfies the
rule to the incident's opening. Step → page is from the trainer's own time of a step to the first frame with that step
or a later one that a page has: through the dashboard's session, guard and shared frames, asked once a second as the
canvas asks, by several viewers out of step with each other, each step of each viewer counted. Step → frame is the same
at the API, asked all the time. A real server; devices are simulated, times are not.
"""

from __future__ import annotations

import json
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import agent_cost, ingest, probe_caller
from controlplane.cli.demo import Demo
from controlplane.client import Client

Line = dict[str, Any]
DRILLS = ("hbm-uncorrectable", "other-uncorrectable", "xgmi-uncorrectable", "xgmi-degraded", "gpu-lost", "nic-down")
IDLE_NODES = ("node-002", "node-003")
POLL_S, FRAMES_S = 0.05, 25.0
VIEWERS, PAGE_S = 7, 1.0
Shown = list[tuple[float, float]]
"""(when a frame was there, when the newest step in it ended), in Unix seconds, by the first."""


def line(name: str, value: float | None, unit: str, target: float | None, **more: Any) -> Line:
    """One figure; lower is better for all of them."""
    rounded = None if value is None else round(value, 3)
    base = {"name": name, "value": rounded, "unit": unit, "target": target, "better": "lower"}
    return {**base, "peer": None, "peer_value": None, **more}


def p95(values: list[float]) -> float | None:
    """The 95th percentile; None of nothing."""
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else (values[0] if values else None)


def watch(url: str, headers: dict[str, str], *, every_s: float, seconds: float, first_s: float = 0.0) -> Shown:
    """Asks for a frame as the canvas does: again `every_s` after each answer, with the tag of the one it has."""
    shown: Shown = []
    time.sleep(first_s)
    tag, until = "", time.monotonic() + seconds
    with httpx2.Client(trust_env=False, timeout=10, headers=headers) as http:
        while time.monotonic() < until:
            answer = http.get(url, headers={"If-None-Match": tag} if tag else {})
            now = time.time()
            if answer.status_code == 200:
                tag = answer.headers["etag"]
                (length,) = struct.unpack_from("<I", answer.content, 4)
                shown.append((now, float(json.loads(answer.content[8 : 8 + length])["at_s"])))
            time.sleep(every_s)
    return shown


def waits(ends: Collection[float], shown: Shown) -> list[float]:
    """Seconds from each step's end to the first frame of that step or a later one, from the second frame on."""
    found = []
    for (_, before), (at, newest) in pairwise(shown):
        found += [at - end for end in ends if before < end <= newest]
    return found


def cookie(link: str) -> dict[str, str]:
    """The header of a browser that has opened the one-time link."""
    with httpx2.Client(trust_env=False, timeout=30) as http:
        return {"Cookie": http.get(link).headers["set-cookie"].split(";")[0]}


def watch_all(link: str, client: Client, token: str, run_id: str) -> tuple[Shown, list[Shown]]:
    """What the API showed all the time, and what each viewer's page had, their polls spread over the second."""
    api = f"{client.url}/api/v1/runs/{run_id}/experts/frame"
    page = f"{link.split('/open/')[0]}/frames/experts/{run_id}"
    browser = cookie(link)
    with ThreadPoolExecutor(VIEWERS + 1) as pool:
        bearer = {"Authorization": f"Bearer {token}"}
        frames = pool.submit(watch, api, bearer, every_s=POLL_S, seconds=FRAMES_S)
        pages = [
            pool.submit(
                watch, page, browser, every_s=PAGE_S, seconds=FRAMES_S - PAGE_S, first_s=PAGE_S * viewer / VIEWERS
            )
            for viewer in range(VIEWERS)
        ]
        return frames.result(), [one.result() for one in pages]


def drill_idle_nodes(client: Client) -> None:
    """One drill of each kind a node, each on a device of its own, a second apart."""
    for node in IDLE_NODES:
        for device, kind in enumerate(DRILLS):
            client.drill(node, kind, device)
            time.sleep(1.0)


def fault_to_incident(client: Client) -> list[float]:
    """Seconds from each incident's first fault to its opening; merged ones are left out."""
    delays = []
    for row in client.get("incidents")["incidents"]:
        if row["state"] == "merged":
            continue
        found = client.get(f"incidents/{row['number']}")
        onsets = [fault["onset_s"] for fault in found["faults"] if fault["rule"] == row["rule"]]
        if onsets:
            delays.append(row["opened_s"] - min(onsets))
    return delays


def product(folder: Path) -> list[Line]:
    """A real server with four agents: a run is trained and watched, hit, resumed; then idle nodes are drilled."""
    show = Demo(folder, time.monotonic())
    try:
        link = show.open()
        token = show.stage.admin_token()
        run_id = show.submit()
        ripe = show.train(run_id)
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch_all, link, show.client, token, run_id)
            time.sleep(FRAMES_S / 2)
            show.drill(ripe)
            ended = show.follow(run_id)
            frames, pages = watching.result()
        drill_idle_nodes(show.client)
        time.sleep(8.0)
        delays = fault_to_incident(show.client)
        restart = show.client.why(run_id)["restarts"][0]
    finally:
        show.stage.end()
    back = restart["back_after_s"] if ended["status"] == "succeeded" else None
    ends = {end for _, end in frames}
    at_api, on_page = waits(ends, frames), [wait for shown in pages for wait in waits(ends, shown)]
    return [
        line("fault to incident, p95", p95(delays), "s", 3.0, samples=len(delays), median=_median(delays)),
        line("fault to first step of attempt 2", back, "s", None),
        line("step to frame at the API, p95", p95(at_api), "s", None, samples=len(at_api), median=_median(at_api)),
        line("step to page, p95", p95(on_page), "s", 2.0, samples=len(on_page), median=_median(on_page)),
        line("ready", show.seconds["to_ready"], "s", None),
        line("submitted to first step", show.seconds["to_first_step"], "s", None),
    ]


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def run() -> list[Line]:
    """Every figure of the spine."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        return [*probe_caller.run(), *agent_cost.run(), *ingest.run(), *product(Path(folder))]


def main() -> int:
    """One JSON line a figure; 1 if a target is missed."""
    missed = 0
    for figure in run():
        print(json.dumps(figure), flush=True)
        target, value = figure.get("target"), figure.get("value")
        missed += target is not None and (value is None or value > target)
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main())
