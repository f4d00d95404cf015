"""Job, Submit and Incidents in a real browser over invented data: layout, hostile text, acts, requests, console."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_process import ROOT, dashboard
from playwright.sync_api import Page, TimeoutError, expect
from watched import Watched

sys.path.insert(0, str(ROOT / "tests" / "dashboards"))

import samples_runs as samples
from fake_runs import FakeApi, default_answers, serving

PAGES = {
    "job": (f"/job?run={samples.RUN_ID}", "Why did it restart?"),
    "submit": ("/submit", "Candidate nodes"),
    "jobs": ("/jobs", "stage done, UTC"),
    "incidents": ("/incidents", "Channels"),
    "incident": ("/incident?number=1", "What happened, in order"),
}

# How far the bottoms of a checkpoint's row and of its button are apart at most, in px; endless if one is missing.
GAP = """() => {
  const bottoms = query => [...document.querySelectorAll(query)].map(
    one => Math.round(one.getBoundingClientRect().bottom));
  const rows = bottoms(".tt-checkpoints tbody tr");
  const acts = bottoms(".st-key-job_checkpoint_acts > [data-testid=stElementContainer]");
  if (!rows.length || rows.length !== acts.length) return 1e9;
  return Math.max(...rows.map((row, at) => Math.abs(row - acts[at])));
}"""


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[FakeApi, str]]:
    with serving() as api, dashboard(api.url) as url:
        yield api, url


@pytest.fixture
def signed_in(stack: tuple[FakeApi, str], chromium_page: Watched) -> tuple[FakeApi, str, Watched]:
    api, url = stack
    api.answers = default_answers()
    chromium_page.page.context.request.get(f"{url}/open/one-time-code", max_redirects=0)
    api.calls.clear()
    return api, url, chromium_page


def settled(page: Page, url: str, text: str) -> None:
    page.goto(url)
    expect(page.get_by_text(text, exact=False).first).to_be_visible(timeout=30_000)
    expect(page.locator("[data-testid=stStatusWidget]")).to_have_count(0, timeout=30_000)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stays_on_this_machine_and_says_nothing_to_the_console(
    signed_in: tuple[FakeApi, str, Watched], name: str
) -> None:
    _, url, watched = signed_in
    path, text = PAGES[name]
    settled(watched.page, url + path, text)
    assert watched.requests
    assert watched.external_requests() == []
    assert watched.complaints == []


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_never_scrolls_sideways(signed_in: tuple[FakeApi, str, Watched], name: str, width: int) -> None:
    _, url, watched = signed_in
    watched.page.set_viewport_size({"width": width, "height": 900})
    path, text = PAGES[name]
    settled(watched.page, url + path, text)
    inner = watched.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert inner <= width


@pytest.mark.parametrize(("name", "tab"), [("job", "Jobs"), ("incident", "Incidents"), ("jobs", "Jobs")])
def test_the_tab_that_a_page_belongs_to_is_lit(signed_in: tuple[FakeApi, str, Watched], name: str, tab: str) -> None:
    _, url, watched = signed_in
    path, text = PAGES[name]
    settled(watched.page, url + path, text)
    tabs = watched.page.get_by_test_id("stTopNavLink")
    script = (
        "links => links.filter(a => getComputedStyle(a).backgroundColor !== 'rgba(0, 0, 0, 0)').map(a => a.innerText)"
    )
    assert tabs.evaluate_all(script) == [tab]


@pytest.mark.parametrize("name", ["jobs", "submit", "incidents", "incident"])
def test_every_page_says_how_old_its_data_is(signed_in: tuple[FakeApi, str, Watched], name: str) -> None:
    _, url, watched = signed_in
    path, text = PAGES[name]
    settled(watched.page, url + path, text)
    label = re.compile("^capacity .* old$" if name == "submit" else "^data .* old$")
    badge = watched.page.locator("[data-kind=badge] canvas[role=img]")
    expect(badge).to_have_attribute("aria-label", label, timeout=30_000)


def test_a_step_leads_to_its_part_of_the_form(signed_in: tuple[FakeApi, str, Watched]) -> None:
    _, url, watched = signed_in
    page = watched.page
    page.set_viewport_size({"width": 390, "height": 700})
    settled(page, f"{url}/submit", "Candidate nodes")
    page.get_by_role("link", name="4 review").click()
    expect(page.get_by_role("heading", name="Checks")).to_be_in_viewport(timeout=10_000)
    assert page.url.endswith("/submit#review")


def test_the_yaml_is_edited_in_the_font_of_code_and_its_error_stands_above(
    signed_in: tuple[FakeApi, str, Watched],
) -> None:
    _, url, watched = signed_in
    page = watched.page
    settled(page, f"{url}/submit", "Candidate nodes")
    page.get_by_text("edit YAML").click()
    box = page.get_by_label("YAML", exact=True)
    expect(box).to_be_visible(timeout=30_000)
    assert "Plex Mono" in box.evaluate("box => getComputedStyle(box).fontFamily")
    box.fill("spec: [1,")
    box.press("Control+Enter")
    alert = page.get_by_role("alert").filter(has_text="line")
    expect(alert).to_be_in_viewport(timeout=30_000)
    above, below = alert.bounding_box(), box.bounding_box()
    assert above is not None and below is not None and above["y"] < below["y"]
    expect(page.get_by_role("button", name=re.compile("^Submit "))).to_be_disabled(timeout=30_000)


def test_the_rules_of_the_checkpoints_run_through_their_buttons(signed_in: tuple[FakeApi, str, Watched]) -> None:
    _, url, watched = signed_in
    page = watched.page
    settled(page, url + PAGES["job"][0], "Why did it restart?")
    # Rows and buttons are read in one frame, and again while the page still moves: between two readings it may scroll.
    # A function, not an expression: the page's own policy forbids evaluating strings.
    with contextlib.suppress(TimeoutError):  # the assertion says by how much
        page.wait_for_function(f"() => ({GAP})() <= 1", timeout=15_000)
    assert page.evaluate(GAP) <= 1


def test_what_came_of_an_act_covers_no_button(signed_in: tuple[FakeApi, str, Watched]) -> None:
    _, url, watched = signed_in
    page = watched.page
    settled(page, url + PAGES["incident"][0], "What happened, in order")
    page.get_by_role("button", name="Take it").click()
    toast = page.get_by_test_id("stToast").first
    expect(toast).to_be_visible(timeout=30_000)
    box, head = toast.bounding_box(), page.locator(".st-key-tt_head").bounding_box()
    assert box is not None and head is not None and box["y"] > head["y"] + head["height"]


def test_hostile_text_from_the_api_runs_nothing(signed_in: tuple[FakeApi, str, Watched]) -> None:
    api, url, watched = signed_in
    hostile = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>{b}'
    run = f"runs/{samples.RUN_ID}"
    fault = {**samples.RESTART["fault"], "node": hostile, "rule": hostile}
    restart = {**samples.RESTART, "sentence": hostile, "bold": [hostile], "fault": fault}
    api.answers[f"GET {run}"] = samples.run_view(name=hostile, created_by=hostile)
    api.answers[f"GET {run}/why"] = {"run": "x", "restarts": [restart], "timeline": []}
    api.answers[f"GET {run}/logs"] = {"lines": [hostile]}
    settled(watched.page, url + PAGES["job"][0], "Why did it restart?")
    expect(watched.page.locator(".tt-lead b").first).to_have_text(hostile)
    watched.page.get_by_role("button", name="Stop").click()
    expect(watched.page.get_by_role("dialog")).to_contain_text("window.pwned=1")
    assert watched.page.evaluate("window.pwned") is None
    assert watched.page.locator("img[src=x]").count() == 0
    assert watched.complaints == []


def test_the_chart_draws_three_grids_and_its_toolbar_covers_no_control(signed_in: tuple[FakeApi, str, Watched]) -> None:
    _, url, watched = signed_in
    settled(watched.page, url + PAGES["job"][0], "Why did it restart?")
    chart = watched.page.locator(".st-key-job_timeline canvas").first
    expect(chart).to_be_visible()
    chart.hover(position={"x": 600, "y": 150})
    watched.page.get_by_role("radio", name="this attempt").click()
    expect(watched.page.get_by_role("radio", name="this attempt")).to_have_attribute("aria-checked", "true")


def test_a_restart_is_asked_once_with_the_chosen_checkpoint(signed_in: tuple[FakeApi, str, Watched]) -> None:
    api, url, watched = signed_in
    settled(watched.page, url + PAGES["job"][0], "Why did it restart?")
    watched.page.locator(".st-key-from_cp-88 button").click()
    dialog = watched.page.get_by_role("dialog")
    expect(dialog).to_contain_text("attempt 3 starts from step 88. 52 steps will be run again.")
    assert api.writes() == []
    dialog.get_by_role("button", name="Restart", exact=True).dblclick()
    expect(dialog).to_have_count(0)
    assert {(call.path, call.body["checkpoint_id"]) for call in api.writes()} == {
        (f"runs/{samples.RUN_ID}/restart", "cp-88")
    }
    assert len({call.key for call in api.writes()}) == 1


def test_a_submission_leads_to_its_run(signed_in: tuple[FakeApi, str, Watched]) -> None:
    api, url, watched = signed_in
    settled(watched.page, f"{url}/submit", "Candidate nodes")
    nodes = watched.page.get_by_label("Nodes", exact=True)
    nodes.fill("4")
    nodes.press("Enter")
    expect(watched.page.locator(".tt-diff .tt-add")).to_contain_text("nodes: 4")
    watched.page.get_by_role("button", name=re.compile("^Submit ")).click()
    watched.page.wait_for_url(f"**/job?run={samples.RUN_ID}", timeout=20_000)
    assert [call.path for call in api.writes()] == ["runs"]
    assert api.writes()[0].body["spec"]["spec"]["resources"]["nodes"] == 4
    assert watched.complaints == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pages_follow_the_viewers_colours(signed_in: tuple[FakeApi, str, Watched], scheme: str, tmp_path: Path) -> None:
    _, url, watched = signed_in
    watched.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    settled(watched.page, url + PAGES["job"][0], "Why did it restart?")
    colour = watched.page.evaluate("getComputedStyle(document.querySelector('.tt-phases i')).backgroundColor")
    assert colour == ("rgb(255, 125, 82)" if scheme == "dark" else "rgb(210, 72, 26)")
