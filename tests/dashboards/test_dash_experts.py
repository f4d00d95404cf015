"""The Experts page as its readers meet it: choices in the address, panels, two runs, files, empty and broken."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fake_experts
import httpx2
import pytest
from fake_api import World, run_row, serving
from fake_fleet import HOSTILE, Fleet
from fake_training import Training
from pages_under_test import markup, open_page, shown
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from streamlit.testing.v1 import AppTest

from dashboards import charts, data, exports
from dashboards.guard import TOKEN_SCOPE
from dashboards.views import experts_address, experts_compare, experts_panels


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with serving(World(Training(layers=8), Fleet(4), [run_row()])) as found:
        monkeypatch.setenv("TRIMTAB_API_URL", found.url)
        monkeypatch.setattr(data, "token", lambda: "tt_login_operator")
        yield found


@pytest.fixture
def two(world: World) -> World:
    world.runs = [run_row(), run_row("run-02", "the one before", status="succeeded")]
    world.others = [Training(run="run-02", layers=8, stopped_at=36_905)]
    return world


def page(**query: str) -> AppTest:
    opened = open_page("experts", **query)
    assert not opened.exception, opened.exception
    return opened


def pictures(opened: AppTest) -> list[dict[str, Any]]:
    """What the page tells its canvas component, in order."""
    return [json.loads(block.proto.json) for block in opened.get("bidi_component") if block.proto.json]


def kinds(opened: AppTest) -> list[str]:
    return [told["kind"] for told in pictures(opened)]


def address(opened: AppTest) -> dict[str, str]:
    """The page's query, a value a name."""
    return {name: "".join(value) for name, value in opened.query_params.items()}


HEAD = ["sentence", "badge", "tiles", "timeline"]


def test_it_shows_the_run_and_the_layer_of_the_address(world: World) -> None:
    opened = page(layer="5", expert="3")
    text = markup(opened)
    for part in ("<h2>Layer 5</h2>", "SIMULATED"):
        assert part in text
    assert kinds(opened) == [*HEAD, "experts", "layers", "saving", "raster", "controller"]
    assert shown(opened, "sentence")["first"]["lead"] == "Layer 23 sends 2.1× its share to expert 7"
    assert [tile["label"] for tile in shown(opened, "tiles")["first"]][:2] == ["worst layer", "median layer"]
    assert (shown(opened, "experts")["layer"], shown(opened, "raster")["expert"]) == (5, 3)


def test_a_large_model_has_its_table_behind_a_choice(world: World) -> None:
    world.training = Training(layers=40)
    opened = page()
    assert "layers" not in kinds(opened)
    opened.segmented_control(key="experts_mode").set_value("table").run()
    assert kinds(opened)[:5] == [*HEAD, "layers"] and address(opened)["mode"] == "table"


@pytest.mark.parametrize(
    ("panel", "drawn", "heading"),
    [
        ("layer", ["raster", "controller"], "Layer 5"),
        ("expert", ["expert"], "The farthest expert of layer 5"),
        ("controller", ["phase", "swings", "controller"], "Phase of layer 5"),
        ("layers", ["history"], "All layers over time"),
        ("ranks", ["ranks"], "Expert-parallel ranks"),
    ],
)
def test_each_panel_is_a_link(world: World, panel: str, drawn: list[str], heading: str) -> None:
    opened = page(layer="5", panel=panel)
    assert kinds(opened)[len(HEAD) :] == ["experts", "layers", "saving", *drawn]
    assert f"<h2>{heading}</h2>" in markup(opened)
    back = page(layer="5")
    back.segmented_control(key="experts_panel").set_value(panel).run()
    assert address(back).get("panel") == (None if panel == "layer" else panel), "the default is left out"
    assert kinds(back) == kinds(opened)


def test_every_choice_is_restored_from_the_address(world: World) -> None:
    opened = page(layer="2", expert="7", mode="bias", window="128", panel="expert", step="36895")
    told = shown(opened, "experts")
    assert (told["mode"], told["layer"], told["expert"], told["step"]) == ("bias", 2, 7, 36895)
    assert "<h2>Expert 7 of layer 2</h2>" in markup(opened)
    for name, value in (("mode", "bias"), ("window", "128"), ("panel", "expert")):
        assert opened.segmented_control(key=f"experts_{name}").value == value
    expert = shown(opened, "expert")
    assert (expert["follow"], expert["steps"], expert["step"]) == ("window", 128, 36895)


def test_values_that_name_nothing_read_as_the_default(world: World) -> None:
    opened = page(mode="<b>", panel="nope", window="7", view="x", step="soon", layer="1")
    assert opened.segmented_control(key="experts_window").value == experts_address.WINDOW
    assert kinds(opened)[-2:] == ["raster", "controller"] and shown(opened, "experts")["mode"] == "load"


def test_a_replay_shows_one_step_everywhere(world: World) -> None:
    world.summary = fake_experts.summary_view(world.training)
    opened = page(step="36890")
    for kind in ("sentence", "tiles", "experts", "layers"):
        told = shown(opened, kind)
        assert (told["url"], told["follow"], told["step"]) == ("/frames/experts/run-01", "step", 36890), kind
    for kind in ("timeline", "raster"):
        assert shown(opened, kind)["step"] == 36890
    assert "step 36,890" in markup(opened), "the controller's figures too"
    assert "now, step" not in markup(opened)


def test_a_step_beyond_the_newest_is_the_newest(world: World) -> None:
    world.summary = fake_experts.summary_view(world.training)
    assert shown(page(step="99999999"), "experts")["step"] == world.summary["step"]


def test_what_is_clicked_becomes_the_address(world: World) -> None:
    def script() -> None:
        import streamlit as st

        from dashboards.views import experts_address as address

        address.picked(st.session_state["told"])

    opened = AppTest.from_function(script)
    opened.query_params["step"] = "7"
    for told, left in (
        ({"layer": 3, "expert": None}, {"step": "7", "layer": "3"}),
        ({"layer": 3, "expert": 0, "step": 9}, {"step": "9", "layer": "3", "expert": "0"}),
        ({"step": None}, {"layer": "3", "expert": "0"}),
    ):
        opened.session_state["told"] = told
        opened.run()
        assert address(opened) == left


def test_another_run_keeps_the_view_but_not_the_place(two: World) -> None:
    opened = page(layer="2", expert="7", step="36895", mode="bias", panel="layers", window="128")
    opened.selectbox(key="experts_run").set_value("run-02").run()
    assert address(opened) == {"run": "run-02", "mode": "bias", "panel": "layers", "window": "128"}


def test_two_runs_stand_side_by_side_with_their_courses_and_figures(two: World) -> None:
    opened = page(**{"panel": "compare", "with": "run-02", "layer": "2"})
    assert kinds(opened)[len(HEAD) :] == ["experts", "experts", "saving", "curves"]
    assert [told["url"] for told in pictures(opened) if told["kind"] == "experts"] == [
        "/frames/experts/run-01",
        "/frames/experts/run-02",
    ]
    curves = shown(opened, "curves")
    assert (curves["url"], curves["other"]) == ("/frames/layers/run-01", "/frames/layers/run-02")
    text = markup(opened)
    for part in ("the one before", "8 layers × 16 experts", "sampling floor, CV", "15.7 of 16"):
        assert part in text
    opened.segmented_control(key="experts_view").set_value("difference").run()
    difference = shown(opened, "difference")
    assert (difference["url"], difference["other"]) == ("/frames/experts/run-01", "/frames/experts/run-02")
    assert address(opened)["view"] == "difference"


def test_the_other_run_is_asked_while_it_goes_on_and_marks_no_expert_that_it_lacks(two: World) -> None:
    two.others = [Training(run="run-02", layers=8, experts=4, stopped_at=36_905)]
    opened = page(**{"panel": "compare", "with": "run-02", "layer": "2", "expert": "7"})
    assert [told["expert"] for told in pictures(opened) if told["kind"] == "experts"] == [7, None]
    ended = shown(page(**{"panel": "compare", "run": "run-02", "with": "run-01"}), "curves")
    assert (ended["once"], ended["otherManner"]) == (True, {"once": False})


@pytest.mark.parametrize("named", ["", "nope", "run-01"])
def test_without_another_run_it_says_what_to_choose(two: World, named: str) -> None:
    opened = page(**({"panel": "compare", "with": named} if named else {"panel": "compare"}))
    told = "There is no run nope to compare with." if named == "nope" else "Choose the run to compare with"
    assert told in markup(opened) and "curves" not in kinds(opened)
    opened.selectbox(key="experts_with").set_value("run-02").run()
    assert address(opened)["with"] == "run-02" and "curves" in kinds(opened)


def test_a_run_alone_or_without_records_cannot_be_compared_and_says_so(two: World) -> None:
    two.others = []
    assert "nothing to compare with" in markup(page(**{"panel": "compare", "with": "run-02"}))
    two.runs = [run_row()]
    assert "There is no other run to compare with yet." in markup(page(panel="compare"))


def test_runs_of_unlike_shapes_have_figures_with_dashes_and_hostile_names_run_nothing() -> None:
    one = {"step": 3, "layers": 8, "experts": 16, "top_k": 1, "tokens": 4096, "worst_layer": {"cv_floor": 8.2}}
    text = experts_compare.table(HOSTILE, one, "b", {"layers": 58, "experts": 256})
    for part in ("8 × 16, top-1", "58 × 256, top-–", "8.20×", "4,096", "<b>–</b>"):
        assert part in text
    assert "<img" not in text


@pytest.mark.parametrize(
    ("query", "asked", "steps"),
    [
        ({"layer": "3"}, "what=loads&layers=3", 512),
        ({"panel": "controller", "layer": "3"}, "what=loads&layers=3", 256),
        ({"panel": "layers"}, "what=layers", 512),
        ({"panel": "ranks"}, "what=loads", 1),
        ({"panel": "compare"}, "what=layers", None),
    ],
)
def test_what_is_saved_is_what_the_panel_shows(
    world: World, query: dict[str, str], asked: str, steps: int | None
) -> None:
    told = shown(page(**query), "saving")
    assert told["records"] == f"/export/experts/run-01?{asked}" and told["steps"] == steps


def test_time_axes_ask_for_a_length_and_leave_the_end_to_the_cursor() -> None:
    source = charts.Stretch("a/b", 128, None, live=True).source("raster", layer=3)
    assert source["url"] == "/frames/raster/a%2Fb" and source["query"] == {"layer": "3"}
    assert (source["steps"], source["step"], source["once"]) == (128, None, False)
    assert charts.Stretch("r", None, 7, live=False).source("layers", every=5)["once"] is True


def exported(answer: httpx2.Response) -> tuple[list[httpx2.Request], httpx2.Response]:
    """What the API was asked, and what the browser got, when the API answers this."""
    asked: list[httpx2.Request] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answer

    client = httpx2.AsyncClient(base_url="http://api.test", transport=httpx2.MockTransport(api))
    app = Starlette(routes=exports.routes(client))

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, TOKEN_SCOPE: "viewer-token"}, receive, send)

    async def get() -> httpx2.Response:
        async with httpx2.AsyncClient(base_url="http://d", transport=httpx2.ASGITransport(app=guarded)) as viewer:
            return await viewer.get("/export/experts/run-01?format=csv&what=layers&from=3&evil=x")

    return asked, asyncio.run(get())


async def lines() -> AsyncIterator[bytes]:
    yield b"a,b\n"
    yield b"1,2\n"


def test_a_file_comes_through_with_its_name_under_the_viewers_token() -> None:
    headers = {"Content-Type": "text/csv", "Content-Disposition": 'attachment; filename="r.csv"', "Set-Cookie": "x=1"}
    asked, got = exported(httpx2.Response(200, content=lines(), headers=headers))
    assert (got.status_code, got.content) == (200, b"a,b\n1,2\n")
    assert got.headers["content-disposition"] == 'attachment; filename="r.csv"' and "set-cookie" not in got.headers
    assert asked[0].url.raw_path == b"/api/v1/runs/run-01/experts/export?format=csv&what=layers&from=3"
    assert asked[0].headers["authorization"] == "Bearer viewer-token"


def test_a_file_that_is_refused_says_why_in_sentences() -> None:
    problem = {"title": "This server has no pyarrow", "detail": "", "hint": "Ask for csv."}
    _, got = exported(httpx2.Response(501, json=problem))
    assert (got.status_code, got.text) == (501, "This server has no pyarrow. Ask for csv.")
    assert exported(httpx2.Response(500, content=b"<b>"))[1].text == "There is no such file."


def test_finds_a_run_however_old_it_is(world: World) -> None:
    world.older = [run_row("old-1", "old"), run_row("old-2")]
    world.training.run = "old-1"
    for named in ("old-1", "old"):
        opened = page(run=named)
        assert opened.selectbox(key="experts_run").value == "old-1"
        assert shown(opened, "experts")["url"] == "/frames/experts/old-1"


def test_of_a_run_that_is_not_there_shows_no_other(world: World) -> None:
    opened = page(run="nope")
    assert "There is no run nope." in markup(opened) and kinds(opened) == []


@pytest.mark.parametrize("layer", ["99", "-1", "x", "1e3", "²"])
def test_an_address_that_names_nothing_falls_back(world: World, layer: str) -> None:
    world.summary = {**fake_experts.summary_view(world.training), "worst_layer": {"layer": 3}}
    assert "<h2>Layer 3</h2>" in markup(page(layer=layer, expert=layer))


def test_without_runs_offers_the_first(world: World) -> None:
    world.runs = []
    assert "No run has trained yet" in markup(page())


def test_of_a_run_without_records_says_when_they_begin(world: World) -> None:
    world.training.run = "another"
    opened = page()
    assert "has written no expert records yet" in markup(opened)
    assert "experts" not in kinds(opened)


PARALLEL = {
    "ranks": 8,
    "layer": 3,
    "rank": 5,
    "skew": 1.42,
    "level": "fault",
    "tax": {"seconds": 0.31, "share": 0.062, "r2": 0.71},
    "sick": {"2": "gpu3 of node-1 throttles"},
    "sentence": "Rank 5 is hot <b>.",
}


def test_the_fullest_rank_its_tax_and_the_sick_ones_are_tiles() -> None:
    fullest, tax, sick = experts_panels.rank_tiles(PARALLEL)
    assert (fullest["value"], fullest["level"]) == ("1.42×", "fault") and "rank 5" in fullest["unit"]
    assert tax["value"] == "6.2 %" and "R² 0.71" in tax["context"]
    assert (sick["value"], sick["context"], sick["level"]) == ("1", "rank 2", "warn")
    quiet = experts_panels.rank_tiles({**PARALLEL, "skew": 1.02, "level": "ok", "tax": None, "sick": {}})
    assert [tile["level"] for tile in quiet] == ["ok"] * 3 and quiet[1]["value"] == "–"


@pytest.mark.parametrize("parallel", [PARALLEL, None])
def test_the_ranks_panel_says_hot_or_sick_where_ranks_are_known(
    world: World, monkeypatch: pytest.MonkeyPatch, parallel: dict[str, Any] | None
) -> None:
    whole = experts_panels.latest
    monkeypatch.setattr(
        experts_panels, "latest", lambda path, **more: {**(whole(path, **more) or {}), "parallel": parallel}
    )
    text = markup(page(panel="ranks"))
    assert ("Rank 5 is hot &lt;b&gt;." in text) == (parallel is not None)


@pytest.mark.parametrize(("layer", "entropy"), [(3, "above the line of 0.99"), (23, "below the line of 0.99")])
def test_every_known_statistic_of_the_layer_is_shown_beside_its_floor(world: World, layer: int, entropy: str) -> None:
    world.training.layers = 40
    text = markup(page(layer=str(layer), step="36890"))
    section = text[text.index("<h2>Figures</h2>") :]
    assert f"layer {layer}, step 36,890" in section and "docs/experts.md" in section
    row = section[section.index("Gini") :]
    assert row.index("<b>0.031</b>") < row.index("0.029") < row.index("Σ (2i − E − 1)·p₍ᵢ₎ ÷ E")
    assert entropy in section and "0.0119" in section
    assert "z-loss" not in section, "what nobody told is left out"
