"""Now, Fleet and Experts in a real browser over invented data: pixels, picks, keys, staleness, requests, console."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from dashboard_process import ROOT, dashboard
from playwright.sync_api import Locator, Page, expect
from watched import Watched

sys.path.insert(0, str(ROOT / "tests" / "dashboards"))

from fake_api import CODE, World, run_row, serving
from fake_fleet import HOSTILE, Fleet, pack
from fake_training import Training

PAGES = {"now": "/", "fleet": "/fleet?node=sim-node-02", "experts": "/experts?layer=5"}
LEFT, HEAD = 28, 56  # where the map's first cell stands on its canvas
LONG = 30_000


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[World, str]]:
    with serving(World()) as world, dashboard(world.url) as url:
        yield world, url


@pytest.fixture
def world(stack: tuple[World, str]) -> World:
    found = stack[0]
    found.training, found.fleet, found.runs = Training(layers=8, seconds_a_step=0.3), Fleet(4), [run_row()]
    found.codes.add(CODE)
    found.posts.clear()
    found.broken.clear()
    return found


@pytest.fixture
def browser(stack: tuple[World, str], world: World, chromium_page: Watched) -> Watched:
    chromium_page.page.context.request.get(f"{stack[1]}/open/{CODE}", max_redirects=0)
    return chromium_page


@pytest.fixture
def url(stack: tuple[World, str]) -> str:
    return stack[1]


def canvas(page: Page, kind: str) -> Locator:
    """The canvas of a kind, once it has drawn a frame."""
    found = page.locator(f"[data-kind={kind}] canvas").first
    expect(found).to_have_attribute("data-ready", "true", timeout=LONG)
    return found


def colors(found: Locator) -> int:
    """How many different colours stand on a canvas."""
    script = """c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new Set();
      for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size }"""
    return int(found.evaluate(script))


@pytest.mark.parametrize("name", PAGES)
def test_a_live_page_stays_on_this_machine_and_says_nothing_to_the_console(
    browser: Watched, url: str, name: str
) -> None:
    browser.page.goto(url + PAGES[name])
    kinds = {"now": ["ribbon"], "fleet": ["fleet", "histogram"], "experts": ["experts", "raster", "controller"]}[name]
    for kind in kinds:
        assert colors(canvas(browser.page, kind)) > 3, kind
    browser.page.set_viewport_size({"width": 390, "height": 844})
    # A function, not a string: the page's own policy forbids evaluating strings.
    browser.page.wait_for_function(
        "() => document.querySelector('[data-testid=stMain]').scrollWidth <= 390", timeout=LONG
    )
    assert browser.external_requests() == []
    assert browser.complaints == []


def test_the_map_moves_without_a_rerun(browser: Watched, url: str) -> None:
    browser.page.goto(url + PAGES["experts"])
    found = canvas(browser.page, "experts")
    first = found.get_attribute("data-step")
    expect(found).not_to_have_attribute("data-step", first or "", timeout=LONG)
    assert (found.get_attribute("role"), found.get_attribute("tabindex")) == ("img", "0")
    assert "8 layers by 16 experts" in (found.get_attribute("aria-label") or "")


def said(page: Page, kind: str, part: str) -> Locator:
    """A part of the sentence or the tiles that the frame told."""
    return page.locator(f"[data-kind={kind}] {part}").first


@pytest.mark.parametrize("step", [None, 36_890])
def test_sentence_tiles_map_and_table_are_of_one_step(
    browser: Watched, url: str, world: World, step: int | None
) -> None:
    page = browser.page
    if step is None:
        step = world.training.stopped_at = world.training.step()
        page.goto(url + PAGES["experts"])
    else:
        page.goto(f"{url}/experts?layer=5&step={step}")
    found = canvas(page, "experts")
    expect(found).to_have_attribute("data-step", str(step), timeout=LONG)
    expect(said(page, "sentence", ".tt-said b")).to_have_text(f"Step {step} in words.", timeout=LONG)
    worst = world.training.words(step)["tiles"][0]["value"]
    expect(said(page, "tiles", ".tt-tile div b")).to_have_text(worst, timeout=LONG)
    assert f"{worst[:-1]} times its sampling floor" in (found.get_attribute("aria-label") or "")
    every = page.locator("[data-kind=layers] td:nth-child(2)")
    expect(every).to_have_count(8, timeout=LONG)
    values = [float(text.rstrip("×")) for text in every.all_inner_texts() if text != "no data"]
    assert f"{max(values):.1f}×" == worst
    if "step=" in page.url:
        expect(page.get_by_text(f"step {step:,}", exact=True).first).to_be_visible(timeout=LONG)


def fault_pixels(found: Locator) -> int:
    """How many pixels of a canvas have the dark page's colour of a fault."""
    script = """c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
      for (let i = 0; i < d.length; i += 4) n += d[i] === 255 && d[i + 1] === 125 && d[i + 2] === 82; return n }"""
    return int(found.evaluate(script))


def test_nothing_is_painted_as_a_fault_while_the_run_settles(browser: Watched, url: str, world: World) -> None:
    painted = []
    for settling in (True, False):
        world.training = Training(layers=40, settling=settling, stopped_at=36_950 + settling)
        browser.page.goto(f"{url}/experts?layer=31&step={world.training.stopped_at}")
        signs = browser.page.locator("[data-kind=tiles] .tt-glyph")
        expect(signs).to_have_count(0 if settling else 2, timeout=LONG)
        painted.append(fault_pixels(canvas(browser.page, "experts")))
    # the threshold's own dotted lines are there in both; the dead experts' frames and the squares are not
    assert painted[1] > painted[0] + 50


def test_a_phone_keeps_the_columns_beside_the_map(browser: Watched, url: str) -> None:
    page = browser.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(url + PAGES["experts"])
    found = canvas(page, "experts")
    # the traces at the right end of the rows
    script = """c => { const r = window.devicePixelRatio;
      const d = c.getContext('2d').getImageData(c.width - 36 * r, 60 * r, 34 * r, c.height - 70 * r).data; let n = 0;
      for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n }"""
    assert int(found.evaluate(script)) > 100


@pytest.mark.parametrize(("path", "kind"), [("/", "ribbon"), ("/fleet", "fleet")])
def test_a_few_nodes_take_the_whole_width(browser: Watched, url: str, path: str, kind: str) -> None:
    browser.page.set_viewport_size({"width": 1920, "height": 1080})
    browser.page.goto(url + path)
    found = canvas(browser.page, kind)
    script = """c => { const d = c.getContext('2d').getImageData(0, 40, c.width, 1).data; let last = 0;
      for (let x = 0; x < c.width; x++) if (d[4 * x + 3]) last = x; return last / c.width }"""
    assert float(found.evaluate(script)) > 0.98


def test_a_name_of_an_old_run_and_of_none(browser: Watched, url: str, world: World) -> None:
    world.older = [run_row("old-1", "old")]
    page = browser.page
    page.goto(f"{url}/experts?run=nope")
    expect(page.get_by_text("There is no run nope.")).to_be_visible(timeout=LONG)


def test_the_first_page_has_one_address_and_no_dialog(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}/now")
    canvas(page, "ribbon")
    assert page.url == f"{url}/" and page.get_by_role("dialog").count() == 0
    assert browser.complaints == []


def test_the_other_appearance_keeps_what_the_address_names(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}/experts?layer=5&expert=3")
    canvas(page, "experts")
    page.get_by_role("link", name="light", exact=True).click()
    page.wait_for_url(re.compile("embed_options=light_theme"), timeout=LONG)
    canvas(page, "experts")
    expect(page.get_by_role("heading", name="Layer 5", exact=True)).to_be_visible(timeout=LONG)
    assert "layer=5" in page.url and "expert=3" in page.url


def test_a_click_and_the_keys_name_the_cell_in_the_address(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(url + PAGES["experts"])
    found = canvas(page, "experts")
    found.click(position={"x": LEFT + 3, "y": HEAD + 5})
    page.wait_for_url(re.compile(r"layer=0&expert=0"), timeout=LONG)
    expect(page.locator("[data-kind=experts] .tt-readout b")).to_have_text("layer 00 · expert 0")
    found.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"layer=1&expert=1"), timeout=LONG)
    expect(page.get_by_role("heading", name="Layer 1", exact=True)).to_be_visible(timeout=LONG)


def hide(page: Page, hidden: bool) -> None:
    """Let the page believe that it is hidden, or not."""
    page.evaluate(
        """hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
          document.dispatchEvent(new Event('visibilitychange')) }""",
        hidden,
    )


def test_a_hidden_page_asks_for_nothing(browser: Watched, url: str) -> None:
    page = browser.page
    page.clock.install()
    page.goto(url + "/fleet")
    canvas(page, "fleet")
    hide(page, True)
    page.clock.run_for(1500)
    asked = sum("/frames/" in request for request in browser.requests)
    page.clock.run_for(10_000)
    assert sum("/frames/" in request for request in browser.requests) == asked
    with page.expect_request(re.compile("/frames/")):
        hide(page, False)


def test_one_address_is_asked_once_however_many_pictures_show_it(browser: Watched, url: str) -> None:
    page = browser.page
    page.clock.install()
    page.goto(url + "/fleet")
    canvas(page, "histogram")
    page.clock.pause_at(page.evaluate("Date.now() + 5000"))
    page.wait_for_load_state("networkidle")
    before = sum("/frames/fleet" in request for request in browser.requests)
    with page.expect_response(re.compile("/frames/fleet")):
        page.clock.run_for(1000)
    assert sum("/frames/fleet" in request for request in browser.requests) == before + 1


def test_data_that_is_old_is_veiled_and_says_so(browser: Watched, url: str, world: World) -> None:
    world.training.stopped_at = world.training.step()
    browser.page.goto(url + PAGES["experts"])
    expect(canvas(browser.page, "experts")).to_have_attribute("data-stale", "true", timeout=LONG)


def test_what_was_last_read_stays_with_a_word_that_it_is_old(browser: Watched, url: str, world: World) -> None:
    page = browser.page
    page.goto(url + "/fleet?node=sim-node-02")
    expect(page.get_by_text("1 node out: sim-node-02.")).to_be_visible(timeout=LONG)
    world.broken.update({"/nodes": 503, "/nodes/sim-node-02": 503})
    expect(page.get_by_text("It does not work today.").first).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Last known values")).to_have_count(1)
    for words in ("4 nodes × 8 GPUs", "rule hbm_uncorrectable matched", "GPU 3 reported 1,893 uncorrectable"):
        expect(page.get_by_text(words).first).to_be_visible()
    world.broken.clear()
    expect(page.get_by_text("Last known values")).to_have_count(0, timeout=LONG)


def test_a_click_on_the_fleet_opens_the_node_beside_it_and_escape_closes_it(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(url + "/fleet")
    found = canvas(page, "fleet")
    found.click(position={"x": 30, "y": 40})
    page.wait_for_url(re.compile(r"node=sim-node-00"), timeout=LONG)
    expect(page.get_by_role("heading", name="sim-node-00")).to_be_visible(timeout=LONG)
    found.focus()
    page.keyboard.press("Escape")
    page.wait_for_url(re.compile(r"/fleet$"), timeout=LONG)


def test_the_drill_button_asks_once(browser: Watched, url: str, world: World) -> None:
    page = browser.page
    page.goto(url + "/fleet?node=sim-node-00")
    page.get_by_role("button", name="Drill…").click(timeout=LONG)
    page.get_by_role("button", name="Start the drill").click(timeout=LONG)
    expect(page.get_by_text("is on its way to")).to_be_visible(timeout=LONG)
    assert [(path, body) for path, _, body in world.posts] == [
        ("nodes/sim-node-00/drills", {"kind": "hbm-uncorrectable", "gpu": 0})
    ]


def test_a_button_of_now_opens_the_layer_it_names(browser: Watched, url: str) -> None:
    browser.page.goto(url)
    browser.page.get_by_role("button", name="Open layer 31").click(timeout=LONG)
    browser.page.wait_for_url(re.compile(r"/experts\?run=run-01&layer=31"), timeout=LONG)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_follow_the_pages_appearance(browser: Watched, url: str, scheme: str) -> None:
    page = browser.page
    page.goto(f"{url}/?embed_options={scheme}_theme")
    found = canvas(page, "ribbon")
    pixel = found.evaluate("c => [...c.getContext('2d').getImageData(4, 8, 1, 1).data].slice(0, 3)")
    assert pixel == {"light": [179, 209, 234], "dark": [40, 89, 127]}[scheme]


def test_hostile_names_run_nothing(browser: Watched, url: str, world: World) -> None:
    world.fleet.name = HOSTILE
    world.runs = [run_row(name=HOSTILE)]
    for path, kind in (("/", "ribbon"), ("/fleet", "fleet"), ("/experts", "experts")):
        browser.page.goto(url + path)
        canvas(browser.page, kind)
    assert browser.page.locator("img[src=x]").count() == 0
    assert browser.complaints == []


def decoded(page: Page, url: str, body: bytes) -> Any:
    """What frames.js makes of these bytes: [header, arrays] or the error's name and words."""
    page.goto(url + "/canvas/frames.js")
    script = """async bytes => {
      const { decode } = await import('/canvas/frames.js');
      try {
        const { header, arrays } = decode(new Uint8Array(bytes).buffer);
        const plain = Object.entries(arrays).map(([name, a]) => [name, [a.shape, [...a.values]]]);
        return { header, arrays: Object.fromEntries(plain) };
      } catch (error) { return { error: `${error.constructor.name}: ${error.message}` } }
    }"""
    return page.evaluate(script, list(body))


def test_frames_are_read_as_they_are_packed(browser: Watched, url: str) -> None:
    import numpy as np

    arrays = {
        "a": ("u1", np.array([[0, 1, 255]])),
        "b": ("u4", np.array([[0, 7], [2**32 - 1, 1]])),
        "c": ("f4", np.array([0.5, -2.0])),
        "d": ("f8", np.array([1 / 3])),
    }
    found = decoded(browser.page, url, pack("test", arrays, run="Zürich → ρ", step=3))
    assert (found["header"]["run"], found["header"]["step"]) == ("Zürich → ρ", 3)
    assert found["arrays"]["a"] == [[1, 3], [0, 1, 255]]
    assert found["arrays"]["b"] == [[2, 2], [0, 7, 2**32 - 1, 1]]
    assert found["arrays"]["c"] == [[2], [0.5, -2]]
    assert found["arrays"]["d"] == [[1], [1 / 3]]


def test_frames_that_do_not_fit_are_an_error_and_no_picture(browser: Watched, url: str) -> None:
    import numpy as np

    good = pack("test", {"a": ("f4", np.arange(8.0))})
    cases = {
        b"": "not a frame",
        b"TTF2" + good[4:]: "not a frame",
        good[:6]: "not a frame",
        good[:40]: "truncated header",
        good[:-9]: "outside the frame",
        good.replace(b'"f4"', b'"x9"'): "unknown type",
        good[:8] + b"{" + good[9:30] + b"\xff" + good[31:]: "unreadable header",
    }
    for body, words in cases.items():
        told = decoded(browser.page, url, body)
        assert told.get("error", "").startswith("FrameError") and words in told["error"], (words, told)
