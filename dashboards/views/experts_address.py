"""The Experts page's choices and the address that names them: what is shown is a link, and a link shows it again.

Why it exists: every choice (run, layer, expert, step, map, panel, window, the other run) lives in the query and nowhere
else. A choice at its default is left out; a value that names nothing reads as the default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

MODES: Mapping[str, str] = {"load": "Load", "counts": "Counts", "bias": "Bias", "change": "Change", "table": "Table"}
PANELS: Mapping[str, str] = {
    "layer": "Layer",
    "expert": "Expert",
    "controller": "Controller",
    "layers": "All layers",
    "ranks": "Ranks",
    "compare": "Compare",
}
VIEWS: Mapping[str, str] = {"side": "Side by side", "difference": "Difference"}
# The stretch of the time axes in steps; the whole run has no number.
WINDOWS: Mapping[str, str] = {"128": "128", "512": "512", "2048": "2,048", "run": "run"}
WINDOW = "512"


def choice(name: str, options: Mapping[str, str], default: str) -> str:
    """The one of `options` that the address gives for `name`."""
    found = str(st.query_params.get(name) or "")
    return found if found in options else default


def segmented(label: str, name: str, options: Mapping[str, str], default: str, help_: str = "") -> str:
    """A segmented control over `options` whose choice is the address's `name`; returns the choice."""
    chosen = choice(name, options, default)
    st.session_state[f"experts_{name}"] = chosen
    st.segmented_control(
        label, list(options), key=f"experts_{name}", format_func=options.__getitem__, required=True,
        label_visibility="collapsed", on_change=_name, args=(name, default), help=help_ or None,
    )  # fmt: skip
    return chosen


def _name(name: str, default: str) -> None:
    put(name, st.session_state.get(f"experts_{name}"), default)


def put(name: str, value: object, default: object = None) -> None:
    """Have the address name a choice, or leave it out where it is the default or nothing."""
    if value is None or value == default:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)


def window_steps() -> int | None:
    """How many steps the time axes show; None for the whole run."""
    chosen = choice("window", WINDOWS, WINDOW)
    return None if chosen == "run" else int(chosen)


def number_of(name: str, count: int) -> int | None:
    """The whole number that the address gives for `name`, when it is one of `count`; None otherwise."""
    text = str(st.query_params.get(name) or "")
    return int(text) if text.isascii() and text.isdigit() and int(text) < count else None


def picked(told: Mapping[str, Any]) -> None:
    """What a picture was clicked at: layer, expert and step as far as it says; None takes one back."""
    for name in ("layer", "expert", "step"):
        if name in told:
            put(name, None if told[name] is None else int(told[name]))


def go_to_run(run: str, kept: Sequence[str] = ("mode", "panel", "window", "view")) -> None:
    """Another run in the same view: layers, experts and steps are that run's own."""
    keep = {name: st.query_params[name] for name in kept if name in st.query_params}
    st.query_params.clear()
    st.query_params.update({"run": run, **keep})
