"""Pictures of every page, light and dark, of a real demo while it trains after its fault: `make screenshots`.

They are the documentation's pictures: what the product showed, not a mock. Both appearances of a page stand side by
side and are taken one after the other, at the same step. A page with a dialog over it, or with a complaint in its
console, is no picture. Chromium as tools/programs.py finds it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from programs import chromium

from controlplane.cli.demo import Demo
from jobs.spec import parse_job

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "pictures"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCHEMES = ("dark", "light")
# longer than the demo's own run, so that it still trains on the last picture, and past the warm-up on the first one
STEPS_IN_ALL, STEPS_BEFORE, WAIT_S = 600, 230, 900.0
SETTLE_MS = 6000
# more of the Experts page than its first view: name of the picture -> what the address chooses
VIEWS = {
    "experts-replay": "step=150&mode=counts",
    "experts-expert": "panel=expert&expert=7",
    "experts-controller": "panel=controller&expert=7&mode=bias",
    "experts-layers": "panel=layers&window=run&mode=change",
}
SAME_STEP_TRIES, SAME_STEP_MS = 40, 250
# what every canvas of a page has drawn last, through the component's own roots
STEPS = """() => {
  const found = [];
  const walk = root => {
    for (const element of root.querySelectorAll('*')) {
      if (element.tagName === 'CANVAS' && element.dataset.step) found.push(element.dataset.step);
      if (element.shadowRoot) walk(element.shadowRoot);
    }
  };
  walk(document);
  return found.join(' ');
}"""


class NoPicture(RuntimeError):
    """What a page shows is not what the documentation may show."""


def sign_in(browser: Browser, link: str) -> tuple[str, Any]:
    """(address of the dashboard, cookies of a viewer); the link opens once."""
    state = browser.new_context()
    state.new_page().goto(link)
    cookies = state.cookies()
    state.close()
    return link.split("/open/")[0], cookies


def shoot(browser: Browser, viewer: tuple[str, Any], pages: dict[str, str], out: Path) -> None:
    """Takes each page in both schemes at 1440 × 900. NoPicture for a dialog or a complaint."""
    base, cookies = viewer
    contexts = {scheme: _context(browser, scheme, cookies) for scheme in SCHEMES}
    for name, path in pages.items():
        opened = {scheme: context.new_page() for scheme, context in contexts.items()}
        heard: list[ConsoleMessage] = []
        for page in opened.values():
            page.on("console", lambda message, kept=heard: kept.append(message))
            page.goto(f"{base}/{path}")
        next(iter(opened.values())).wait_for_timeout(SETTLE_MS)
        at_one_step(list(opened.values()))
        for scheme, page in opened.items():
            page.screenshot(path=out / f"{name}-{scheme}.png")
            complaints = [message.text for message in heard if message.type == "error"]
            refuse(name, page.get_by_role("dialog").count(), complaints)
        for page in opened.values():
            page.close()
        print(f"{name}: dark and light", file=sys.stderr)
    for context in contexts.values():
        context.close()


def _context(browser: Browser, scheme: Any, cookies: Any) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    context.add_cookies(cookies)
    return context


def at_one_step(pages: list[Page]) -> bool:
    """Waits until the pages' canvases show the same step, or for as long as is reasonable; whether they do."""
    for _ in range(SAME_STEP_TRIES):
        if len({page.evaluate(STEPS) for page in pages}) == 1:
            return True
        pages[0].wait_for_timeout(SAME_STEP_MS)
    return False


def refuse(name: str, dialogs: int, complaints: list[str]) -> None:
    """NoPicture when a dialog stands over the page, or its console has complained."""
    if dialogs:
        raise NoPicture(f"{name}: a dialog stands over the page")
    if complaints:
        raise NoPicture(f"{name}: the console says {complaints[0]}")


def submit(demo: Demo) -> str:
    """The demo's own job with more steps; returns the run's id."""
    job = parse_job(demo.client.get("templates/toy")["yaml"]).to_dict()
    job["spec"]["train"]["steps"] = STEPS_IN_ALL
    return str(demo.client.post("runs", {"spec": job})["id"])


def main() -> int:
    """Runs a demo as far as the second attempt's training, then looks."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="trimtab-screenshots-"))
    demo = Demo(folder, time.monotonic())
    try:
        link = demo.open()
        run_id = submit(demo)
        demo.drill(demo.train(run_id))

        def trains_on() -> bool:
            run = demo.client.run(run_id)
            return run["attempt"] == 2 and (run["step"] or 0) >= STEPS_BEFORE

        demo._until("attempt 2 trains on", trains_on, WAIT_S)
        pages = {
            "experts": f"experts?run={run_id}",
            "job": f"job?run={run_id}",
            "now": "",
            "fleet": "fleet?node=node-001",
            "submit": "submit",
            "jobs": "jobs",
            "incident": "incident?number=1",
            "incidents": "incidents",
            **{name: f"experts?run={run_id}&{chosen}" for name, chosen in VIEWS.items()},
        }
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
            shoot(browser, sign_in(browser, link), pages, out)
            browser.close()
    finally:
        demo.stage.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
