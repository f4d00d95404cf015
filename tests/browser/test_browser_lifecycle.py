"""The Lifecycle pages in a real browser over invented data: width, console, a word on a checkpoint, hostile text."""

import sys
from collections.abc import Iterator

import pytest
from dashboard_process import ROOT, dashboard
from playwright.sync_api import expect
from watched import Watched

sys.path.insert(0, str(ROOT / "tests" / "dashboards"))

import fake_lifecycles as samples
from fake_runs import FakeApi, default_answers, serving

LONG = 30_000


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[FakeApi, str]]:
    with serving() as api, dashboard(api.url) as url:
        yield api, url


def test_a_checkpoint_is_approved_from_the_list_on_and_no_page_scrolls_sideways(
    stack: tuple[FakeApi, str], chromium_page: Watched
) -> None:
    api, url = stack
    view = samples.view()
    view["stages"][2]["name"] = samples.HOSTILE
    api.answers = {**default_answers(), **samples.answers(), f"GET lifecycles/{samples.ID}": view}
    page = chromium_page.page
    page.context.request.get(f"{url}/open/one-time-code", max_redirects=0)
    api.calls.clear()
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(f"{url}/lifecycles")
    page.get_by_role("link", name="sft").first.click()
    page.wait_for_url(f"**/lifecycle?lifecycle={samples.ID}&stage=sft", timeout=LONG)
    expect(page.locator(".tt-graph-row").last).to_be_visible(timeout=LONG)
    expect(page.locator(".tt-station.tt-here .tt-station-name")).to_have_text("sft")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        # A function, not a string: the page's own policy forbids evaluating strings.
        page.wait_for_function(
            f"() => document.querySelector('[data-testid=stMain]').scrollWidth <= {width}", timeout=LONG
        )
    page.get_by_role("button", name="Approve…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(samples.NEXT, timeout=LONG)
    dialog.get_by_label("Why, although the gate refuses").fill("seen by eye")
    dialog.get_by_role("button", name="Approve", exact=True).dblclick()
    expect(dialog).to_have_count(0, timeout=LONG)
    assert {(call.path, call.body["hash"], call.body["reason"]) for call in api.writes()} == {
        (f"lifecycles/{samples.ID}/stages/sft/approve", samples.NEXT, "seen by eye")
    }
    assert len({call.key for call in api.writes()}) == 1
    assert page.evaluate("window.pwned") is None
    assert chromium_page.external_requests() == []
    assert chromium_page.complaints == []
