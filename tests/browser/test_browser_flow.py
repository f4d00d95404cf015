"""The product used by a person in a real browser: submit a run, watch its experts, restart it, stop it.

Everything is real: server, dashboard, agents, two ranks of the model under torchrun. One pass, in the order of use; at
its end no page may have asked anything outside this machine or complained to the console.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from real_stack import Stack, running
from watched import Watched

NODES = ("sim-node-00", "sim-node-01", "sim-node-02")
STARTS_MS = 120_000
HEATMAP = """() => {
  const found = [];
  const walk = root => {
    for (const element of root.querySelectorAll('*')) {
      if (element.tagName === 'CANVAS' && element.width > 100) found.push(element);
      if (element.shadowRoot) walk(element.shadowRoot);
    }
  };
  walk(document);
  const largest = found.sort((a, b) => b.width * b.height - a.width * a.height)[0];
  return largest ? largest.toDataURL() : '';
}"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("the browser"), NODES) as started:
        yield started


def until(read: Callable[[], Any], holds: Callable[[Any], bool], what: str, limit_s: float = 120.0) -> Any:
    """Read until it holds; the processes under test decide when, so this waits on them and not on a length of time."""
    end = time.monotonic() + limit_s
    while not holds(value := read()):
        assert time.monotonic() < end, f"{what}: still {value!r}"
        time.sleep(0.5)
    return value


def fill(page: Page, label: str, value: str) -> None:
    """Type into a field of the form and leave it."""
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def submit(page: Page, stack: Stack) -> str:
    """Fill the form and submit; returns the run's id from the address that follows."""
    page.goto(f"{stack.dashboard}/submit")
    expect(page.get_by_text("Candidate nodes")).to_be_visible(timeout=60_000)
    for label, value, line in (
        ("Name", "from-the-browser", "name: from-the-browser"),
        ("Steps", "2000", "steps: 2000"),
        ("Checkpoint every", "5", "checkpointEvery: 5"),
        ("Sequences a step", "2", "sequences: 2"),
        ("Length", "64", "length: 64"),
    ):
        fill(page, label, value)
        expect(page.locator(".tt-diff .tt-add").filter(has_text=line)).to_have_count(1, timeout=30_000)
    page.get_by_role("button", name="Submit from-the-browser").click()
    page.wait_for_url(re.compile(r"/job\?run="), timeout=30_000)
    return page.url.split("run=")[1].split("&")[0]


@pytest.mark.timeout(480)
def test_a_person_submits_watches_restarts_and_stops_a_run(stack: Stack, chromium_page: Watched) -> None:
    page = chromium_page.page

    def run() -> dict[str, Any]:
        answer: dict[str, Any] = stack.client.call("GET", f"runs/{ident}")
        return answer

    until(lambda: stack.client.call("GET", "nodes")["nodes"], lambda rows: len(rows) == len(NODES), "agents report")
    page.goto(stack.link)
    expect(page.get_by_role("link", name="Incidents", exact=True)).to_be_visible(timeout=60_000)

    ident = submit(page, stack)
    expect(page.get_by_role("heading", name="from-the-browser")).to_be_visible(timeout=30_000)
    until(run, lambda view: (view["step"] or 0) >= 2, "the run trains")

    page.goto(f"{stack.dashboard}/experts?run={ident}")
    seen, images = run()["step"], set[str]()
    until(lambda: images.add(page.evaluate(HEATMAP)) or len(images - {""}), lambda count: count >= 5, "the map moves")
    until(run, lambda view: view["step"] > seen + 2, "the run goes on")

    page.goto(f"{stack.dashboard}/job?run={ident}")
    until(run, lambda view: view["last_checkpoint"] is not None, "a checkpoint is verified")
    page.get_by_role("button", name="Restart from…").click(timeout=60_000)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("attempt 2 starts from step", timeout=30_000)
    dialog.get_by_role("button", name="Restart", exact=True).click()
    expect(dialog).to_have_count(0, timeout=30_000)
    view = until(run, lambda now: len(now["attempts"]) > 1 and now["attempts"][1]["first_step"], "attempt 2 trains")
    second = view["attempts"][1]
    assert second["first_step"] == second["resume_step"] + 1
    expect(page.get_by_text(re.compile("attempt 2 · pretrain"))).to_be_visible(timeout=30_000)
    expect(page.get_by_text("steps were run twice").or_(page.get_by_text("step was run twice"))).to_be_visible(
        timeout=30_000
    )

    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop the run").click()
    until(run, lambda now: now["status"] == "cancelled", "the run stops")
    expect(page.locator(".tt-state")).to_contain_text("stopped", timeout=30_000)

    assert chromium_page.external_requests() == []
    assert chromium_page.complaints == []
