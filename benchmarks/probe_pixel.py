"""From the end of a step to its pixels: a run of 58 layers of 256 experts on the Experts page of a headless Chromium.

Everything is the product: a job of the local backend whose ranks write through the probe, a simulated node's agent, the
server, its dashboard. In the page an observer notes when the map's canvas has drawn a step, two animation frames later,
when the drawing is on the screen. Each step waits until the first picture of itself or of a later one.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.probe_rounds import ROOT, Line, line
from benchmarks.spine import Shown, p95, waits
from controlplane.cli.demo_processes import DemoError, Stage
from controlplane.client import Client

LAYERS, SLOTS, TOP_K = 58, 256, 8
STEP_S, LOOKED_AT_S, STARTS_S = 0.5, 60.0, 120.0
PIXELS_S = 2.0
NODE = "node-000"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OBSERVE = """canvas => {
  window.seen = [];
  const note = () => {
    const step = Number(canvas.dataset.step);
    requestAnimationFrame(() => requestAnimationFrame(() => window.seen.push([Date.now() / 1000, step])));
  };
  new MutationObserver(note).observe(canvas, { attributes: true, attributeFilter: ["data-step"] });
}"""
PICTURE = "canvas => canvas.toDataURL().length"


def chromium() -> str | None:
    """The browser: TRIMTAB_CHROMIUM (tools/programs.py sets it), else the PATH."""
    named = os.environ.get("TRIMTAB_CHROMIUM")
    return shutil.which(named) if named else next((path for name in NAMES if (path := shutil.which(name))), None)


def submit(client: Client, times: Path) -> str:
    """The job that routes, on one node; its id."""
    steps = round((STARTS_S + LOOKED_AT_S) / STEP_S)
    numbers = [LAYERS, SLOTS, TOP_K, steps, STEP_S]
    command = ["{python}", str(ROOT / "benchmarks" / "probe_trainer.py"), *map(str, numbers), str(times)]
    body = {
        "stage": "pretrain",
        "command": command,
        "resources": {"nodes": 1},
        "train": {"steps": steps},
        "contractLevel": 0,
    }
    spec = {"apiVersion": "trimtab/v1", "kind": "Job", "metadata": {"name": "routes"}, "spec": body}
    return str(client.post("runs", {"spec": spec})["id"])


def until(stage: Stage, what: str, look: Any) -> Any:
    """Looks until there is something; DemoError when it takes too long."""
    end = time.monotonic() + STARTS_S
    while not (found := look()):
        stage.still_alive()
        if time.monotonic() > end:
            raise DemoError(f"waited {STARTS_S:.0f} s in vain: {what}")
        time.sleep(0.5)
    return found


def look(browser: Browser, link: str, run_id: str) -> list[tuple[float, int]]:
    """Opens the page and watches its map: (when, which step was on the screen)."""
    page: Page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(link)
    page.goto(f"{link.split('/open/')[0]}/experts?run={run_id}")
    canvas = page.locator("[data-kind=experts] canvas").first
    canvas.wait_for(state="attached", timeout=1000 * STARTS_S)
    page.locator("[data-kind=experts] canvas[data-ready=true]").first.wait_for(timeout=1000 * STARTS_S)
    canvas.evaluate(OBSERVE)
    page.wait_for_timeout(1000 * LOOKED_AT_S)
    if int(canvas.evaluate(PICTURE)) < 10_000:
        raise DemoError("the map is empty")
    return [(at, int(step)) for at, step in page.evaluate("() => window.seen")]


def shown(seen: list[tuple[float, int]], ended: dict[int, float]) -> Shown:
    """When a step was first on the screen, and when it had ended."""
    first: dict[int, float] = {}
    for at, step in seen:
        first.setdefault(step, at)
    return [(at, ended[step]) for step, at in sorted(first.items()) if step in ended]


def measure(folder: Path, path: str) -> list[float]:
    """Seconds from the end of each step to its pixels."""
    stage, times = Stage(folder), folder / "times.jsonl"
    try:
        link, api = stage.start_server()
        client = Client(api, stage.admin_token())
        stage.start_agent(NODE, client, api)
        until(stage, "a node reports", lambda: any(node["gpus"] for node in client.nodes()))
        run_id = submit(client, times)
        until(stage, "the first expert record", lambda: times.exists() and times.read_text().count("\n") > 3)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
            seen = look(browser, link, run_id)
            browser.close()
        ended = {int(step): float(at) for step, at in map(json.loads, times.read_text().splitlines())}
    finally:
        stage.end()
    return waits(ended.values(), shown(seen, ended))


def run() -> list[Line]:
    """One line; without a browser its value is null."""
    path = chromium()
    name = f"step to pixel, p95, {LAYERS}x{SLOTS}"
    if path is None:
        return [line(name, None, "s", PIXELS_S, missing="no Chromium: set TRIMTAB_CHROMIUM to its path")]
    with TemporaryDirectory(prefix="trimtab-bench-") as folder:
        found = measure(Path(folder), path)
    worst = p95(found)
    facts = {"samples": len(found), "median": round(statistics.median(found), 3) if found else None}
    return [line(name, None if worst is None else round(worst, 3), "s", PIXELS_S, step_seconds=STEP_S, **facts)]
