"""The live pictures: one canvas component, registered once, with a typed door for each kind of picture.

Why it exists: live pixels never travel through a rerun. Python says what is shown and what is selected; the canvas asks
the frame routes itself each second and draws. A pick comes back as one trigger and becomes the address's query.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import streamlit as st

CANVAS = Path(__file__).parent / "components" / "canvas"
Mode = Literal["load", "bias", "change"]
Measure = Literal["state", "temperature", "power", "ecc", "xgmi", "nic", "job"]
# How many samples wide a raster is at most.
RASTER_COLUMNS = 256
Picked = Callable[[dict[str, Any]], None]

# The module is served by the dashboard itself, under the same guard as everything else.
LOADER = """
const modules = import(new URL("/canvas/main.js", window.location.origin).href)
export default function (component) {
  const root = component.parentElement
  modules.then((loaded) => loaded.mount(component))
  return () => modules.then((loaded) => loaded.unmount(root))
}
"""

_canvas = st.components.v2.component(
    "trimtab_canvas",
    html='<div class="tt-canvas"></div>',
    css=(CANVAS / "canvas.css").read_text(encoding="utf-8"),
    js=LOADER,
)


def _mount(key: str, shown: dict[str, Any], picked: Picked | None, height: int | Literal["content"]) -> None:
    def changed() -> None:
        choice = getattr(st.session_state.get(key), "pick", None)
        if picked is not None and choice:
            picked(dict(choice))

    _canvas(key=key, data=shown, height=height, on_pick_change=changed)


def experts(
    run: str,
    *,
    key: str,
    mode: Mode = "load",
    layer: int | None = None,
    expert: int | None = None,
    step: int | None = None,
    live: bool = True,
    label: str = "",
    layers: int | None = None,
    history_label: str = "newest",
    picked: Picked | None = None,
) -> None:
    """Layer x expert, live, or as it was at `step`; a pick is {layer, expert or None}."""
    shown = {
        "kind": "experts",
        **_experts_source(run, step, live),
        "mode": mode,
        "layer": layer,
        "expert": expert,
        "label": label,
        "layers": layers,
        "historyLabel": history_label,
    }
    _mount(key, shown, picked, "content")


def _experts_source(run: str, step: int | None, live: bool) -> dict[str, Any]:
    """The newest frame of a run, asked each second, or the one of a step, asked once."""
    url = f"/frames/experts/{quote(run, safe='')}"
    if step is None:
        return {"url": url, "once": False, "live": live}
    return {"url": f"{url}?step={step}", "once": True, "live": False}


def layers(
    run: str,
    *,
    key: str,
    layer: int | None = None,
    step: int | None = None,
    live: bool = True,
    picked: Picked | None = None,
) -> None:
    """The same frame as the map's as a real table, a row a layer; a pick is {layer, expert: None}."""
    shown = {"kind": "layers", **_experts_source(run, step, live), "layer": layer}
    _mount(key, shown, picked, "content")


def told(
    kind: Literal["sentence", "tiles"], run: str, first: Any, *, key: str, step: int | None = None, live: bool = True
) -> None:
    """The words that the frame carries, live or as they were at `step`; `first` stands until it comes.

    A run that has ended says so in `first`, which then stays.
    """
    shown = {"kind": kind, **_experts_source(run, step, live), "first": first}
    _mount(key, shown, None, "content")


def raster(
    run: str,
    layer: int,
    *,
    key: str,
    expert: int | None = None,
    window: tuple[int | None, int | None] = (None, None),
    columns: int = RASTER_COLUMNS,
    live: bool = True,
    picked: Picked | None = None,
) -> None:
    """One layer over the steps of `window`, at most `columns` samples wide; a pick is {layer, expert}."""
    query = {"layer": layer, "from": window[0], "to": window[1], "columns": columns}
    known = urlencode({name: value for name, value in query.items() if value is not None})
    shown = {
        "kind": "raster",
        "url": f"/frames/raster/{quote(run, safe='')}?{known}",
        "once": not live or window[1] is not None,
        "live": False,
        "layer": layer,
        "expert": expert,
        "until": window[1],
    }
    _mount(key, shown, picked, "content")


def fleet(*, key: str, measure: Measure, node: str | None, height: int, picked: Picked) -> None:
    """Every GPU of every node by rack; a pick is {node or None, gpu}."""
    shown = {"kind": "fleet", "url": "/frames/fleet", "measure": measure, "node": node, "height": height}
    _mount(key, shown, picked, "content")


def ribbon(*, key: str, picked: Picked) -> None:
    """The fleet as one strip with callouts; a pick is {node, gpu: None}."""
    _mount(key, {"kind": "ribbon", "url": "/frames/fleet"}, picked, "content")


def histogram(measure: Measure, *, key: str) -> None:
    """One measure of all GPUs over its colour scale."""
    _mount(key, {"kind": "histogram", "url": "/frames/fleet", "measure": measure}, None, "content")


def controller(layer: int, *, key: str, facts: dict[str, list[float | None]]) -> None:
    """Where the chosen layer's bias stands among all layers; `facts` are measures by name, a value a layer."""
    _mount(key, {"kind": "controller", "layer": layer, "facts": facts}, None, "content")


def badge(url: str, *, key: str, live: bool = True, what: str = "data") -> None:
    """The age of `what` at `url`, counted up each second."""
    _mount(key, {"kind": "badge", "url": url, "live": live, "what": what}, None, 22)
