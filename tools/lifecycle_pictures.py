"""Pictures of the Lifecycle pages, light and dark, of a real lifecycle demo: `make screenshots-lifecycle`.

The demo's own showing with its drills, looked at on the way: the gate that refuses, before the demo approves against
it; a reinforcement-learning stage at work; the lineage when all is released. What the demo reports is printed last, so
that the walk in docs/lifecycle.md and its pictures are of one run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from programs import chromium
from screenshots import ARGUMENTS, OUT, shoot, sign_in

from controlplane.cli import demo_lifecycle_report as report
from controlplane.cli.demo import Demo
from controlplane.cli.demo_lifecycle import Showing

Json = dict[str, Any]
VIEWS = ("lifecycle", "lifecycle-at-work", "lifecycle-lineage", "lifecycles", "job-rolled-back")


def taker(browser: Browser, viewer: tuple[str, Any], out: Path) -> Callable[[Json], None]:
    """Takes each picture of a live lifecycle once, when its moment has come."""
    taken: set[str] = set()

    def look(told: Json) -> None:
        states = {one["name"]: (one["state"], one["hold"]) for one in told["stages"]}
        at = f"lifecycle?lifecycle={told['id']}"
        moments = {
            "lifecycle": (states["sft"] == ("held", "refused"), f"{at}&stage=sft"),
            "lifecycle-at-work": (states["rl-2"][0] == "training", f"{at}&stage=rl-2"),
        }
        for name, (here, path) in moments.items():
            if here and name not in taken:
                taken.add(name)
                shoot(browser, viewer, {name: path}, out)

    return look


def main() -> int:
    """Runs the demo to its end, then looks once more; 1 when one of its checks failed."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    demo = Demo(Path(tempfile.mkdtemp(prefix="trimtab-lifecycle-")), time.monotonic())
    try:
        link = demo.open()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
            viewer = sign_in(browser, link)
            showing = Showing(demo, watch=taker(browser, viewer, out))
            told = showing.submit([])
            showing.follow(told["id"])
            midtrain = next(
                one for one in demo.client.get(f"lifecycles/{told['id']}")["stages"] if one["name"] == "midtrain"
            )
            ended = {
                "lifecycle-lineage": f"lifecycle?lifecycle={told['id']}&stage=release&show=Lineage",
                "lifecycles": "lifecycles",
                "job-rolled-back": f"job?run={midtrain['runs'][-1]['id']}",
            }
            shoot(browser, viewer, ended, out)
            browser.close()
        seconds = {**demo.seconds, "total": round(demo.elapsed(), 3)}
        outcome = report.gather(demo.client, told["id"], showing.drills, showing.runs, seconds)
    finally:
        demo.stage.end()
    print(json.dumps(outcome, indent=1))
    failed = report.failures(outcome)
    print("\n".join(f"not so: {sentence}" for sentence in failed), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
