"""The Experts page in a real browser over invented data: one time cursor, replay, links, panels, two runs, files."""

import re
import sys
from collections.abc import Iterator

import pytest
from dashboard_process import ROOT, dashboard
from playwright.sync_api import Locator, Page, expect
from watched import Watched

sys.path.insert(0, str(ROOT / "tests" / "dashboards"))

from fake_api import CODE, World, run_row, serving
from fake_fleet import Fleet
from fake_training import Training

LONG = 30_000
NEWEST = 36_910
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[World, str]]:
    with serving(World()) as world, dashboard(world.url) as url:
        yield world, url


@pytest.fixture
def world(stack: tuple[World, str]) -> World:
    found = stack[0]
    found.training, found.fleet = Training(layers=8, stopped_at=NEWEST), Fleet(4)
    found.runs = [run_row(), run_row("run-02", "the one before", status="succeeded")]
    found.others = [Training(run="run-02", layers=8, stopped_at=NEWEST - 300)]
    found.codes.add(CODE)
    return found


@pytest.fixture
def browser(stack: tuple[World, str], world: World, chromium_page: Watched) -> Iterator[Watched]:
    chromium_page.page.context.request.get(f"{stack[1]}/open/{CODE}", max_redirects=0)
    yield chromium_page
    assert chromium_page.external_requests() == [] and chromium_page.complaints == []


@pytest.fixture
def url(stack: tuple[World, str]) -> str:
    return f"{stack[1]}/experts"


def canvas(page: Page, kind: str) -> Locator:
    """The canvas of a kind, once it has drawn what it was asked for."""
    found = page.locator(f"[data-kind={kind}] canvas").first
    expect(found).to_have_attribute("data-ready", "true", timeout=LONG)
    return found


def at(found: Locator, share: float) -> tuple[float, float]:
    """A place on a strip, so far along it."""
    box = found.bounding_box()
    assert box is not None
    return box["x"] + share * box["width"], box["y"] + 15


def test_one_cursor_in_every_picture_by_pointer_and_by_keys(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}?layer=5&expert=3")
    strip, raster, cells = (canvas(page, kind) for kind in ("timeline", "raster", "experts"))
    page.mouse.move(*at(strip, 0.9))
    expect(strip).to_have_attribute("data-cursor", re.compile(r"\d+"), timeout=LONG)
    pointed = strip.get_attribute("data-cursor") or ""
    expect(raster).to_have_attribute("data-cursor", pointed)
    expect(page.locator("[data-kind=raster] .tt-readout b")).to_contain_text("step ")
    assert cells.get_attribute("data-step") == str(NEWEST) and "step=" not in page.url, "pointing changes nothing yet"
    page.mouse.click(*at(strip, 0.9))
    page.wait_for_url(re.compile(f"layer=5&expert=3&step={pointed}$"), timeout=LONG)
    expect(cells).to_have_attribute("data-step", pointed, timeout=LONG)
    expect(page.locator("[data-kind=sentence] b").first).to_have_text(f"Step {pointed} in words.", timeout=LONG)
    strip.focus()
    page.keyboard.press("ArrowLeft")
    before = str(int(pointed) - 1)
    expect(cells).to_have_attribute("data-step", before, timeout=LONG)
    page.wait_for_url(re.compile(f"step={before}$"), timeout=LONG)
    page.keyboard.press("End")
    page.wait_for_url(re.compile("expert=3$"), timeout=LONG)
    expect(cells).to_have_attribute("data-step", str(NEWEST), timeout=LONG)


def test_a_replay_plays_in_the_browser_and_the_address_learns_where_it_stopped(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}?step=36600")
    cells = canvas(page, "experts")
    expect(cells).to_have_attribute("data-step", "36600", timeout=LONG)
    sockets = len(browser.requests)
    page.get_by_role("button", name="play", exact=True).click()
    expect(cells).to_have_attribute("data-step", re.compile("366(0[3-9]|[1-9].)"), timeout=LONG)
    assert page.url.endswith("step=36600") and len(browser.requests) > sockets
    page.get_by_role("button", name="pause", exact=True).click()
    page.wait_for_url(re.compile(r"step=366(0[3-9]|[1-9]\d)$"), timeout=LONG)
    stopped = page.url.rsplit("=", 1)[1]
    expect(cells).to_have_attribute("data-step", stopped, timeout=LONG)
    page.get_by_role("button", name="play", exact=True).click()
    expect(cells).not_to_have_attribute("data-step", stopped, timeout=LONG)
    canvas(page, "timeline").focus()
    page.keyboard.press("End")
    expect(cells).to_have_attribute("data-step", str(NEWEST), timeout=LONG)
    expect(page.get_by_role("button", name="play", exact=True)).to_be_visible()
    page.wait_for_url(re.compile(r"experts[^=]*$"), timeout=LONG)


def test_a_link_shows_again_what_was_shown(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}?layer=2&expert=7&mode=counts&panel=expert&window=128&step=36800")
    assert "expert 7" in (canvas(page, "expert").get_attribute("aria-label") or "")
    expect(canvas(page, "experts")).to_have_attribute("data-step", "36800", timeout=LONG)
    for name in ("Counts", "Expert", "128"):
        expect(page.get_by_role("radio", name=name, exact=True)).to_have_attribute("aria-checked", "true")
    page.get_by_role("radio", name="All layers").click()
    page.wait_for_url(re.compile("panel=layers"), timeout=LONG)
    canvas(page, "history")
    page.reload()
    canvas(page, "history")
    expect(page.get_by_role("radio", name="All layers")).to_have_attribute("aria-checked", "true")


@pytest.mark.parametrize(
    ("panel", "kinds", "finding"),
    [
        ("controller", ("phase", "swings"), "no layer swings"),
        ("ranks", ("ranks",), "4 expert-parallel ranks by 8 layers"),
    ],
)
def test_a_panel_tells_what_it_draws(
    browser: Watched, url: str, world: World, panel: str, kinds: tuple[str, ...], finding: str
) -> None:
    world.training = Training(layers=8, expert_parallel=4, stopped_at=NEWEST)
    browser.page.goto(f"{url}?panel={panel}")
    labels = [canvas(browser.page, kind).get_attribute("aria-label") or "" for kind in kinds]
    assert finding in labels[-1]


@pytest.mark.parametrize(("settling", "finding"), [(False, "layer 12 swings"), (True, "not judged: in the warm-up")])
def test_the_oscillation_map_names_what_the_alarm_does(
    browser: Watched, url: str, world: World, settling: bool, finding: str
) -> None:
    """A swing of eight steps, whose loads repeat from step to step."""
    world.training = Training(layers=16, stopped_at=NEWEST, swing_steps=8, settling=settling)
    browser.page.goto(f"{url}?panel=controller&layer=5")
    expect(canvas(browser.page, "swings")).to_have_attribute("aria-label", re.compile(finding), timeout=LONG)


def test_without_expert_parallelism_there_is_a_sentence_and_no_picture(browser: Watched, url: str) -> None:
    browser.page.goto(f"{url}?panel=ranks")
    expect(browser.page.get_by_text("This run declares no expert parallelism")).to_be_visible(timeout=LONG)


def test_two_runs_beside_each_other_and_as_one_difference(browser: Watched, url: str, world: World) -> None:
    page = browser.page
    page.goto(f"{url}?panel=compare&with=run-02&layer=5")
    assert "the one before ends at" in (canvas(page, "curves").get_attribute("aria-label") or "")
    both = page.locator("[data-kind=experts] canvas:not(.tt-above)")
    expect(both).to_have_count(2, timeout=LONG)
    expect(both.nth(1)).to_have_attribute("data-step", str(NEWEST - 300), timeout=LONG)
    page.get_by_role("radio", name="Difference").click()
    assert "farthest apart in layer" in (canvas(page, "difference").get_attribute("aria-label") or "")
    world.others = [Training(run="run-02", layers=4, experts=4, stopped_at=NEWEST)]
    page.reload()
    expect(page.get_by_text("the second one 4 layers of 4 experts")).to_be_visible(timeout=LONG)


def test_pictures_and_records_are_saved(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(f"{url}?layer=5&step=36800")
    canvas(page, "raster")
    canvas(page, "experts")
    with page.expect_download() as picture:
        page.get_by_role("button", name="PNG").click()
    assert picture.value.suggested_filename == "zaya1-8b-pt2-step-36800.png"
    body = picture.value.path().read_bytes()
    assert body.startswith(PNG) and len(body) > 20_000
    with page.expect_download() as records:
        page.get_by_role("link", name="CSV").click()
    assert records.value.suggested_filename == "run-01.csv"
    assert "format=csv&what=loads&layers=5&from=36353&to=36864" in records.value.path().read_text()


def test_a_layer_of_which_no_token_was_recorded_is_no_data(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(url.replace("/experts", "/canvas/moment.js"))
    script = """async () => {
      const [{ expert }, { experts }, { ranks }, { raster }] = await Promise.all(
        ['expert', 'experts', 'ranks', 'raster'].map((name) => import(`/canvas/${name}.js`)))
      const shaped = (shape, values) => ({ shape, values: Float32Array.from(values) })
      const series = { share: shaped([2, 2], [0.5, NaN, 0.5, NaN]), bias: shaped([2, 2], [0, NaN, 0, NaN]),
        cv: shaped([2], [1, NaN]), steps: shaped([2], [7, 8]), at_s: shaped([2], [1, 2]) }
      const over = { frame: { arrays: series }, data: { layer: 1, expert: 0 },
        plan: { axis: { count: 2, steps: [7, 8] }, chosen: 0, experts: 2 } }
      const map = (floors) => experts.label({ data: {}, frame: { header: { layers: 2, experts: 2, step: 8 },
        arrays: { mean_floor: shaped([2], floors), dead: shaped([2, 2], [0, 0, 0, 0]) } } })
      const carried = (values) => ({ data: { layer: 1 }, board: { layers: 2, count: 2 },
        frame: { header: { experts: 2 }, arrays: { rank_load: shaped([2, 2], values) } } })
      const last = (kind) => kind.words(over, { column: 1, expert: 0 }).map(({ text }) => text).join(' ')
      return {
        said: [expert.label(over), last(expert), last(raster), raster.label(over), map([NaN, NaN]), map([NaN, 1.2]),
          ranks.label(carried([NaN, NaN, NaN, NaN])), ranks.words(carried([1, 1, NaN, NaN]))[1].text],
        carried: ranks.label(carried([1.25, 0.75, NaN, NaN])),
      }
    }"""
    found = page.evaluate(script)
    words = " | ".join(found["said"])
    assert not [wrong for wrong in ("NaN", "Infinity", "without tokens yes") if wrong in words], words
    assert "without tokens – not recorded" in found["said"][0]
    assert all("recorded" in said for said in found["said"]), words
    assert "layer 1 is the least balanced at 1.2 times" in found["said"][5]
    assert "carries 1.25 times the mean" in found["carried"], "a silent layer does not hide the others"


def test_the_cursor_follows_the_address_but_not_its_echo(browser: Watched, url: str) -> None:
    page = browser.page
    page.goto(url.replace("/experts", "/canvas/moment.js"))
    script = """async () => {
      const { moment, addressOf, windowAt } = await import('/canvas/moment.js')
      const seen = []
      const forget = moment.listen(() => seen.push([moment.step, moment.hovered]))
      moment.told(7); moment.show(9); moment.show(11); moment.told(9); moment.told(11)
      const kept = moment.step
      moment.told(3); moment.hover(5); moment.told(null)
      moment.of('a'); moment.told(null); moment.pin(4); moment.of('a'); moment.of('b'); moment.told(null)
      const anew = [moment.step, moment.hovered]
      forget()
      const of = { url: '/f', query: { layer: 2 }, steps: 128 }
      return {
        kept, anew, seen, windows: [windowAt(0, 128), windowAt(700, 512), windowAt(767, 512), windowAt(768, 512)],
        asked: [addressOf({ ...of, follow: 'window' }, null), addressOf({ ...of, follow: 'window' }, 200),
          addressOf({ ...of, follow: 'step' }, 9), addressOf({ ...of, follow: 'step' }, null), addressOf(of, 9)],
      }
    }"""
    found = page.evaluate(script)
    assert found["kept"] == 11, "what was shown from here comes back late and moves nothing"
    assert found["anew"] == [None, None], "another run begins where its address says"
    assert [step for step, _ in found["seen"]] == [7, 9, 11, 3, 3, None, 4, 4, None]
    assert found["windows"] == [[0, 128], [257, 768], [257, 768], [513, 1024]]
    assert found["asked"] == [
        "/f?layer=2&steps=128", "/f?layer=2&from=129&to=256", "/f?layer=2&step=9", "/f?layer=2", "/f?layer=2",
    ]  # fmt: skip
