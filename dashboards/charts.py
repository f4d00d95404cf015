"""The live pictures: one canvas component, registered once, with a typed door for each kind of picture.

Why it exists: live pixels never travel through a rerun. Python says what is shown and what is selected; the canvas asks
the frame routes itself each second and draws. A pick comes back as one trigger and becomes the address's query.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import streamlit as st

CANVAS = Path(__file__).parent / "components" / "canvas"
Mode = Literal["load", "counts", "bias", "change"]
Measure = Literal["state", "temperature", "power", "ecc", "xgmi", "nic", "job"]
# How many samples wide a raster is at most.
RASTER_COLUMNS = 256
TIMELINE_COLUMNS = 512
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
    bare: bool = False,
    picked: Picked | None = None,
) -> None:
    """Layer x expert, live, or as it was at `step`; a pick is {layer, expert or None}. `bare`: no columns beside it."""
    shown = {
        "kind": "experts",
        **one_step(run, step, live),
        "mode": mode,
        "layer": layer,
        "expert": expert,
        "label": label,
        "layers": layers,
        "historyLabel": history_label,
        "bare": bare,
    }
    _mount(key, shown, picked, "content")


def _frames(kind: str, run: str) -> str:
    return f"/frames/{kind}/{quote(run, safe='')}"


def one_step(run: str, step: int | None, live: bool, kind: str = "experts") -> dict[str, Any]:
    """The frame of the step that the page's time cursor is on: `step` says where the address puts it."""
    return {"url": _frames(kind, run), "follow": "step", "step": step, "live": live}


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a run for pictures with a time axis: the last `steps` steps (None: all), or those around `step`."""

    run: str
    steps: int | None
    step: int | None
    live: bool

    def source(self, kind: str, *, every: int = 1, **query: object) -> dict[str, Any]:
        """The frames of this stretch, asked anew `every` seconds while the run goes on."""
        return {
            "url": _frames(kind, self.run),
            "follow": "window",
            "query": {name: str(value) for name, value in query.items()},
            "steps": self.steps,
            "step": self.step,
            "once": not self.live,
            "live": False,
            "every": every,
        }


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
    _mount(key, {"kind": "layers", **one_step(run, step, live), "layer": layer}, picked, "content")


def told(
    kind: Literal["sentence", "tiles"], run: str, first: Any, *, key: str, step: int | None = None, live: bool = True
) -> None:
    """The words that the frame carries, live or as they were at `step`; `first` stands until it comes.

    A run that has ended says so in `first`, which then stays.
    """
    shown = {"kind": kind, **one_step(run, step, live), "first": first, "cursorOf": run}
    _mount(key, shown, None, "content")


def timeline(stretch: Stretch, *, key: str, newest: int, picked: Picked) -> None:
    """The whole run as a strip with the buttons of a replay; a pick is {step or None}. Panels show `stretch`."""
    whole = Stretch(stretch.run, None, stretch.step, stretch.live).source("layers", every=5, columns=TIMELINE_COLUMNS)
    shown = {
        "kind": "timeline",
        **whole,
        "live": stretch.live,
        "follow": None,
        "steps": stretch.steps,
        "newest": newest,
        "cursorOf": stretch.run,
    }
    _mount(key, shown, picked, "content")


def of_layer(
    kind: Literal["raster", "expert", "phase"],
    stretch: Stretch,
    layer: int,
    *,
    key: str,
    expert: int | None = None,
    columns: int = RASTER_COLUMNS,
    picked: Picked | None = None,
) -> None:
    """A layer, an expert of it or its phase plot over a stretch; a pick is {step} and, where hit, {layer, expert}."""
    source = stretch.source("raster", layer=layer, columns=columns)
    _mount(key, {"kind": kind, **source, "layer": layer, "expert": expert}, picked, "content")


def history(stretch: Stretch, layer: int, *, key: str, picked: Picked) -> None:
    """All layers over a stretch; a pick is {step} and, where one was hit, {layer, expert: None}."""
    source = stretch.source("layers", every=2, columns=RASTER_COLUMNS)
    _mount(key, {"kind": "history", **source, "layer": layer}, picked, "content")


def swings(run: str, layer: int, *, key: str, step: int | None, live: bool, picked: Picked) -> None:
    """How the loads of all layers repeat, by lag; a pick is {layer, expert: None}."""
    _mount(
        key, {"kind": "swings", **one_step(run, step, live, "swings"), "every": 2, "layer": layer}, picked, "content"
    )


def ranks(run: str, layer: int, *, key: str, step: int | None, live: bool, picked: Picked) -> None:
    """What each expert-parallel rank carries in each layer; a pick is {layer, expert: None}."""
    _mount(key, {"kind": "ranks", **one_step(run, step, live), "layer": layer}, picked, "content")


def difference(
    runs: tuple[str, str], *, key: str, layer: int, expert: int | None, step: int | None, live: bool, picked: Picked
) -> None:
    """Two runs' loads as one map of their ratio; a pick is {layer, expert}."""
    shown = {"kind": "difference", **one_step(runs[0], step, live), "other": _frames("experts", runs[1])}
    _mount(key, {**shown, "layer": layer, "expert": expert}, picked, "content")


def curves(
    runs: tuple[str, str],
    names: tuple[str, str],
    *,
    key: str,
    step: int | None,
    live: tuple[bool, bool],
    picked: Picked,
) -> None:
    """CV over its floor of two runs on one axis of steps, each asked anew while it goes on; a pick is {step}."""
    source = Stretch(runs[0], None, step, live[0]).source("layers", every=5, columns=TIMELINE_COLUMNS)
    other = {"other": _frames("layers", runs[1]), "otherManner": {"once": not live[1]}}
    _mount(key, {"kind": "curves", **source, "follow": None, **other, "names": list(names)}, picked, "content")


def saving(stretch: Stretch, name: str, file: str, *, key: str, newest: int, query: dict[str, Any]) -> None:
    """Links that save the page's pictures, and of the stretch's records those that `query` (what, layers) names.

    A stretch of one step is the step that is shown.
    """
    known = {key: value for key, value in query.items() if value is not None}
    records = f"/export/experts/{quote(stretch.run, safe='')}?{urlencode(known)}"
    shown = {
        "run": stretch.run,
        "records": records,
        "steps": stretch.steps,
        "newest": newest,
        "step": stretch.step,
        "file": file,
    }
    _mount(key, {"kind": "saving", **shown, "name": name}, None, "content")


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
